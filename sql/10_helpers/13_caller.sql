-- drop: DROP FUNCTION IF EXISTS loracomp.caller()
-- Reads only: who is behind a call, also inside a SECURITY DEFINER function, where current_user is its owner.
CREATE FUNCTION loracomp.caller() RETURNS name
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END;
END;
COMMENT ON FUNCTION loracomp.caller IS 'The role that the session acts as: SET ROLE where there was one, else the login.';

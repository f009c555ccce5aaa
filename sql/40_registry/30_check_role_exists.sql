-- drop: DROP FUNCTION IF EXISTS loracomp.check_role_exists(name)
-- Raises if there is no such role: a task whose reader_role is a slip of the pen would be read by nobody.
CREATE FUNCTION loracomp.check_role_exists(role name) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF role IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = role) THEN
        RAISE EXCEPTION 'reader_role: there is no role %', role
            USING ERRCODE = 'no_data_found', HINT = 'CREATE ROLE makes one';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_role_exists IS 'Raises where the role does not exist; null is fine.';

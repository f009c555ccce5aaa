-- drop: DROP FUNCTION IF EXISTS loracomp.caller_is_admin()
-- Reads only. For functions with their owner's rights: there current_user is the owner, who may do everything.
CREATE FUNCTION loracomp.caller_is_admin() RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT loracomp.caller() = current_user
        OR coalesce(pg_has_role(loracomp.caller(), to_regrole('loracomp_admin'), 'member'), FALSE);
END;
COMMENT ON FUNCTION loracomp.caller_is_admin IS
'Whether the caller of a SECURITY DEFINER function is its owner or a member of loracomp_admin.';

-- Which role calls a function, and which tasks that role may know of.
--   caller              the role that the session acts as
--   caller_is_admin     whether it is an administrator or the owner
--     caller
--   may_read            whether a role may know of a task

-- Reads only. It also works inside a SECURITY DEFINER function, where current_user is the function's owner.
CREATE FUNCTION loracomp.caller() RETURNS name
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END;
END;
COMMENT ON FUNCTION loracomp.caller IS 'The role that the session acts as: that of SET ROLE, or else the login.';

-- Reads only. For SECURITY DEFINER functions, in which current_user is the owner, who may do everything.
CREATE FUNCTION loracomp.caller_is_admin() RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT loracomp.caller() = current_user
        OR coalesce(pg_has_role(loracomp.caller(), to_regrole('loracomp_admin'), 'member'), FALSE);
END;
COMMENT ON FUNCTION loracomp.caller_is_admin IS
'Whether the caller of a SECURITY DEFINER function is its owner or a member of loracomp_admin.';

-- Reads only memberships. Both roles are looked up by to_regrole, because pg_has_role raises for the name of a role that was dropped,
-- and a worker asks this for the submitters of jobs, who may be gone.
CREATE FUNCTION loracomp.may_read(reader name, reader_role name) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT reader_role IS NULL OR coalesce(
        (
            SELECT
                pg_has_role(r.oid, to_regrole(quote_ident(reader_role)), 'member')
                OR pg_has_role(r.oid, to_regrole('loracomp_admin'), 'member')
                OR pg_has_role(r.oid, n.nspowner, 'member')
            FROM to_regrole(quote_ident(reader)) AS r (oid)
            CROSS JOIN pg_namespace AS n
            WHERE n.nspname = 'loracomp'
        ),
        FALSE
    );
END;
COMMENT ON FUNCTION loracomp.may_read IS
'Whether a role may know of a task with this reader_role: a member of it, an administrator, or the owner.';

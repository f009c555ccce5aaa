-- Which role calls a function, and which tasks that role may know of.
--   caller              the role that the session acts as
--   is_admin            whether a role is an administrator or the owner
--   caller_is_admin     whether the caller is
--     caller
--   may_read            whether a role may know of a task
--     is_admin

-- Reads only. It also works inside a SECURITY DEFINER function, where current_user is the function's owner.
CREATE FUNCTION loracomp.caller() RETURNS name
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END;
END;
COMMENT ON FUNCTION loracomp.caller IS 'The role that the session acts as: that of SET ROLE, or else the login.';

-- Reads only memberships. Here and below, roles are looked up by to_regrole, because pg_has_role raises for the name of a role that was
-- dropped, and a worker asks this for the submitters of jobs, who may be gone.
CREATE FUNCTION loracomp.is_admin(role name) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(
        (
            SELECT pg_has_role(r.oid, to_regrole('loracomp_admin'), 'member') OR pg_has_role(r.oid, n.nspowner, 'member')
            FROM to_regrole(quote_ident(role)) AS r (oid)
            CROSS JOIN pg_namespace AS n
            WHERE n.nspname = 'loracomp'
        ),
        FALSE
    );
END;
COMMENT ON FUNCTION loracomp.is_admin IS
'Whether a role is an administrator: a member of loracomp_admin, or of the role that owns the schema loracomp.';

-- Reads only. For SECURITY DEFINER functions, in which current_user is the owner.
CREATE FUNCTION loracomp.caller_is_admin() RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT loracomp.is_admin(loracomp.caller());
END;
COMMENT ON FUNCTION loracomp.caller_is_admin IS 'Whether the caller of a SECURITY DEFINER function is an administrator.';

-- Reads only memberships.
CREATE FUNCTION loracomp.may_read(reader name, reader_role name) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT reader_role IS NULL
        OR coalesce(pg_has_role(to_regrole(quote_ident(reader)), to_regrole(quote_ident(reader_role)), 'member'), FALSE)
        OR loracomp.is_admin(reader);
END;
COMMENT ON FUNCTION loracomp.may_read IS
'Whether a role may know of a task with this reader_role: a member of it, or an administrator.';

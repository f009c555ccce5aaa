-- Which role calls a function, and which tasks that role may know of.
--   caller              the role that the session acts as
--     check_caller      refuses a privileged one inside a security-restricted operation
--       is_restricted, is_admin
--   is_admin            whether a role is an administrator or the owner
--   caller_is_admin     whether the caller is
--     caller
--   may_read            whether a role may know of a task
--     is_admin

-- Reads only memberships. Here and below, roles are looked up by to_regrole, because pg_has_role raises for the name of a role that was
-- dropped, and a worker asks this for the submitters of jobs, who may be gone.
CREATE FUNCTION loracomp.is_admin(role name) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(
        (
            SELECT pg_has_role(r.oid, to_regrole('loracomp_admin'), 'usage') OR pg_has_role(r.oid, n.nspowner, 'usage')
            FROM to_regrole(quote_ident(role)) AS r (oid)
            CROSS JOIN pg_namespace AS n
            WHERE n.nspname = 'loracomp'
        ),
        FALSE
    );
END;
COMMENT ON FUNCTION loracomp.is_admin IS
'Whether a role is an administrator: a member of loracomp_admin, or of the role that owns the schema loracomp.';

-- Changes nothing: Postgres refuses UNLISTEN in a security-restricted operation, and nobody listens to this channel.
CREATE FUNCTION loracomp.is_restricted() RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    UNLISTEN loracomp_is_restricted;
    -- It is undone, because a session that has ever listened keeps 8 kB for each UNLISTEN until its transaction ends.
    RAISE EXCEPTION USING ERRCODE = 'LC000';
EXCEPTION
    WHEN insufficient_privilege THEN
        RETURN TRUE;
    WHEN SQLSTATE 'LC000' THEN
        RETURN FALSE;
END
$$;
COMMENT ON FUNCTION loracomp.is_restricted IS
'Whether this runs in a security-restricted operation, as the functions of an index do during ANALYZE.';

-- ANALYZE, VACUUM, REINDEX, CREATE INDEX, CLUSTER and REFRESH run the functions of a table's indexes and of a materialized view as the owner of the
-- table or view, in a security-restricted operation. Such a function must not get the rights of the session, which may be autovacuum's. The
-- restriction is looked up only for administrators, because this takes a subtransaction, and each INSERT of a job would pay for it.
CREATE FUNCTION loracomp.check_caller(caller name) RETURNS name
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF loracomp.is_admin(caller) THEN
        IF loracomp.is_restricted() THEN
            RAISE EXCEPTION 'loracomp does not act for % here, because this may be code of the owner of a table or materialized view', caller
                USING ERRCODE = 'insufficient_privilege',
                    HINT = 'let the owner of the table or materialized view do this, who must not be an administrator of loracomp';
        END IF;
    END IF;
    RETURN caller;
END
$$;
COMMENT ON FUNCTION loracomp.check_caller IS
'Returns this role, or raises if it is an administrator or the owner and this is a security-restricted operation.';

-- Reads only. It also works inside a SECURITY DEFINER function, where current_user is the function's owner.
CREATE FUNCTION loracomp.caller() RETURNS name
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT loracomp.check_caller(
        CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END
    );
END;
COMMENT ON FUNCTION loracomp.caller IS
'The role that the session acts as: the role of SET ROLE, or else the login. Raises if this role is an administrator or the owner while code of '
'a table''s owner may be running, as in ANALYZE of the table.';

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
        OR coalesce(pg_has_role(to_regrole(quote_ident(reader)), to_regrole(quote_ident(reader_role)), 'usage'), FALSE)
        OR loracomp.is_admin(reader);
END;
COMMENT ON FUNCTION loracomp.may_read IS
'Whether a role may know of a task with this reader_role: a member of it, or an administrator.';

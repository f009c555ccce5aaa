-- drop: DROP FUNCTION IF EXISTS loracomp.may_read(name, name)
-- Reads only who is a member of what. Roles are looked up by to_regrole: pg_has_role raises for a name that has vanished.
CREATE FUNCTION loracomp.may_read(reader name, reader_role name) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT reader_role IS NULL OR coalesce(
        pg_has_role(reader, to_regrole(quote_ident(reader_role)), 'member')
        OR pg_has_role(reader, to_regrole('loracomp_admin'), 'member')
        OR pg_has_role(reader, (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = 'loracomp'), 'member'),
        FALSE
    );
END;
COMMENT ON FUNCTION loracomp.may_read IS
'Whether a role may know of a task with this reader_role: a member of it, an administrator, or the owner.';

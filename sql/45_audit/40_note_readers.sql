-- Writes an event for every login that has become, or is no longer, a member of a task's reader_role since the last call. A
-- GRANT of a role runs no trigger, so only the server's log shows who granted it.
CREATE FUNCTION loracomp.note_readers() RETURNS TABLE (reader_role name, member name, change text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    -- Lock, so that two calls at the same time don't write the same change twice.
    LOCK TABLE loracomp.task IN SHARE ROW EXCLUSIVE MODE;
    RETURN QUERY
    WITH noted AS (
        SELECT s.reader_role, s.member
        FROM (
            SELECT DISTINCT ON (e.entity_name, coalesce(e.after, e.before) ->> 'member')
                e.entity_name::name AS reader_role,
                (coalesce(e.after, e.before) ->> 'member')::name AS member,
                e.action
            FROM loracomp.audit_event AS e
            WHERE e.entity = 'reader'
            ORDER BY e.entity_name, coalesce(e.after, e.before) ->> 'member', e.id DESC
        ) AS s
        WHERE s.action = 'insert'
    ),
    present AS (
        SELECT DISTINCT t.reader_role, r.rolname AS member
        FROM loracomp.task AS t
        JOIN pg_catalog.pg_roles AS r
            ON r.rolcanlogin AND NOT r.rolsuper
            AND pg_has_role(r.oid, to_regrole(quote_ident(t.reader_role)), 'member')
        WHERE t.reader_role IS NOT NULL
    ),
    changed AS (
        SELECT
            coalesce(p.reader_role, n.reader_role) AS reader_role,
            coalesce(p.member, n.member) AS member,
            CASE WHEN n.member IS NULL THEN 'insert' ELSE 'delete' END AS change
        FROM present AS p
        FULL JOIN noted AS n ON n.reader_role = p.reader_role AND n.member = p.member
        WHERE n.member IS NULL OR p.member IS NULL
    ),
    written AS (
        INSERT INTO loracomp.audit_event (actor, entity, entity_name, action, reason, before, after)
        SELECT
            loracomp.caller(), 'reader', c.reader_role, c.change, 'note_readers',
            CASE c.change WHEN 'delete' THEN jsonb_build_object('member', c.member) END,
            CASE c.change WHEN 'insert' THEN jsonb_build_object('member', c.member) END
        FROM changed AS c
        ORDER BY c.reader_role, c.member
    )
    SELECT c.reader_role, c.member, c.change FROM changed AS c ORDER BY c.reader_role, c.member;
END
$$;
COMMENT ON FUNCTION loracomp.note_readers IS
'Writes to audit_event which logins have become (insert) or stopped being (delete) readers of tasks since its last call, and '
'returns them. actor and at of the events are those of the call. restrict_task calls it; also call it regularly.';

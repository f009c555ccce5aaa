-- drop: DROP FUNCTION IF EXISTS loracomp.eligible_tasks(text, name, text[])
-- Changes nothing. Roles are looked up by to_regrole, because pg_has_role raises for a name that has vanished.
CREATE FUNCTION loracomp.eligible_tasks(base_model text, submitter name, excluded text[]) RETURNS integer[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(array_agg(t.id ORDER BY t.id), '{}')
    FROM loracomp.task AS t
    WHERE EXISTS (
        SELECT FROM loracomp.adapter AS a JOIN loracomp.base_model AS b ON b.id = a.base_model_id
        WHERE a.task_id = t.id AND a.status = 'active' AND b.name = eligible_tasks.base_model
    )
    AND to_regrole(quote_ident(submitter)) IS NOT NULL
    AND (
        t.reader_role IS NULL
        OR pg_has_role(to_regrole(quote_ident(submitter)), to_regrole(quote_ident(t.reader_role)), 'member')
    )
    AND t.name <> ALL (coalesce(excluded, '{}'));
END;
COMMENT ON FUNCTION loracomp.eligible_tasks IS
'Tasks that a submitter''s job may retrieve: an active adapter for the base model, readable by the submitter, not '
'excluded. A role that has vanished reads nothing.';

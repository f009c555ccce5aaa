-- drop: DROP VIEW IF EXISTS loracomp.restricted_task
-- Reads only, with its owner's rights, and is granted to nobody: what hides names has to know them.
CREATE VIEW loracomp.restricted_task AS
SELECT
    t.id AS task_id,
    t.name,
    t.reader_role,
    'hidden task ' || t.id AS label
FROM loracomp.task AS t
WHERE t.reader_role IS NOT NULL
UNION ALL
-- Names that a restricted task once had stand in old traces.
SELECT DISTINCT ON (e.before ->> 'name')
    (e.before ->> 'id')::integer,
    e.before ->> 'name',
    (e.before ->> 'reader_role')::name,
    'hidden task ' || (e.before ->> 'id')
FROM loracomp.audit_event AS e
WHERE e.entity = 'task' AND e.before ->> 'reader_role' IS NOT NULL
    AND NOT EXISTS (SELECT FROM loracomp.task AS t WHERE t.name = e.before ->> 'name');
COMMENT ON VIEW loracomp.restricted_task IS 'Tasks that have a reader_role, by their names now and before; for no role.';
COMMENT ON COLUMN loracomp.restricted_task.task_id IS 'The task.';
COMMENT ON COLUMN loracomp.restricted_task.name IS 'Its name, or one that it had.';
COMMENT ON COLUMN loracomp.restricted_task.reader_role IS 'Role whose members may know of it.';
COMMENT ON COLUMN loracomp.restricted_task.label IS 'What others see in place of the name.';

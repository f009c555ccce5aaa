-- Hides the names of tasks that a role may not know of, and shows labels in their place.
--   task_mask           the hidden names, each with its label, for the views of bi
--     caller, may_read
--   masked_tasks        a list of task names in which labels replace the hidden ones
--   masked_adapter      an adapter's name, or a label if its task is hidden

-- Reads only, with its owner's rights. One row, for the current caller. It contains the hidden names, so no role has a privilege on it.
-- Views of bi read it in scalar subqueries, which Postgres computes once; a join would copy the labels into each row.
CREATE VIEW loracomp.task_mask AS
WITH restricted AS (
    SELECT t.id, t.name, t.reader_role FROM loracomp.task AS t WHERE t.reader_role IS NOT NULL
    UNION ALL
    -- Former names of a task are included, because old traces contain them.
    SELECT DISTINCT ON (e.before ->> 'name')
        (e.before ->> 'id')::integer,
        e.before ->> 'name',
        (e.before ->> 'reader_role')::name
    FROM loracomp.audit_event AS e
    WHERE e.entity = 'task' AND e.action <> 'insert' AND e.before ->> 'reader_role' IS NOT NULL
        AND NOT EXISTS (SELECT FROM loracomp.task AS t WHERE t.name = e.before ->> 'name')
),

-- Check each role once, and not once for each of its tasks.
hiding AS MATERIALIZED (
    SELECT d.reader_role
    FROM (SELECT DISTINCT r.reader_role FROM restricted AS r OFFSET 0) AS d
    WHERE NOT loracomp.may_read(loracomp.caller(), d.reader_role)
)

SELECT coalesce(jsonb_object_agg(r.name, 'hidden task ' || r.id), '{}') AS labels
FROM restricted AS r
INNER JOIN hiding AS h ON r.reader_role = h.reader_role;
COMMENT ON VIEW loracomp.task_mask IS 'Names of tasks that the caller may not know, with the labels that are shown instead.';
COMMENT ON COLUMN loracomp.task_mask.labels IS 'JSON object from task name to label; {} if nothing is hidden.';

-- Reads no table.
CREATE FUNCTION loracomp.masked_tasks(tasks text[], labels jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(
    SELECT coalesce(labels ->> u.task, u.task)
    FROM unnest(tasks) WITH ORDINALITY AS u (task, ordinal)
    ORDER BY u.ordinal
);
COMMENT ON FUNCTION loracomp.masked_tasks IS 'A list of task names with hidden names replaced by their labels.';

-- Reads no table. The cast to text makes the whole expression immutable, so that Postgres inlines the function instead of calling it for
-- each row.
CREATE FUNCTION loracomp.masked_adapter(adapter text, task text, adapter_id integer, labels jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN labels ? task THEN 'hidden adapter ' || adapter_id::text ELSE adapter END;
COMMENT ON FUNCTION loracomp.masked_adapter IS 'The name of a task''s adapter, or a label if the task is hidden.';

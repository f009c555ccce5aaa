-- drop: DROP FUNCTION IF EXISTS loracomp.list_tasks()
-- Reads tasks with what they have.
CREATE FUNCTION loracomp.list_tasks()
RETURNS TABLE (
    name text,
    family text,
    description text,
    reader_role name,
    train bigint,
    validation bigint,
    test bigint,
    embedded bigint,
    without_text bigint,
    active_adapters bigint
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT
    t.name,
    t.family,
    t.description,
    t.reader_role,
    count(e.id) FILTER (WHERE e.split = 'train'),
    count(e.id) FILTER (WHERE e.split = 'validation'),
    count(e.id) FILTER (WHERE e.split = 'test'),
    (SELECT count(*) FROM loracomp.example_embedding AS v WHERE v.task_id = t.id),
    count(e.id) FILTER (WHERE e.prompt IS NULL),
    (SELECT count(*) FROM loracomp.adapter AS a WHERE a.task_id = t.id AND a.status = 'active')
FROM loracomp.task AS t
LEFT JOIN loracomp.example AS e ON t.id = e.task_id
GROUP BY t.id
ORDER BY t.family, t.name;
END;
COMMENT ON FUNCTION loracomp.list_tasks IS 'Tasks with their numbers of examples, embeddings and active adapters.';

-- drop: DROP FUNCTION IF EXISTS loracomp.find_unembedded(text, bytea[])
-- Reads which of these rows of a task are train examples without an embedding.
CREATE FUNCTION loracomp.find_unembedded(task text, content_hashes bytea[])
RETURNS TABLE (content_hash bytea, example_id bigint, task_id integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT e.content_hash, e.id, e.task_id
FROM loracomp.example AS e
INNER JOIN loracomp.task AS t ON e.task_id = t.id
WHERE t.name = find_unembedded.task AND e.split = 'train' AND e.content_hash = ANY (find_unembedded.content_hashes)
    AND NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.example_id = e.id)
ORDER BY e.id;
END;
COMMENT ON FUNCTION loracomp.find_unembedded IS 'Those of the rows that are train examples of the task without an embedding.';

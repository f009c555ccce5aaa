-- drop: DROP FUNCTION IF EXISTS loracomp.clear_embeddings()
-- Removes every embedding; nothing is retrieved until they are made again.
-- Returns, for each task, how many went and how many of them can't be made again, for want of a text.
CREATE FUNCTION loracomp.clear_embeddings() RETURNS TABLE (task text, removed bigint, without_text bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    LOCK TABLE loracomp.example_embedding IN ACCESS EXCLUSIVE MODE;
    RETURN QUERY
    SELECT t.name, count(*), count(*) FILTER (WHERE e.prompt IS NULL)
    FROM loracomp.example_embedding AS v
    INNER JOIN loracomp.example AS e ON v.example_id = e.id
    INNER JOIN loracomp.task AS t ON e.task_id = t.id
    GROUP BY t.name
    ORDER BY t.name;
    TRUNCATE loracomp.example_embedding;
END
$$;
COMMENT ON FUNCTION loracomp.clear_embeddings IS
'Removes all embeddings; says for each task how many, and how many of them had no text to make them of again.';

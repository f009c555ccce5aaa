-- drop: DROP FUNCTION IF EXISTS loracomp.unembedded_examples(text, integer)
-- Reads train examples that have a text and no embedding, of one task or of all, and how many there are.
CREATE FUNCTION loracomp.unembedded_examples(task text, max_examples integer)
RETURNS TABLE (example_id bigint, task_id integer, prompt text, choices text[], remaining bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
    SELECT e.id, e.task_id, e.prompt, e.choices, count(*) OVER ()
    FROM loracomp.example AS e
    WHERE e.split = 'train' AND e.prompt IS NOT NULL
        AND (unembedded_examples.task IS NULL
            OR e.task_id = (SELECT t.id FROM loracomp.task AS t WHERE t.name = unembedded_examples.task))
        AND NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.example_id = e.id)
    ORDER BY e.id
    LIMIT CASE
        WHEN loracomp.check_range('max_examples', unembedded_examples.max_examples, 0, 2147483647) THEN max_examples
    END;
$$;
COMMENT ON FUNCTION loracomp.unembedded_examples IS
'Train examples that still need an embedding, of a task or (null) of all; remaining counts them all.';

-- drop: DROP FUNCTION IF EXISTS loracomp.add_embeddings(bigint[], vector[])
-- Stores embeddings of examples that have none yet, and returns how many: two imports of one task may bring the same, and
-- the second waits for the first. What has gone meanwhile is left out.
CREATE FUNCTION loracomp.add_embeddings(example_ids bigint[], embeddings vector[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    added bigint;
BEGIN
    IF cardinality(add_embeddings.example_ids) <> cardinality(add_embeddings.embeddings) THEN
        RAISE EXCEPTION 'embeddings must be as many as example_ids' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO loracomp.example_embedding (example_id, task_id, embedding)
    SELECT e.id, e.task_id, g.embedding
    FROM unnest(add_embeddings.example_ids, add_embeddings.embeddings) AS g (example_id, embedding)
    JOIN loracomp.example AS e ON e.id = g.example_id
    ORDER BY e.id
    FOR KEY SHARE OF e
    ON CONFLICT ON CONSTRAINT an_example_has_one_embedding DO NOTHING;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added;
END
$$;
COMMENT ON FUNCTION loracomp.add_embeddings IS
'Stores unit vectors of examples, one each; those that have one keep it. Returns how many were stored.';

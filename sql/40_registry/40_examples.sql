-- Examples, then their embeddings.
--   add_examples
--   unembedded_examples         train examples to embed, with their texts
--   find_unembedded             which of the given rows lack an embedding, for a library that brings embeddings
--   add_embeddings
--   drop_embedding_index        before loading many embeddings, if building the index afterwards is faster
--   build_embedding_index       after loading them

-- Adds examples to a task. A row that is already there (by content_hash) gets the given text, if any: so an example that a
-- library shipped without text gets one. If its text changes, its embedding and measurements are removed.
-- A row that is already in another split is not changed. Returns the outcome of each row, in order.
CREATE FUNCTION loracomp.add_examples(task text, examples jsonb)
RETURNS TABLE (outcome text, stored_split text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    target integer := (SELECT t.id FROM loracomp.task AS t WHERE t.name = add_examples.task FOR NO KEY UPDATE);
BEGIN
    IF target IS NULL THEN
        PERFORM loracomp.check_task_exists(coalesce(add_examples.task, 'null'));
    END IF;
    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT
            r.split, r.prompt, r.choices, r.answer, r.source_ref, r.hash_version,
            decode(r.content_hash, 'hex') AS content_hash,
            r.place,
            row_number() OVER same_row AS time,
            first_value(r.split) OVER same_row AS first_split
        FROM ROWS FROM (
            jsonb_to_recordset(examples) AS (
                split text, prompt text, choices text[], answer text,
                source_ref text, content_hash text, hash_version smallint
            )
        ) WITH ORDINALITY AS r (split, prompt, choices, answer, source_ref, content_hash, hash_version, place)
        WINDOW same_row AS (PARTITION BY r.content_hash ORDER BY r.place)
    ),
    judged AS MATERIALIZED (
        SELECT
            g.*,
            e.id,
            coalesce(e.split, g.first_split) AS stored_split,
            CASE
                WHEN coalesce(e.split, g.first_split) <> g.split THEN 'other_split'
                WHEN g.time > 1 THEN 'unchanged'
                WHEN e.id IS NULL THEN 'added'
                WHEN g.prompt IS NULL THEN 'unchanged'
                WHEN e.prompt IS NULL THEN 'filled'
                WHEN (e.prompt, e.choices, e.answer) IS DISTINCT FROM (g.prompt, g.choices, g.answer) THEN 'changed'
                ELSE 'unchanged'
            END AS outcome
        FROM given AS g
        LEFT JOIN loracomp.example AS e ON e.task_id = target AND g.content_hash = e.content_hash
    ),
    added AS (
        INSERT INTO loracomp.example
            (task_id, split, prompt, choices, answer, source_ref, content_hash, hash_version)
        SELECT target, j.split, j.prompt, j.choices, j.answer, j.source_ref, j.content_hash, coalesce(j.hash_version, 1)
        FROM judged AS j
        WHERE j.outcome = 'added'
        ORDER BY j.place
    ),
    written AS (
        UPDATE loracomp.example AS e
        SET prompt = j.prompt, choices = j.choices, answer = j.answer, source_ref = coalesce(j.source_ref, e.source_ref)
        FROM judged AS j
        WHERE e.id = j.id AND j.outcome IN ('filled', 'changed')
    ),
    outdated AS (
        DELETE FROM loracomp.example_embedding AS v
        USING judged AS j
        WHERE v.example_id = j.id AND j.outcome = 'changed'
    ),
    measured_before AS (
        DELETE FROM loracomp.measurement AS m
        USING judged AS j
        WHERE m.example_id = j.id AND j.outcome = 'changed'
    )
    SELECT j.outcome, j.stored_split FROM judged AS j ORDER BY j.place;
END
$$;
COMMENT ON FUNCTION loracomp.add_examples IS
'Adds examples given as a JSON array of objects (split, prompt, choices, answer, source_ref, content_hash in hex,
hash_version). Returns the outcome of each: added, filled, changed, unchanged, or other_split (not added).';

-- Reads train examples with text but without embedding, of one task or of all, and their number.
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
'Train examples without an embedding, of one task or of all tasks (null); remaining is their total number.';

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
COMMENT ON FUNCTION loracomp.find_unembedded IS 'Which of the given rows are train examples of the task without an embedding.';

-- Stores embeddings of examples that have none yet, and returns how many. If two imports bring the same examples, the second
-- waits for the first. Examples that were deleted meanwhile are skipped.
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
'Stores one unit vector for each example; an example that has one keeps it. Returns how many were stored.';

-- Drops the HNSW index if so many embeddings will be added that building it again is faster; returns whether it did.
-- build_embedding_index must follow in the same transaction; until it ends, routing waits.
CREATE FUNCTION loracomp.drop_embedding_index(incoming bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    -- Measured at 11,000 x 384: 3.4 ms to insert a row into the index, 0.35 ms a row to build it.
    IF incoming::numeric * 9 <= (SELECT count(*) FROM loracomp.example_embedding) THEN
        RETURN false;
    END IF;
    DROP INDEX loracomp.example_embedding_hnsw;
    INSERT INTO loracomp.audit_event (actor, entity, entity_name, action, reason)
    VALUES (loracomp.caller(), 'index', 'example_embedding_hnsw', 'delete', 'drop_embedding_index');
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.drop_embedding_index IS
'Call it before loading many embeddings: drops their index if building it afterwards is faster; returns whether it did.';

-- Builds the HNSW index that drop_embedding_index dropped.
CREATE FUNCTION loracomp.build_embedding_index() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    EXECUTE format(
        'CREATE INDEX example_embedding_hnsw ON loracomp.example_embedding USING hnsw (embedding %s.halfvec_cosine_ops) '
        'WITH (ef_construction = 400)',
        (SELECT e.extnamespace::regnamespace FROM pg_catalog.pg_extension AS e WHERE e.extname = 'vector')
    );
    INSERT INTO loracomp.audit_event (actor, entity, entity_name, action, reason)
    VALUES (loracomp.caller(), 'index', 'example_embedding_hnsw', 'insert', 'build_embedding_index');
END
$$;
COMMENT ON FUNCTION loracomp.build_embedding_index IS 'Call it after loading many embeddings: builds the index that drop_embedding_index dropped.';

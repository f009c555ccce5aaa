-- Examples, then their embeddings.
--   add_examples
--   add_example                 adds one
--     add_examples, content_hash
--   has_unembedded              whether a worker should look for examples to embed
--   draw_unembedded             train examples to embed, with their texts
--     lock_encoder, content_hash
--   count_unembedded            how many there are
--   find_unembedded             which of the given rows lack an embedding, for a library that brings embeddings
--   add_embeddings
--     lock_encoder, content_hash
--   drop_embedding_index        before loading many embeddings, if building the index afterwards is faster
--   build_embedding_index       after loading embeddings; also stores the rows in an order that makes searches fast
--     lock_embeddings           set_encoder calls it too

-- Adds examples to a task. A row that is already stored (with the same content_hash) gets the given text, if there is one. This is how an
-- example that a library shipped without text gets its text. If the text of an example changes, its measurements are deleted, and the
-- trigger forget_embeddings deletes its embedding. A row that another split already contains is not changed. Returns the outcome of each
-- row, in order.
CREATE FUNCTION loracomp.add_examples(task text, examples jsonb)
RETURNS TABLE (outcome text, stored_split text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    target CONSTANT integer := loracomp.find_task(add_examples.task);
BEGIN
    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT
            r.split, r.prompt, r.choices, r.label, r.source_ref, r.hash_version,
            decode(r.content_hash, 'hex') AS content_hash,
            r.ordinal,
            row_number() OVER same_row AS time,
            first_value(r.split) OVER same_row AS first_split
        FROM ROWS FROM (
            jsonb_to_recordset(examples) AS (
                split text, prompt text, choices text[], label text,
                source_ref text, content_hash text, hash_version smallint
            )
        ) WITH ORDINALITY AS r (split, prompt, choices, label, source_ref, content_hash, hash_version, ordinal)
        WINDOW same_row AS (PARTITION BY r.content_hash ORDER BY r.ordinal)
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
                WHEN (e.prompt, e.choices, e.label) IS DISTINCT FROM (g.prompt, g.choices, g.label) THEN 'changed'
                ELSE 'unchanged'
            END AS outcome
        FROM given AS g
        LEFT JOIN loracomp.example AS e ON e.task_id = target AND g.content_hash = e.content_hash
    ),
    added AS (
        INSERT INTO loracomp.example
            (task_id, split, prompt, choices, label, source_ref, content_hash, hash_version)
        SELECT target, j.split, j.prompt, j.choices, j.label, j.source_ref, j.content_hash, coalesce(j.hash_version, 1)
        FROM judged AS j
        WHERE j.outcome = 'added'
        ORDER BY j.ordinal
    ),
    written AS (
        UPDATE loracomp.example AS e
        SET prompt = j.prompt, choices = j.choices, label = j.label, source_ref = coalesce(j.source_ref, e.source_ref)
        FROM judged AS j
        WHERE e.id = j.id AND j.outcome IN ('filled', 'changed')
    ),
    measured_before AS (
        DELETE FROM loracomp.measurement AS m
        USING judged AS j
        WHERE m.example_id = j.id AND j.outcome = 'changed'
    )
    SELECT j.outcome, j.stored_split FROM judged AS j ORDER BY j.ordinal;
END
$$;
COMMENT ON FUNCTION loracomp.add_examples IS
'Adds examples given as a JSON array of objects (split, prompt, choices, label, source_ref, content_hash in hex,
hash_version). Returns the outcome of each: added, filled, changed, unchanged, or other_split (not added).';

-- Hashes the same bytes as loracomp.registry.examples.canonical_json in Python, so that a row has the same hash whether SQL or a file adds
-- it.
CREATE FUNCTION loracomp.content_hash(prompt text, label text, choices text[]) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE
RETURN sha256(convert_to(format(
    '{"choices":%s,"label":%s,"prompt":%s}', coalesce(to_json(choices), 'null'), to_json(label), to_json(prompt)
), 'UTF8'));
COMMENT ON FUNCTION loracomp.content_hash IS
'The content hash of an example with these texts; the same row imported from a file has the same hash.';

-- Adds an example in the same way as an import of a file with this row. Workers embed it.
CREATE FUNCTION loracomp.add_example(
    task text, prompt text, label text, choices text[] DEFAULT NULL, split text DEFAULT 'train'
) RETURNS text
LANGUAGE sql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
    SELECT a.outcome FROM loracomp.add_examples(add_example.task, jsonb_build_array(jsonb_build_object(
        'split', add_example.split, 'prompt', add_example.prompt, 'label', add_example.label,
        'choices', add_example.choices,
        'content_hash', encode(loracomp.content_hash(add_example.prompt, add_example.label, add_example.choices), 'hex')
    ))) AS a;
$$;
COMMENT ON FUNCTION loracomp.add_example IS
'Adds an example to a task; workers embed it. Returns added, unchanged, or other_split (not added). choices null: the label is free text.';

-- Reads only and locks nothing, because idle workers call it every second.
CREATE FUNCTION loracomp.has_unembedded() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp SET jit = off
AS $$
    SELECT EXISTS (
        SELECT FROM loracomp.example AS e
        WHERE e.split = 'train' AND e.prompt IS NOT NULL
            AND NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.example_id = e.id)
    );
$$;
COMMENT ON FUNCTION loracomp.has_unembedded IS 'Whether any train example that has a text has no embedding yet.';

-- Draws train examples with a text and without an embedding, of one task or of all, by id, above `after`. It leaves none locked, because encoding
-- takes long, and the process may freeze meanwhile. Examples that somebody else has locked, for example because a declaration is being dropped,
-- are left out, because add_embeddings would refuse them, and whoever embeds would not get to the others. Processes that embed at the same time
-- draw from more examples than each of them takes, so that they seldom embed the same ones.
CREATE FUNCTION loracomp.draw_unembedded(
    encoder text, input_version smallint, task text, after bigint, max_examples integer
)
RETURNS TABLE (example_id bigint, prompt text, choices text[], text_hash bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    free bigint[];
BEGIN
    PERFORM loracomp.check_range('max_examples', max_examples, 1, 100000);
    PERFORM loracomp.lock_encoder(draw_unembedded.encoder, draw_unembedded.input_version);
    BEGIN
        -- This is a subquery with IS NULL, because Postgres would turn NOT EXISTS into a join that reads all embeddings for each batch.
        free := ARRAY(
            SELECT e.id FROM loracomp.example AS e
            WHERE e.id > draw_unembedded.after AND e.split = 'train' AND e.prompt IS NOT NULL
                AND (
                    draw_unembedded.task IS NULL
                    OR e.task_id = (SELECT k.id FROM loracomp.task AS k WHERE k.name = draw_unembedded.task)
                )
                AND (SELECT v.example_id FROM loracomp.example_embedding AS v WHERE v.example_id = e.id) IS NULL
            ORDER BY e.id LIMIT 16 * draw_unembedded.max_examples
            FOR SHARE OF e SKIP LOCKED
        );
        RAISE EXCEPTION USING ERRCODE = 'LC001'; -- which ends the locks
    EXCEPTION WHEN SQLSTATE 'LC001' THEN NULL;
    END;
    RETURN QUERY
    SELECT e.id, e.prompt, e.choices, loracomp.content_hash(e.prompt, NULL, e.choices)
    FROM loracomp.example AS e
    WHERE e.id = ANY (ARRAY(SELECT f.id FROM unnest(free) AS f (id) ORDER BY random() LIMIT draw_unembedded.max_examples))
    ORDER BY e.id;
END
$$;
COMMENT ON FUNCTION loracomp.draw_unembedded IS
'Some train examples without an embedding, of one task or of all tasks (null), by id, each with the hash of prompt and choices for '
'add_embeddings. '
'Raises if the database has another encoder (null: any).';

-- Reads only.
CREATE FUNCTION loracomp.count_unembedded(task text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
    SELECT count(*) FROM loracomp.example AS e
    WHERE e.split = 'train' AND e.prompt IS NOT NULL
        AND (
            count_unembedded.task IS NULL
            OR e.task_id = (SELECT t.id FROM loracomp.task AS t WHERE t.name = count_unembedded.task)
        )
        AND NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.example_id = e.id);
$$;
COMMENT ON FUNCTION loracomp.count_unembedded IS
'How many train examples have a text and no embedding, of one task or of all tasks (null).';

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

-- Stores embeddings of examples that have none, and returns how many. If two imports bring the same examples, the second waits for the first. It
-- skips examples that were deleted meanwhile. If text_hashes are given, it also skips examples whose prompt or choices have changed, or that
-- somebody is just changing.
CREATE FUNCTION loracomp.add_embeddings(
    example_ids bigint[], embeddings public.vector[], encoder text DEFAULT NULL, input_version smallint DEFAULT NULL,
    text_hashes bytea[] DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    wrong record;
    unchanged bigint[];
    added bigint;
BEGIN
    IF cardinality(add_embeddings.example_ids) <> cardinality(add_embeddings.embeddings) THEN
        RAISE EXCEPTION 'there must be as many embeddings as example_ids' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT g.* INTO wrong
    FROM (
        SELECT u.example_id, public.vector_norm(u.embedding) AS norm
        FROM unnest(add_embeddings.example_ids, add_embeddings.embeddings) AS u (example_id, embedding)
    ) AS g
    WHERE NOT g.norm BETWEEN 0.99 AND 1.01
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'embeddings must have length 1, and that of example % has length %', wrong.example_id, wrong.norm
            USING ERRCODE = 'invalid_parameter_value', HINT = 'divide each by its Euclidean norm';
    END IF;
    PERFORM loracomp.lock_encoder(add_embeddings.encoder, add_embeddings.input_version);
    IF add_embeddings.text_hashes IS NOT NULL THEN
        unchanged := ARRAY(
            SELECT e.id FROM unnest(add_embeddings.example_ids, add_embeddings.text_hashes) AS g (example_id, text_hash)
            JOIN loracomp.example AS e ON e.id = g.example_id
            WHERE loracomp.content_hash(e.prompt, NULL, e.choices) = g.text_hash
            ORDER BY e.id
            FOR SHARE OF e SKIP LOCKED
        );
    END IF;
    INSERT INTO loracomp.example_embedding (example_id, task_id, embedding)
    SELECT e.id, e.task_id, g.embedding
    FROM unnest(add_embeddings.example_ids, add_embeddings.embeddings) AS g (example_id, embedding)
    JOIN loracomp.example AS e ON e.id = g.example_id
    WHERE e.id = ANY (unchanged) OR unchanged IS NULL
    ORDER BY e.id
    FOR KEY SHARE OF e
    ON CONFLICT (example_id) DO NOTHING;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added;
END
$$;
COMMENT ON FUNCTION loracomp.add_embeddings IS
'Stores one unit vector for each example, and returns how many were stored; an example that already has one keeps it, and one whose '
'prompt and choices no longer have the given hash gets none. Raises if the database has another encoder (null: any).';

-- Routing waits for whoever waits for this lock. While somebody reads the table, as a backup does, the lock is therefore tried for a tenth
-- of a second at a time, with pauses in which routing goes on.
CREATE FUNCTION loracomp.lock_embeddings() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = '100ms'
AS $$
BEGIN
    FOR attempt IN 1 .. 100 LOOP
        BEGIN
            LOCK TABLE loracomp.example_embedding IN ACCESS EXCLUSIVE MODE;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(0.3);
        END;
    END LOOP;
    RAISE EXCEPTION 'example_embedding is in use' USING ERRCODE = 'lock_not_available',
        HINT = 'try again when no open transaction reads it; pg_locks shows which do';
END
$$;
COMMENT ON FUNCTION loracomp.lock_embeddings IS
'Locks example_embedding until the transaction ends; raises if others have used it for 40 seconds.';

-- Drops the index that routing searches if so many embeddings will be added that building it again is faster; returns whether it did.
-- build_embedding_index must follow in the same transaction; until it ends, routing waits.
CREATE FUNCTION loracomp.drop_embedding_index(incoming bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    -- Measured with 11,000 vectors of 384 numbers: inserting a row into the index takes 3.4 ms, building the index takes 0.35 ms for each
    -- row.
    IF incoming::numeric * 9 <= (SELECT count(*) FROM loracomp.example_embedding) THEN
        RETURN false;
    END IF;
    -- The encoder's row first, as set_encoder does, so that the two wait for each other and do not deadlock.
    PERFORM FROM loracomp.encoder FOR KEY SHARE;
    PERFORM loracomp.lock_embeddings();
    DROP INDEX IF EXISTS loracomp.example_embedding_hnsw;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.drop_embedding_index IS
'Call it before loading many embeddings: drops their index if building it afterwards is faster; returns whether it did.';

-- Sorts the rows of example_embedding by their tasks, and builds the HNSW index that routing searches. pgvector writes the index in
-- the order of the table, so that a search reads neighbouring memory, and an exact scan of a few tasks reads few pages.
-- Embeddings that are added later come last. Until the transaction ends, routing waits.
CREATE FUNCTION loracomp.build_embedding_index() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    -- The encoder's row first, as set_encoder does, so that the two wait for each other and do not deadlock.
    PERFORM FROM loracomp.encoder FOR KEY SHARE;
    PERFORM loracomp.lock_embeddings();
    DROP INDEX IF EXISTS loracomp.example_embedding_hnsw;
    CLUSTER loracomp.example_embedding USING example_embedding_task;
    CREATE INDEX example_embedding_hnsw ON loracomp.example_embedding
    USING hnsw (embedding public.halfvec_cosine_ops) WITH (ef_construction = 400);
END
$$;
COMMENT ON FUNCTION loracomp.build_embedding_index IS
'Builds the index that routing searches, after drop_embedding_index or to rebuild it, and first sorts the embeddings '
'by their tasks, so that similar examples are stored side by side. Routing and whoever adds embeddings wait until the transaction ends.';

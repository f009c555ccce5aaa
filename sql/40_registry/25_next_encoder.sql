-- A change of the encoder. Until it ends, the present encoder and its embeddings answer jobs and take imports.
-- set_encoder of 20_encoder.sql begins it: it names the next encoder, and makes next_embedding beside example_embedding. Then any
-- number of processes call take_unembedded and add_embeddings of 40_examples.sql, until every example is in next_embedding.
--   examples_without_text       which examples the change leaves out
--   lock_next_index             before next_embedding's index is built
--     embedding_table           the table for an encoder's vectors; its encoder stays what it is until the transaction ends
--   take_over                   in the transaction that gives next_embedding the name of example_embedding
--   show_next_encoder           how far the change is
--   forget_embeddings           trigger forget_embeddings of loracomp.example

-- Locks the encoder's row until the transaction ends, so that no change of the encoder is begun, ended or given up meanwhile.
-- Raises if the encoder is neither the present nor the next one. Null stands for the present one.
CREATE FUNCTION loracomp.embedding_table(encoder text, input_version smallint) RETURNS regclass
LANGUAGE plpgsql
AS $$
BEGIN
    IF encoder IS NULL THEN
        RETURN 'loracomp.example_embedding'::regclass;
    END IF;
    PERFORM FROM loracomp.encoder AS e
    WHERE (e.fingerprint, e.input_version) = (embedding_table.encoder, embedding_table.input_version)
    FOR KEY SHARE;
    IF FOUND THEN
        RETURN 'loracomp.example_embedding'::regclass;
    END IF;
    PERFORM FROM loracomp.next_encoder AS e
    WHERE (e.fingerprint, e.input_version) = (embedding_table.encoder, embedding_table.input_version)
    FOR KEY SHARE;
    IF FOUND THEN
        RETURN 'loracomp.next_embedding'::regclass;
    END IF;
    RAISE EXCEPTION 'the encoder of these vectors is neither the database''s encoder nor its next one'
        USING HINT = 'it was given up by loracomp encoder cancel, or another one was set; loracomp encoder show says which';
END
$$;
COMMENT ON FUNCTION loracomp.embedding_table IS
'The table for vectors of this encoder: example_embedding if it is the present one (or null), next_embedding if it is the next one.';

-- Reads only.
CREATE FUNCTION loracomp.examples_without_text() RETURNS TABLE (task text, examples bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT t.name, count(*)
FROM loracomp.example_embedding AS v
INNER JOIN loracomp.example AS e ON v.example_id = e.id
INNER JOIN loracomp.task AS t ON e.task_id = t.id
WHERE e.prompt IS NULL
GROUP BY t.name
ORDER BY t.name;
END;
COMMENT ON FUNCTION loracomp.examples_without_text IS
'For each task, the examples with an embedding and without a text; a change of the encoder leaves them out.';

-- Locks the next encoder until the transaction ends, so that only one process builds the index. Does not wait for a process that
-- has locked it, as CREATE INDEX CONCURRENTLY would wait for the statement that waits.
CREATE FUNCTION loracomp.lock_next_index(encoder text, input_version smallint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF loracomp.embedding_table(encoder, input_version) = 'loracomp.example_embedding'::regclass THEN
        RETURN 'built';
    END IF;
    PERFORM FROM loracomp.next_encoder FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 'locked';
    END IF;
    PERFORM set_config('idle_in_transaction_session_timeout', '0', true);
    RETURN CASE
        WHEN EXISTS (
            SELECT FROM pg_catalog.pg_index AS i
            WHERE i.indexrelid = to_regclass('loracomp.next_embedding_hnsw') AND i.indisvalid
        ) THEN 'built'
        ELSE 'missing'
    END;
END
$$;
COMMENT ON FUNCTION loracomp.lock_next_index IS
'Whether the index of next_embedding is built, missing (the caller may build it in this transaction''s time) or locked by another '
'process that may be building it.';

-- Makes the next encoder the present one. The transaction must have locked the tables, and must exchange them too.
CREATE FUNCTION loracomp.take_over() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    DELETE FROM loracomp.encoder;
    INSERT INTO loracomp.encoder SELECT n.* FROM loracomp.next_encoder AS n;
    DELETE FROM loracomp.next_encoder;
END
$$;
COMMENT ON FUNCTION loracomp.take_over IS 'Makes the next encoder the present one, in the transaction that exchanges the tables.';

-- Reads the next encoder; no row if the encoder is not being changed.
CREATE FUNCTION loracomp.show_next_encoder() RETURNS TABLE (
    name text,
    source text,
    revision text,
    fingerprint text,
    dimensions integer,
    input_version smallint,
    created_at timestamptz,
    embedded bigint,
    missing bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM loracomp.next_encoder) THEN
        RETURN QUERY
        SELECT
            n.name, n.source, n.revision, n.fingerprint, n.dimensions, n.input_version, n.created_at,
            (SELECT count(*) FROM loracomp.next_embedding),
            (
                SELECT count(*) FROM loracomp.example AS e
                WHERE e.split = 'train' AND e.prompt IS NOT NULL
                    AND NOT EXISTS (SELECT FROM loracomp.next_embedding AS v WHERE v.example_id = e.id)
            )
        FROM loracomp.next_encoder AS n;
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.show_next_encoder IS
'The encoder to which the database is being changed, and how many examples it has embedded and has yet to embed; or no row.';

-- Deletes the embeddings of examples whose wording changed, so that they are made again. An example that gets its first text
-- keeps the embedding that a library brought.
CREATE FUNCTION loracomp.forget_embeddings() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    reworded CONSTANT bigint[] := ARRAY(
        SELECT o.id FROM formerly AS o JOIN changed AS c ON c.id = o.id
        WHERE o.prompt IS NOT NULL AND (o.prompt, o.choices) IS DISTINCT FROM (c.prompt, c.choices)
    );
BEGIN
    DELETE FROM loracomp.example_embedding AS v WHERE v.example_id = ANY (reworded);
    IF EXISTS (SELECT FROM loracomp.next_encoder) THEN
        DELETE FROM loracomp.next_embedding AS v WHERE v.example_id = ANY (reworded);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.forget_embeddings IS 'Trigger: deletes the embeddings of examples whose prompt or choices changed.';

CREATE TRIGGER forget_embeddings AFTER UPDATE ON loracomp.example REFERENCING OLD TABLE AS formerly NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.forget_embeddings();

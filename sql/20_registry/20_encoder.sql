-- The database's encoder: the model that computes the vectors that routing compares.
--   set_encoder                 sets it; if it changes, deletes all embeddings and stops routing
--   start_routing               starts it again
--     lock_encoder
--   lock_encoder                keeps the encoder from being replaced until the transaction ends
--   show_encoder
--   embedding_dimensions        length of the vectors that are stored
--   examples_without_text       examples that another encoder couldn't embed
--   forget_embeddings           trigger forget_embeddings of loracomp.example
-- loracomp encoder set calls set_encoder, embeds all examples and calls start_routing. In between, jobs wait in the queue: claim_jobs
-- returns none.

-- Sets the encoder and returns whether it is ready. It is ready at once if the database already uses it, because nothing has to be embedded
-- again. Otherwise it is ready when start_routing has been called. If the command is killed in between, running it again continues.
CREATE FUNCTION loracomp.set_encoder(
    name text,
    source text,
    revision text,
    fingerprint text,
    identity text,
    dimensions integer,
    input_version smallint
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    is_ready boolean;
BEGIN
    -- Locks the table and not the row, because processes that embed hold the row's lock one after another (lock_encoder), so that this call
    -- might never get it.
    LOCK TABLE loracomp.encoder IN EXCLUSIVE MODE;
    IF NOT EXISTS (
        SELECT FROM loracomp.encoder AS e
        WHERE (e.identity, e.input_version) = (set_encoder.identity, set_encoder.input_version)
    ) THEN
        PERFORM loracomp.lock_embeddings();
        DELETE FROM loracomp.encoder;
        TRUNCATE loracomp.example_embedding;
        DROP INDEX IF EXISTS loracomp.example_embedding_hnsw;
    END IF;
    INSERT INTO loracomp.encoder AS e
        (name, source, revision, fingerprint, identity, dimensions, input_version, is_ready)
    VALUES (
        set_encoder.name, set_encoder.source, set_encoder.revision, set_encoder.fingerprint, set_encoder.identity,
        set_encoder.dimensions, set_encoder.input_version, FALSE
    )
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, source = excluded.source, revision = excluded.revision
    RETURNING e.is_ready INTO is_ready;
    RETURN is_ready;
END
$$;
COMMENT ON FUNCTION loracomp.set_encoder IS
'Sets the encoder; returns whether it is ready. If the encoder changes, all embeddings are deleted, and no job is claimed '
'until start_routing.';

-- Locks the encoder's row until the transaction ends, so that set_encoder waits. If encoder is null, any encoder is accepted.
CREATE FUNCTION loracomp.lock_encoder(encoder text, input_version smallint) RETURNS void
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM FROM loracomp.encoder AS e
    WHERE lock_encoder.encoder IS NULL
        OR (e.identity, e.input_version) = (lock_encoder.encoder, lock_encoder.input_version)
    FOR KEY SHARE;
    IF NOT FOUND AND lock_encoder.encoder IS NOT NULL THEN
        RAISE EXCEPTION 'the encoder of these vectors is not the database''s encoder'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'loracomp encoder show shows the database''s encoder';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.lock_encoder IS
'Keeps the encoder from being replaced until the transaction ends. Raises an error if the database has another encoder than the given '
'one; null accepts any.';

CREATE FUNCTION loracomp.start_routing(encoder text, input_version smallint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM loracomp.lock_encoder(start_routing.encoder, start_routing.input_version);
    UPDATE loracomp.encoder SET is_ready = TRUE WHERE NOT is_ready;
END
$$;
COMMENT ON FUNCTION loracomp.start_routing IS
'Call it when the examples are embedded by the encoder that set_encoder set: from then on jobs are claimed again.';

-- Reads the encoder; no row if none is set.
CREATE FUNCTION loracomp.show_encoder() RETURNS SETOF loracomp.encoder
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT * FROM loracomp.encoder;
END;
COMMENT ON FUNCTION loracomp.show_encoder IS 'The database''s encoder; no row if none is set.';

-- Reads from the catalogue the length of the vectors in example_embedding.
CREATE FUNCTION loracomp.embedding_dimensions() RETURNS integer
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT a.atttypmod
FROM pg_catalog.pg_attribute AS a
WHERE a.attrelid = 'loracomp.example_embedding'::regclass AND a.attname = 'embedding';
END;
COMMENT ON FUNCTION loracomp.embedding_dimensions IS 'Length of the vectors in example_embedding.';

-- Reads only.
CREATE FUNCTION loracomp.examples_without_text() RETURNS TABLE (task text, examples bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT t.name, count(*)
FROM loracomp.example AS e
INNER JOIN loracomp.task AS t ON e.task_id = t.id
WHERE e.split = 'train' AND e.prompt IS NULL
GROUP BY t.name
ORDER BY t.name;
END;
COMMENT ON FUNCTION loracomp.examples_without_text IS
'For each task, how many train examples have no text; another encoder can''t embed them.';

-- Deletes the embeddings of examples whose wording has changed, so that they are embedded again. If a library shipped an example without
-- text and it now gets its text, the library's embedding stays.
CREATE FUNCTION loracomp.forget_embeddings() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    DELETE FROM loracomp.example_embedding AS v
    WHERE v.example_id = ANY (ARRAY(
        SELECT o.id FROM formerly AS o JOIN changed AS c ON c.id = o.id
        WHERE o.prompt IS NOT NULL AND (o.prompt, o.choices) IS DISTINCT FROM (c.prompt, c.choices)
    ));
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.forget_embeddings IS 'Trigger: deletes the embeddings of examples whose prompt or choices changed.';

CREATE TRIGGER forget_embeddings AFTER UPDATE ON loracomp.example REFERENCING OLD TABLE AS formerly NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.forget_embeddings();

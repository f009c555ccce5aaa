-- The database's encoder: the model that makes the vectors which routing compares.
--   set_encoder                 at once, if no embedding would be lost; else it begins a change
--     embedding_dimensions      length of the vectors that are stored
--     make_next_embedding       the table for the new encoder's vectors
--     cancel_encoder            gives up a change
--   show_encoder
--   examples_without_text       which examples a change leaves out
--   embedding_table             the table for an encoder's vectors; its encoder stays what it is until the transaction ends
--   forget_embeddings           trigger forget_embeddings of loracomp.example
-- Until a change ends, the present encoder and its embeddings answer jobs and take imports. Meanwhile any number of processes call
-- take_unembedded and add_embeddings of 40_examples.sql, until every example with a text is in next_embedding. Then loracomp encoder
-- set gives this table the name of example_embedding, and makes the next encoder the present one, in one transaction.

-- Sets the encoder, if it is the present one already or there are no embeddings that it would have to make again. Otherwise it
-- becomes the next encoder, with an empty table next_embedding.
CREATE FUNCTION loracomp.set_encoder(
    name text, source text, revision text, fingerprint text, dimensions integer, input_version smallint
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    present loracomp.encoder;
    upcoming loracomp.next_encoder;
    wanted CONSTANT loracomp.encoder := ROW(1, name, source, revision, fingerprint, dimensions, input_version, now());
BEGIN
    -- One call at a time; and nobody may add embeddings of the present encoder meanwhile.
    LOCK TABLE loracomp.next_encoder IN SHARE ROW EXCLUSIVE MODE;
    SELECT e.* INTO present FROM loracomp.encoder AS e FOR UPDATE;
    LOCK TABLE loracomp.example_embedding IN SHARE ROW EXCLUSIVE MODE;
    SELECT e.* INTO upcoming FROM loracomp.next_encoder AS e;
    IF (present.fingerprint, present.input_version) = (wanted.fingerprint, wanted.input_version)
        OR (
            upcoming IS NULL AND wanted.dimensions = loracomp.embedding_dimensions()
            AND NOT EXISTS (SELECT FROM loracomp.example_embedding)
        )
    THEN
        PERFORM loracomp.cancel_encoder();
        INSERT INTO loracomp.encoder AS e SELECT wanted.*
        ON CONFLICT (id) DO UPDATE SET
            name = excluded.name, source = excluded.source, revision = excluded.revision,
            fingerprint = excluded.fingerprint, dimensions = excluded.dimensions, input_version = excluded.input_version;
        RETURN 'present';
    END IF;
    IF upcoming IS NULL THEN
        INSERT INTO loracomp.next_encoder SELECT wanted.*;
        PERFORM loracomp.make_next_embedding(wanted.dimensions);
    ELSIF (upcoming.fingerprint, upcoming.input_version) <> (wanted.fingerprint, wanted.input_version) THEN
        RAISE EXCEPTION 'the database is being changed to encoder % (fingerprint %, input version %)',
            upcoming.name, left(upcoming.fingerprint, 12), upcoming.input_version
            USING HINT = format(
                'loracomp encoder set %s ends that change, loracomp encoder cancel gives it up', upcoming.source
            );
    END IF;
    RETURN 'next';
END
$$;
COMMENT ON FUNCTION loracomp.set_encoder IS
'Sets the encoder and returns ''present'' if no embedding has to be made again; otherwise it returns ''next'', and loracomp encoder '
'set ends the change.';

-- Reads from the catalogue the length of the vectors in example_embedding.
CREATE FUNCTION loracomp.embedding_dimensions() RETURNS integer
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT a.atttypmod
FROM pg_catalog.pg_attribute AS a
WHERE a.attrelid = 'loracomp.example_embedding'::regclass AND a.attname = 'embedding';
END;
COMMENT ON FUNCTION loracomp.embedding_dimensions IS 'Length of the vectors in example_embedding.';

-- Creates next_embedding, which is like example_embedding but for the length of its vectors. Its index grows with it, so that the
-- change ends at once when all is embedded: embedding an example takes longer than adding it to the index.
CREATE FUNCTION loracomp.make_next_embedding(dimensions integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    CREATE TABLE loracomp.next_embedding (LIKE loracomp.example_embedding INCLUDING COMMENTS);
    -- PLAIN after the change of type, which resets the storage: the default stores vectors outside their rows.
    EXECUTE format(
        'ALTER TABLE loracomp.next_embedding ALTER COLUMN embedding TYPE public.halfvec(%s), '
        'ALTER COLUMN embedding SET STORAGE PLAIN', make_next_embedding.dimensions
    );
    ALTER TABLE loracomp.next_embedding
        ADD CONSTRAINT an_example_has_one_next_embedding PRIMARY KEY (example_id),
        ADD CONSTRAINT embedding_belongs_to_an_example_of_its_task FOREIGN KEY (example_id, task_id)
        REFERENCES loracomp.example (id, task_id) ON DELETE CASCADE;
    CREATE INDEX next_embedding_task ON loracomp.next_embedding (task_id);
    CREATE INDEX next_embedding_hnsw ON loracomp.next_embedding
    USING hnsw (embedding public.halfvec_cosine_ops) WITH (ef_construction = 400);
    EXECUTE format(
        'COMMENT ON TABLE loracomp.next_embedding IS %L',
        obj_description('loracomp.example_embedding'::regclass, 'pg_class')
    );
    GRANT SELECT ON TABLE loracomp.next_embedding TO loracomp_admin;
END
$$;
COMMENT ON FUNCTION loracomp.make_next_embedding IS 'Creates the table next_embedding for vectors of this length.';

-- Gives up a change of the encoder, with all embeddings made for it. Returns the next encoder's name; null if there was none.
CREATE FUNCTION loracomp.cancel_encoder() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    given_up text;
BEGIN
    -- Not only the row's lock: processes that embed hold it in turns, and whoever waits for it might never get it.
    LOCK TABLE loracomp.next_encoder IN EXCLUSIVE MODE;
    DELETE FROM loracomp.next_encoder AS e RETURNING e.name INTO given_up;
    DROP TABLE IF EXISTS loracomp.next_embedding;
    RETURN given_up;
END
$$;
COMMENT ON FUNCTION loracomp.cancel_encoder IS
'Gives up a change of the encoder, with all embeddings made for it; returns the name of the next encoder, null if there was none.';

-- Reads the encoder; no row if none is set.
CREATE FUNCTION loracomp.show_encoder() RETURNS SETOF loracomp.encoder
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT * FROM loracomp.encoder;
END;
COMMENT ON FUNCTION loracomp.show_encoder IS 'The database''s encoder; no row if none is set.';

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

-- Locks the encoder's row until the transaction ends, so that no change of the encoder is begun, ended or given up meanwhile.
-- Raises if the encoder is neither the present nor the next one. Null stands for the present one. The next encoder is looked for
-- first: if it becomes the present one meanwhile, it is found as that.
CREATE FUNCTION loracomp.embedding_table(encoder text, input_version smallint) RETURNS regclass
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM FROM loracomp.next_encoder AS e
    WHERE (e.fingerprint, e.input_version) = (embedding_table.encoder, embedding_table.input_version)
    FOR KEY SHARE;
    IF FOUND THEN
        RETURN 'loracomp.next_embedding'::regclass;
    END IF;
    PERFORM FROM loracomp.encoder AS e
    WHERE (e.fingerprint, e.input_version) = (embedding_table.encoder, embedding_table.input_version)
    FOR KEY SHARE;
    IF NOT FOUND AND encoder IS NOT NULL THEN
        RAISE EXCEPTION 'the encoder of these vectors is neither the database''s encoder nor its next one'
            USING HINT = 'it was given up by loracomp encoder cancel, or another one was set; loracomp encoder show says which';
    END IF;
    RETURN 'loracomp.example_embedding'::regclass;
END
$$;
COMMENT ON FUNCTION loracomp.embedding_table IS
'The table for vectors of this encoder: example_embedding if it is the present one (or null), next_embedding if it is the next one.';

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

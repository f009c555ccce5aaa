-- The database's encoder: the model that makes the vectors which routing compares.
--   set_encoder                 at once, if no embedding would be lost; else begins a change, which 25_next_encoder.sql describes
--     embedding_dimensions      length of the vectors that are stored
--     make_next_embedding       the table for the new encoder's vectors
--     cancel_encoder            gives up a change
--   show_encoder

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
BEGIN
    -- One call at a time; and nobody may add embeddings of the present encoder meanwhile.
    LOCK TABLE loracomp.next_encoder IN SHARE ROW EXCLUSIVE MODE;
    SELECT e.* INTO present FROM loracomp.encoder AS e FOR UPDATE;
    LOCK TABLE loracomp.example_embedding IN SHARE ROW EXCLUSIVE MODE;
    SELECT e.* INTO upcoming FROM loracomp.next_encoder AS e;
    IF (present.fingerprint, present.input_version) = (set_encoder.fingerprint, set_encoder.input_version)
        OR (
            upcoming IS NULL AND set_encoder.dimensions = loracomp.embedding_dimensions()
            AND NOT EXISTS (SELECT FROM loracomp.example_embedding)
        )
    THEN
        PERFORM loracomp.cancel_encoder();
        IF (present.fingerprint, present.input_version) IS DISTINCT FROM (set_encoder.fingerprint, set_encoder.input_version)
            AND EXISTS (SELECT FROM loracomp.principal_axis)
        THEN
            PERFORM loracomp.build_embedding_index(); -- the axes are the old encoder's
        END IF;
        INSERT INTO loracomp.encoder AS e (name, source, revision, fingerprint, dimensions, input_version)
        VALUES (
            set_encoder.name, set_encoder.source, set_encoder.revision,
            set_encoder.fingerprint, set_encoder.dimensions, set_encoder.input_version
        )
        ON CONFLICT (id) DO UPDATE SET
            name = excluded.name, source = excluded.source, revision = excluded.revision,
            fingerprint = excluded.fingerprint, dimensions = excluded.dimensions, input_version = excluded.input_version;
        RETURN 'present';
    END IF;
    IF upcoming IS NULL THEN
        INSERT INTO loracomp.next_encoder (name, source, revision, fingerprint, dimensions, input_version)
        VALUES (
            set_encoder.name, set_encoder.source, set_encoder.revision,
            set_encoder.fingerprint, set_encoder.dimensions, set_encoder.input_version
        );
        PERFORM loracomp.make_next_embedding(set_encoder.dimensions);
    ELSIF (upcoming.fingerprint, upcoming.input_version) <> (set_encoder.fingerprint, set_encoder.input_version) THEN
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

-- Creates next_embedding, which is like example_embedding but for the length of its vectors, and has no HNSW index yet.
-- The command loracomp encoder set gives it the names of example_embedding in the end.
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
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp SET lock_timeout = '10s'
AS $$
DECLARE
    given_up text;
BEGIN
    -- Not only the row's lock: processes that embed hold it in turns, and whoever waits for it might never get it.
    LOCK TABLE loracomp.next_encoder IN EXCLUSIVE MODE;
    DELETE FROM loracomp.next_encoder AS e RETURNING e.name INTO given_up;
    DROP TABLE IF EXISTS loracomp.next_embedding;
    RETURN given_up;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the next encoder is in use'
        USING ERRCODE = 'lock_not_available', HINT = 'stop the loracomp encoder set that builds its index';
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

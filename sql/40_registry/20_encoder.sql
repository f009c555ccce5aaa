-- The database's encoder: the model that makes the vectors which routing compares.
--   set_encoder
--     embedding_dimensions      length of the vectors that are stored
--     clear_embeddings          if the encoder changes, because vectors of two encoders can't be compared
--   show_encoder

-- Sets the database's encoder. If the encoder or its input format changes, all embeddings are removed.
-- Returns for each task how many embeddings were removed, and how many of these can't be made again, for lack of a text.
CREATE FUNCTION loracomp.set_encoder(
    name text, source text, revision text, fingerprint text, dimensions integer, input_version smallint
) RETURNS TABLE (task text, removed bigint, without_text bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    former loracomp.encoder;
BEGIN
    IF dimensions <> loracomp.embedding_dimensions() THEN
        RAISE EXCEPTION 'encoder % gives vectors of % dimensions; this database holds vectors of %',
            set_encoder.name, set_encoder.dimensions, loracomp.embedding_dimensions()
            USING HINT = 'the table''s owner changes them with loracomp encoder set';
    END IF;
    -- Locked until the end, so that no import adds a vector of the former encoder.
    LOCK TABLE loracomp.example_embedding IN ACCESS EXCLUSIVE MODE;
    SELECT * INTO former FROM loracomp.encoder FOR UPDATE;
    INSERT INTO loracomp.encoder AS e (name, source, revision, fingerprint, dimensions, input_version)
    VALUES (
        set_encoder.name, set_encoder.source, set_encoder.revision,
        set_encoder.fingerprint, set_encoder.dimensions, set_encoder.input_version
    )
    ON CONFLICT (id) DO UPDATE SET
        name = excluded.name, source = excluded.source, revision = excluded.revision,
        fingerprint = excluded.fingerprint, dimensions = excluded.dimensions, input_version = excluded.input_version;
    IF (former.fingerprint, former.input_version) = (set_encoder.fingerprint, set_encoder.input_version) THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM loracomp.clear_embeddings();
END
$$;
COMMENT ON FUNCTION loracomp.set_encoder IS
'Sets the encoder. If it changes, all embeddings are removed; returns how many, and how many of them had no text.';

-- Reads from the catalogue the length of the vectors in example_embedding.
CREATE FUNCTION loracomp.embedding_dimensions() RETURNS integer
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT a.atttypmod
FROM pg_catalog.pg_attribute AS a
WHERE a.attrelid = 'loracomp.example_embedding'::regclass AND a.attname = 'embedding';
END;
COMMENT ON FUNCTION loracomp.embedding_dimensions IS 'Length of the vectors in example_embedding.';

-- Removes every embedding; nothing is retrieved until they are made again.
-- Returns for each task how many were removed, and how many of these can't be made again, for lack of a text.
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
'Removes all embeddings; returns for each task how many, and how many can''t be made again, for lack of a text.';

-- Reads the encoder; no row if none is set.
CREATE FUNCTION loracomp.show_encoder() RETURNS SETOF loracomp.encoder
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT * FROM loracomp.encoder;
END;
COMMENT ON FUNCTION loracomp.show_encoder IS 'The database''s encoder; no row if none is set.';

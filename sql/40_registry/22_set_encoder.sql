-- drop: DROP FUNCTION IF EXISTS loracomp.set_encoder(text, text, text, text, integer, smallint)
-- Makes this the database's encoder. If it was another one, or was shown another input, all embeddings are removed.
-- Returns, for each task, the embeddings removed and those of them that can't be made again, for want of a text.
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
    -- Held against imports until the end, so that no vector of the former encoder slips in.
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
'Sets the encoder. Another one than before removes all embeddings; says how many, and how many had no text.';

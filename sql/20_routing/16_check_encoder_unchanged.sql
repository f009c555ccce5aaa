-- drop: DROP FUNCTION IF EXISTS loracomp.check_encoder_unchanged(text, smallint)
-- Changes nothing; raises where vectors come from another encoder, or another format of its input, than the embeddings here.
CREATE FUNCTION loracomp.check_encoder_unchanged(fingerprint text, input_version smallint) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
BEGIN
    IF fingerprint IS NOT NULL AND NOT EXISTS (
        SELECT FROM loracomp.encoder AS e
        WHERE (e.fingerprint, e.input_version)
            = (check_encoder_unchanged.fingerprint, check_encoder_unchanged.input_version)
    ) THEN
        RAISE EXCEPTION 'the database''s encoder is no longer the one that these vectors come from'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'start the worker again';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_encoder_unchanged IS
'True, or an error where the database has another encoder, or shows it another input, than the one that made the vectors.';

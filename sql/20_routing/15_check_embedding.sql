-- drop: DROP FUNCTION IF EXISTS loracomp.check_embedding(vector)
-- Changes nothing; raises where a vector cannot have come from the database's encoder.
CREATE FUNCTION loracomp.check_embedding(embedding vector) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    -- A cast needs no search_path, wherever pgvector is installed.
    dimensions CONSTANT integer := cardinality(embedding::real[]);
BEGIN
    IF embedding IS NULL THEN
        RAISE EXCEPTION 'embedding must not be null'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'embed the text with the database''s encoder';
    END IF;
    IF dimensions <> loracomp.embedding_dimensions() THEN
        RAISE EXCEPTION 'embedding has % dimensions; this database holds vectors of %',
            dimensions, loracomp.embedding_dimensions()
            USING ERRCODE = 'invalid_parameter_value', HINT = 'embed the text with the database''s encoder';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_embedding IS
'True, or an error where the vector cannot have come from the database''s encoder.';

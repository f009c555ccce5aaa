-- drop: DROP FUNCTION IF EXISTS loracomp.check_routing_settings(double precision, text, text, double precision, integer, text, integer, double precision)
-- Changes nothing; raises for the first setting that a policy could not have either.
CREATE FUNCTION loracomp.check_routing_settings(
    temperature double precision,
    aggregation text,
    nucleus text,
    top_p double precision,
    max_adapters integer,
    weighting text,
    k integer DEFAULT 1,
    min_similarity double precision DEFAULT 0
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    -- BETWEEN, for NaN passes a bare comparison; IS NOT TRUE, for null passes a CASE.
    wrong CONSTANT text := CASE
        WHEN (k BETWEEN 1 AND 200) IS NOT TRUE THEN format('k must be between 1 and 200, not %s', k)
        WHEN (temperature BETWEEN 0.0001 AND 100) IS NOT TRUE
            THEN format('temperature must be between 0.0001 and 100, not %s', temperature)
        WHEN (aggregation IN ('softmax_sum', 'mean', 'max', 'vote')) IS NOT TRUE
            THEN format('aggregation must be softmax_sum, mean, max or vote, not %s', aggregation)
        WHEN (nucleus IN ('tasks', 'examples')) IS NOT TRUE
            THEN format('nucleus must be tasks or examples, not %s', nucleus)
        WHEN (top_p BETWEEN 0.0001 AND 1) IS NOT TRUE
            THEN format('top_p must be between 0.0001 and 1, not %s', top_p)
        WHEN (max_adapters BETWEEN 1 AND 64) IS NOT TRUE
            THEN format('max_adapters must be between 1 and 64, not %s', max_adapters)
        WHEN (weighting IN ('similarity', 'uniform')) IS NOT TRUE
            THEN format('weighting must be similarity or uniform, not %s', weighting)
        WHEN (min_similarity BETWEEN -1 AND 1) IS NOT TRUE
            THEN format('min_similarity must be between -1 and 1, not %s', min_similarity)
    END;
BEGIN
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = wrong, ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_routing_settings IS
'True, or an error that names the setting which is out of the range that loracomp.policy allows.';

-- drop: DROP FUNCTION IF EXISTS loracomp.check_similarities(integer[], double precision[])
-- Changes nothing; raises where there is nothing to compute weights from.
CREATE FUNCTION loracomp.check_similarities(tasks integer[], similarities double precision[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    IF cardinality(tasks) <> cardinality(similarities) THEN
        RAISE EXCEPTION 'tasks and similarities must have the same length, not % and %',
            cardinality(tasks), cardinality(similarities) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (-2 < ALL (similarities) AND 2 > ALL (similarities)) IS NOT TRUE OR array_position(tasks, NULL) > 0 THEN
        RAISE EXCEPTION 'tasks must not hold null, and similarities must be cosines: neither null nor NaN'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_similarities IS
'True, or an error where the arrays are not one task and one cosine similarity for each retrieved example.';

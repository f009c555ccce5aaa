-- drop: DROP FUNCTION IF EXISTS loracomp.check_range(text, double precision, double precision, double precision)
-- Changes nothing. NaN is beyond every range; null is left to whoever asks.
CREATE FUNCTION loracomp.check_range(
    argument text, given double precision, low double precision, high double precision
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    IF given NOT BETWEEN low AND high THEN
        RAISE EXCEPTION '% must be between % and %, and is %', argument, low, high, given
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_range IS 'True; raises, naming the argument, where its value is outside of a range.';

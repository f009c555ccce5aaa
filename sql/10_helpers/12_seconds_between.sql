-- drop: DROP FUNCTION IF EXISTS loracomp.seconds_between(timestamp with time zone, timestamp with time zone)
-- Computes only.
CREATE FUNCTION loracomp.seconds_between(earlier timestamp with time zone, later timestamp with time zone)
RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT round(extract(EPOCH FROM later - earlier), 3)::double precision;
END;
COMMENT ON FUNCTION loracomp.seconds_between IS 'Seconds from one time to another, to the millisecond.';

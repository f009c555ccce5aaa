-- drop: DROP FUNCTION IF EXISTS loracomp.compute_seconds(jsonb, integer)
-- Computes only. What waited for the device or the database is no work on the job.
CREATE FUNCTION loracomp.compute_seconds(timings jsonb, batch_size integer) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT (
    (timings ->> 'encode')::double precision + (timings ->> 'route')::double precision
    + coalesce((timings ->> 'load')::double precision, 0)
    + coalesce((timings ->> 'compose')::double precision, 0)
    + (timings ->> 'predict')::double precision
) / 1000 / batch_size;
END;
COMMENT ON FUNCTION loracomp.compute_seconds IS
'A job''s part of the seconds that its batch took from encoding to prediction, from the timings of its trace.';

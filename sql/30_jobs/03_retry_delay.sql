-- drop: DROP FUNCTION IF EXISTS loracomp.retry_delay(integer)
-- Reads only: doubles with each attempt up to ten minutes, give or take a half so that retries don't come together.
CREATE FUNCTION loracomp.retry_delay(attempts integer) RETURNS interval
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT make_interval(secs => least(2.0 ^ attempts, 600) * (0.5 + random()));
END;
COMMENT ON FUNCTION loracomp.retry_delay IS 'How long a job waits before it is tried again after this many attempts.';

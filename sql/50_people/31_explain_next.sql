-- drop: DROP FUNCTION IF EXISTS loracomp.explain_next(loracomp.job)
-- Reads only. A job that has its answer needs nothing: null.
CREATE FUNCTION loracomp.explain_next(job loracomp.job)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT 'Next: ' || CASE
    WHEN job.status = 'queued' AND h.busy_workers = 0
        THEN format(
            'no worker holds a job of base model %s (due: %s). Is one running? Start it: loracomp worker',
            job.base_model, h.due
        )
    WHEN job.status = 'queued'
        THEN format('wait; due: %s, the oldest for %s s; running: %s.', h.due, h.oldest_due_s, h.running)
    WHEN job.status = 'running' AND job.lease_expires_at < now()
        THEN 'its lease ran out, so its worker died or hangs. The next claim of any worker takes the job back.'
    WHEN job.status = 'running'
        THEN format(
            'wait; unless renewed, its lease ends in %s s.', loracomp.seconds_between(now(), job.lease_expires_at)
        )
    WHEN job.status IN ('failed', 'cancelled')
        THEN format(
            'mend what the error names and submit it again, or as administrator: SELECT loracomp.retry_job(%s)', job.id
        )
END
FROM (VALUES (true)) AS one (here)
LEFT JOIN loracomp.queue_health AS h ON h.base_model = job.base_model AND job.status = 'queued';
END;
COMMENT ON FUNCTION loracomp.explain_next IS 'What to do about a job that has no answer, for explain_job.';

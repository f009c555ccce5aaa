-- drop: DROP VIEW IF EXISTS loracomp.job_attempt
-- Reads only, of jobs that are there, what the audit trail says.
CREATE VIEW loracomp.job_attempt WITH (security_invoker) AS
SELECT
    j.id AS job_id,
    a.attempt,
    a.worker,
    a.started_at,
    a.ended_at,
    loracomp.seconds_between(a.started_at, a.ended_at) AS duration_s,
    CASE
        WHEN a.ended_at IS NULL THEN 'running'
        ELSE replace(a.next_status, 'queued', 'given back')
    END AS outcome,
    a.reason
FROM loracomp.job AS j
CROSS JOIN LATERAL loracomp.attempts_of(j.id) AS a;
COMMENT ON VIEW loracomp.job_attempt IS 'Each time a worker took a job, and how that ended.';
COMMENT ON COLUMN loracomp.job_attempt.job_id IS 'The job.';
COMMENT ON COLUMN loracomp.job_attempt.attempt IS 'Its count of attempts then; an attempt given back is counted again.';
COMMENT ON COLUMN loracomp.job_attempt.worker IS 'Worker that took it.';
COMMENT ON COLUMN loracomp.job_attempt.started_at IS 'When it took it.';
COMMENT ON COLUMN loracomp.job_attempt.ended_at IS 'When that ended; null while it runs.';
COMMENT ON COLUMN loracomp.job_attempt.duration_s IS 'Seconds between the two.';
COMMENT ON COLUMN loracomp.job_attempt.outcome IS
'succeeded, failed, cancelled, running, deleted; or given back: released, to be retried, or its lease ran out.';
COMMENT ON COLUMN loracomp.job_attempt.reason IS 'Error code or the operator''s reason; null after success.';

-- drop: DROP VIEW IF EXISTS loracomp.job_attempt
-- Reads only, from the audit trail: an attempt is a change to running, and it ends with the job's next change.
CREATE VIEW loracomp.job_attempt WITH (security_invoker) AS
SELECT
    s.job_id,
    s.attempt,
    s.worker,
    s.started_at,
    s.ended_at,
    loracomp.seconds_between(s.started_at, s.ended_at) AS duration_s,
    CASE
        WHEN s.ended_at IS NULL THEN 'running'
        WHEN s.next_status = 'queued' THEN 'given back'
        ELSE coalesce(s.next_status, 'deleted')
    END AS outcome,
    s.reason
FROM (
    SELECT
        e.entity_id AS job_id,
        e.attempt,
        e.worker,
        e.at AS started_at,
        e.new_status,
        lead(e.at) OVER w AS ended_at,
        lead(e.new_status) OVER w AS next_status,
        lead(e.reason) OVER w AS reason
    FROM loracomp.audit_event AS e
    WHERE e.entity = 'job'
    WINDOW w AS (PARTITION BY e.entity_id ORDER BY e.id)
) AS s
WHERE s.new_status = 'running';
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

-- The attempts of jobs. An attempt begins when a worker claims the job.
--   job_attempt                 a row for each attempt
--     attempts_of               reads a job's attempts from the audit, if the reader may see the job
--       caller, caller_is_admin

-- Reads only. In the audit an attempt begins with the event that makes the job's status running, and ends with the next event. It
-- returns no rows for a job of another submitter.
CREATE FUNCTION loracomp.attempts_of(job_id bigint)
RETURNS TABLE (
    attempt integer, worker text, started_at timestamptz, ended_at timestamptz, next_status text, reason text
)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = loracomp, pg_temp
AS $$
    SELECT s.attempt, s.worker, s.at, s.ended_at, s.next_status, s.reason
    FROM (
        SELECT
            e.attempt,
            e.worker,
            e.at,
            e.new_status,
            lead(e.at) OVER w AS ended_at,
            lead(e.new_status) OVER w AS next_status,
            lead(e.reason) OVER w AS reason
        FROM loracomp.audit_event AS e
        WHERE e.entity = 'job' AND e.entity_id = attempts_of.job_id
        WINDOW w AS (ORDER BY e.id)
    ) AS s
    WHERE s.new_status = 'running' AND EXISTS (
        SELECT FROM loracomp.job AS j
        WHERE j.id = attempts_of.job_id AND (j.submitted_by = loracomp.caller() OR loracomp.caller_is_admin())
    );
$$;
COMMENT ON FUNCTION loracomp.attempts_of IS 'Attempts of a job from the audit; loracomp.job_attempt reads it.';

-- Reads only, from the audit, for jobs that still exist.
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
COMMENT ON VIEW loracomp.job_attempt IS 'Attempts of jobs: which worker claimed the job, when, and how the attempt ended.';
COMMENT ON COLUMN loracomp.job_attempt.attempt IS 'Number of the attempt, from 1; if an attempt was given back, the next one has the same number.';
COMMENT ON COLUMN loracomp.job_attempt.worker IS 'Worker that claimed the job.';
COMMENT ON COLUMN loracomp.job_attempt.started_at IS 'When the worker claimed the job.';
COMMENT ON COLUMN loracomp.job_attempt.ended_at IS 'When the attempt ended; null while the job runs.';
COMMENT ON COLUMN loracomp.job_attempt.duration_s IS 'Seconds from started_at to ended_at.';
COMMENT ON COLUMN loracomp.job_attempt.outcome IS
'running, succeeded, failed, cancelled or deleted; or given back, if the worker released the job, the attempt is retried, or the lease '
'expired.';
COMMENT ON COLUMN loracomp.job_attempt.reason IS 'Error code or the operator''s reason; null after success.';
SELECT loracomp.copy_comments('loracomp.job_attempt', 'loracomp.job_result');

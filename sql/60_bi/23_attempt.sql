-- Reads only, with its owner's rights. As loracomp.job_attempt, which runs with its reader's. An administrator's
-- reason is somebody's words, an error code is not.
CREATE VIEW bi.attempt AS
SELECT
    a.job_id,
    a.attempt,
    a.worker,
    a.outcome,
    CASE WHEN a.outcome IN ('failed', 'given back') THEN a.reason END AS error_code,
    j.submitted_by::text AS submitted_by,
    j.policy,
    j.base_model,
    j.evaluation,
    loracomp.seconds_between(a.started_at, a.ended_at) AS duration_s,
    (a.started_at AT TIME ZONE 'UTC')::date AS day,
    a.started_at,
    a.ended_at,
    now() AS as_of
FROM (
    SELECT
        e.entity_id AS job_id,
        e.attempt,
        e.worker,
        e.new_status,
        e.at AS started_at,
        lead(e.at) OVER w AS ended_at,
        CASE lead(e.action, 1, 'none') OVER w
            WHEN 'none' THEN 'running'
            WHEN 'delete' THEN 'deleted'
            ELSE replace(lead(e.new_status) OVER w, 'queued', 'given back')
        END AS outcome,
        lead(e.reason) OVER w AS reason
    FROM loracomp.audit_event AS e
    WHERE e.entity = 'job'
    WINDOW w AS (PARTITION BY e.entity_id ORDER BY e.id)
) AS a
LEFT JOIN loracomp.job AS j ON a.job_id = j.id
WHERE a.new_status = 'running';
COMMENT ON VIEW bi.attempt IS 'Fact: a row for every time that a worker took a job, and how it ended.';
COMMENT ON COLUMN bi.attempt.job_id IS 'Number of the job; joins with bi.prediction.';
COMMENT ON COLUMN bi.attempt.attempt IS
'The job''s count of attempts then; an attempt that was given back is counted again.';
COMMENT ON COLUMN bi.attempt.worker IS 'Worker process that took it.';
COMMENT ON COLUMN bi.attempt.outcome IS
'succeeded, failed, cancelled, running, deleted; or given back: released, to be retried, or its lease ran out.';
COMMENT ON COLUMN bi.attempt.error_code IS
'Short name of what ended it, or released; null where it was answered, cancelled or runs.';
COMMENT ON COLUMN bi.attempt.submitted_by IS 'Database role that submitted the job; null where the job was erased.';
COMMENT ON COLUMN bi.attempt.policy IS 'Name of the settings of routing and merging; null where the job was erased.';
COMMENT ON COLUMN bi.attempt.base_model IS 'Frozen language model that the job asked for; null where it was erased.';
COMMENT ON COLUMN bi.attempt.evaluation IS 'Evaluation that the job belongs to; null for everyday jobs.';
COMMENT ON COLUMN bi.attempt.duration_s IS 'Seconds that the attempt took; null while it runs.';
COMMENT ON COLUMN bi.attempt.day IS 'Day on which it began, in UTC; joins with bi.dim_date.';
COMMENT ON COLUMN bi.attempt.started_at IS 'When it began.';
COMMENT ON COLUMN bi.attempt.ended_at IS 'When it ended; null while it runs.';
COMMENT ON COLUMN bi.attempt.as_of IS 'Up to when it counts: now, for it is live.';

-- Reads only, with its owner's rights (loracomp.job_attempt shows the same with the reader's rights). It shows error codes but
-- not the reasons that administrators wrote, because these are texts.
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
COMMENT ON VIEW bi.attempt IS 'Fact: a row for every attempt (a worker took a job), and how the attempt ended.';
COMMENT ON COLUMN bi.attempt.job_id IS 'Id of the job; joins with bi.prediction.';
COMMENT ON COLUMN bi.attempt.attempt IS
'Number of the attempt, from 1; if an attempt was given back, the next one has the same number.';
COMMENT ON COLUMN bi.attempt.worker IS 'Worker process that took the job.';
COMMENT ON COLUMN bi.attempt.outcome IS
'succeeded, failed, cancelled, running, deleted; or given back: released, to be retried, or its lease ran out.';
COMMENT ON COLUMN bi.attempt.error_code IS
'Short name of the error that ended the attempt, or ''released''; null if the job was answered, was cancelled or is running.';
COMMENT ON COLUMN bi.attempt.submitted_by IS 'Database role that submitted the job; null if the job was erased.';
COMMENT ON COLUMN bi.attempt.policy IS 'Name of the job''s policy; null if the job was erased.';
COMMENT ON COLUMN bi.attempt.base_model IS 'Base model that the job asked for; null if the job was erased.';
COMMENT ON COLUMN bi.attempt.duration_s IS 'Seconds that the attempt took; null while it runs.';
COMMENT ON COLUMN bi.attempt.day IS 'Day in UTC on which the attempt began; joins with bi.dim_date.';
COMMENT ON COLUMN bi.attempt.started_at IS 'When the attempt began.';
COMMENT ON COLUMN bi.attempt.ended_at IS 'When the attempt ended; null while it runs.';
COMMENT ON COLUMN bi.attempt.as_of IS 'Time of the data: the time of the query, because the view is live.';

-- Reads only, with its owner's rights (loracomp.job_attempt shows the same with the reader's rights). It shows error codes but
-- not the reasons that administrators wrote, because these are texts.
-- The end of an attempt is looked up for each: a window over the events of all jobs would be computed before those of some days are chosen.
CREATE VIEW bi.attempt AS
SELECT
    s.entity_id AS job_id,
    s.attempt,
    s.worker,
    coalesce(e.outcome, 'running') AS outcome,
    CASE WHEN e.outcome IN ('failed', 'given back') THEN e.reason END AS error_code,
    j.kind,
    j.submitted_by::text AS submitted_by,
    j.policy,
    j.base_model,
    j.evaluation,
    loracomp.seconds_between(s.at, e.at) AS duration_s,
    (s.at AT TIME ZONE 'UTC')::date AS day,
    s.at AS started_at,
    e.at AS ended_at,
    now() AS as_of
FROM loracomp.audit_event AS s
LEFT JOIN LATERAL (
    SELECT
        n.at,
        n.reason,
        CASE n.action WHEN 'delete' THEN 'deleted' ELSE replace(n.new_status, 'queued', 'given back') END AS outcome
    FROM loracomp.audit_event AS n
    WHERE n.entity = 'job' AND n.entity_id = s.entity_id AND n.id > s.id
    ORDER BY n.id
    LIMIT 1
) AS e ON TRUE
LEFT JOIN loracomp.job AS j ON s.entity_id = j.id
WHERE s.entity = 'job' AND s.new_status = 'running';
COMMENT ON VIEW bi.attempt IS 'Fact: a row for every attempt (a worker took a job), and how the attempt ended.';
COMMENT ON COLUMN bi.attempt.error_code IS
'Short name of the error that ended the attempt, or ''released''; null if the job was answered, was cancelled or is running.';
COMMENT ON COLUMN bi.attempt.kind IS
'predict: the job was to be answered. route: only routing weights. measure: how much adapters help. Null if the job was erased.';
COMMENT ON COLUMN bi.attempt.submitted_by IS 'Database role that submitted the job; null if the job was erased.';
COMMENT ON COLUMN bi.attempt.policy IS 'Name of the job''s policy; null if the job was erased.';
COMMENT ON COLUMN bi.attempt.base_model IS 'Base model that the job asked for; null if the job was erased.';
COMMENT ON COLUMN bi.attempt.duration_s IS 'Seconds that the attempt took; null while it runs.';
COMMENT ON COLUMN bi.attempt.day IS 'Day in UTC on which the attempt began; joins with bi.dim_date.';
SELECT loracomp.copy_comments('bi.attempt', 'loracomp.job_attempt', 'bi.prediction');

-- Reads only, with its owner's rights.
CREATE VIEW bi.failure_by_reason AS
SELECT
    (j.finished_at AT TIME ZONE 'UTC')::date AS day,
    coalesce(j.error_code, 'unknown') AS reason,
    j.policy,
    j.base_model,
    count(*) AS jobs,
    max(j.finished_at) AS last_at,
    now() AS as_of
FROM loracomp.job AS j
WHERE j.status = 'failed' AND j.finished_at IS NOT NULL
GROUP BY (j.finished_at AT TIME ZONE 'UTC')::date, j.error_code, j.policy, j.base_model;
COMMENT ON VIEW bi.failure_by_reason IS 'Number of failed jobs of each day, by error.';
COMMENT ON COLUMN bi.failure_by_reason.day IS 'Day in UTC on which the jobs ended.';
COMMENT ON COLUMN bi.failure_by_reason.reason IS 'Short name of the last error, such as prompt_too_long.';
COMMENT ON COLUMN bi.failure_by_reason.base_model IS 'Base model that the jobs asked for.';
COMMENT ON COLUMN bi.failure_by_reason.jobs IS 'Number of jobs that ended with this error.';
COMMENT ON COLUMN bi.failure_by_reason.last_at IS 'When the last of these jobs ended.';
COMMENT ON COLUMN bi.failure_by_reason.as_of IS 'Time of the data: the time of the query, because the view is live.';

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
COMMENT ON VIEW bi.failure_by_reason IS 'Failed jobs of each day, by what ended them.';
COMMENT ON COLUMN bi.failure_by_reason.day IS 'Day on which they ended, in UTC.';
COMMENT ON COLUMN bi.failure_by_reason.reason IS 'Short name of the last error, such as prompt_too_long.';
COMMENT ON COLUMN bi.failure_by_reason.base_model IS 'Frozen language model that was asked for.';
COMMENT ON COLUMN bi.failure_by_reason.jobs IS 'Jobs that ended so.';
COMMENT ON COLUMN bi.failure_by_reason.last_at IS 'When the last of them ended.';
COMMENT ON COLUMN bi.failure_by_reason.as_of IS 'Up to when it counts: now, for it is live.';

-- What each submitter's jobs cost, by day.
--   bi.cost_by_submitter
--     loracomp.cost_by_submitter  the stored numbers, a table
--   cost_by_submitter_on        computes a day of it

-- Reads only.
CREATE FUNCTION loracomp.cost_by_submitter_on(day date) RETURNS SETOF loracomp.cost_by_submitter
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    cost_by_submitter_on.day,
    j.submitted_by::text AS submitted_by,
    j.policy,
    coalesce(p.base_model, j.base_model) AS base_model,
    count(*) AS jobs,
    count(*) FILTER (WHERE j.status = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE j.status = 'failed') AS failed,
    sum(j.attempts) AS attempts,
    coalesce(sum(p.prompt_tokens), 0) AS prompt_tokens,
    coalesce(sum(p.output_tokens), 0) AS output_tokens,
    coalesce(sum(loracomp.compute_seconds(p.timings, p.batch_size)), 0) AS compute_s
FROM loracomp.jobs_on(cost_by_submitter_on.day) AS j
LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id
GROUP BY j.submitted_by, j.policy, coalesce(p.base_model, j.base_model);
END;
COMMENT ON FUNCTION loracomp.cost_by_submitter_on IS 'Rows of loracomp.cost_by_submitter for a day, computed from its jobs.';

-- Reads only, with its owner's rights.
CREATE VIEW bi.cost_by_submitter AS
SELECT
    c.day,
    c.submitted_by,
    c.policy,
    c.base_model,
    c.jobs,
    c.succeeded,
    c.failed,
    c.attempts,
    c.prompt_tokens,
    c.output_tokens,
    c.compute_s,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'cost_by_submitter') AS as_of
FROM loracomp.cost_by_submitter AS c;
COMMENT ON VIEW bi.cost_by_submitter IS 'Jobs, tokens and seconds of computing of each submitter, by day, policy and base model. Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.cost_by_submitter.as_of IS 'When these numbers were computed last; later answers are not counted yet.';

-- How many jobs ended on each day, how they ended, and what they cost.
--   bi.jobs_by_day              by submitter, policy, kind and status
--   bi.cost_by_submitter        what they cost
--     loracomp.jobs_by_day      the table that both views read
--   jobs_by_day_on              computes a day of it

-- Reads only.
CREATE FUNCTION loracomp.jobs_by_day_on(day date) RETURNS SETOF loracomp.jobs_by_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    jobs_by_day_on.day,
    j.submitted_by::text AS submitted_by,
    j.policy,
    j.base_model,
    j.expected IS NOT NULL AS has_expected,
    j.kind,
    j.status,
    j.error_code AS reason,
    count(*) AS jobs,
    coalesce(sum(p.prompt_tokens), 0) AS prompt_tokens,
    coalesce(sum(p.output_tokens), 0) AS output_tokens,
    coalesce(sum(loracomp.compute_seconds(p.timings)), 0) AS compute_s,
    count(*) FILTER (WHERE p.policy_settings ->> 'router' = 'retrieval') AS routed,
    count(p.fallback) FILTER (WHERE p.policy_settings ->> 'router' = 'retrieval') AS fell_back
FROM loracomp.jobs_on(jobs_by_day_on.day) AS j
LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id
GROUP BY j.submitted_by, j.policy, j.base_model, j.expected IS NOT NULL, j.kind, j.status, j.error_code;
END;
COMMENT ON FUNCTION loracomp.jobs_by_day_on IS 'Rows of loracomp.jobs_by_day for a day, computed from its jobs.';

-- Reads only, with its owner's rights. Jobs of kind measure are left out because they answer no prompt, as in bi.prediction.
CREATE VIEW bi.jobs_by_day AS
SELECT
    d.day,
    d.submitted_by,
    d.policy,
    d.base_model,
    d.has_expected,
    d.kind,
    d.status,
    d.reason,
    d.jobs,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r) AS as_of,
    d.routed,
    d.fell_back
FROM loracomp.jobs_by_day AS d
WHERE d.kind <> 'measure';
COMMENT ON VIEW bi.jobs_by_day IS
'Number of jobs that ended on each day, by how they ended. Counts the jobs that bi.prediction lists, and jobs that were purged. Refreshed '
'by refresh_reports, not live.';
COMMENT ON COLUMN bi.jobs_by_day.kind IS 'predict: jobs that ask for an answer. route: jobs that ask only for routing weights.';
SELECT loracomp.copy_comments('bi.jobs_by_day', 'loracomp.jobs_by_day', 'bi.accuracy_by_day');

-- Reads only, with its owner's rights.
CREATE VIEW bi.cost_by_submitter AS
SELECT
    d.day,
    d.submitted_by,
    d.policy,
    d.base_model,
    sum(d.jobs)::bigint AS jobs,
    sum(d.prompt_tokens)::bigint AS prompt_tokens,
    sum(d.output_tokens)::bigint AS output_tokens,
    sum(d.compute_s) AS compute_s,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r) AS as_of
FROM loracomp.jobs_by_day AS d
GROUP BY d.day, d.submitted_by, d.policy, d.base_model;
COMMENT ON VIEW bi.cost_by_submitter IS 'Jobs, tokens and seconds of computing of each submitter, by day, policy and base model. Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.cost_by_submitter.jobs IS
'Number of jobs that ended, including jobs of kind measure, which bi.prediction and bi.jobs_by_day leave out.';
SELECT loracomp.copy_comments('bi.cost_by_submitter', 'loracomp.jobs_by_day', 'bi.accuracy_by_day');

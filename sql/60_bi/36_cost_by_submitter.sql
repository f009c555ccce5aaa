-- What each submitter's jobs cost, by day.
--   bi.cost_by_submitter
--     loracomp.cost_by_submitter   the stored numbers; refresh_reports() computes them

-- Refreshed by refresh_reports(). Days of jobs that were purged are in it, as purge_jobs noted them.
CREATE MATERIALIZED VIEW loracomp.cost_by_submitter AS
SELECT
    c.day,
    c.submitted_by::text AS submitted_by,
    c.policy,
    c.base_model,
    sum(c.jobs)::bigint AS jobs,
    sum(c.succeeded)::bigint AS succeeded,
    sum(c.failed)::bigint AS failed,
    sum(c.attempts)::bigint AS attempts,
    sum(c.prompt_tokens)::bigint AS prompt_tokens,
    sum(c.output_tokens)::bigint AS output_tokens,
    sum(c.compute_s) AS compute_s
FROM (
    SELECT
        e.day,
        e.submitted_by,
        e.policy,
        e.base_model,
        count(*) AS jobs,
        count(*) FILTER (WHERE e.status = 'succeeded') AS succeeded,
        count(*) FILTER (WHERE e.status = 'failed') AS failed,
        sum(e.attempts) AS attempts,
        sum(e.prompt_tokens) AS prompt_tokens,
        sum(e.output_tokens) AS output_tokens,
        sum(e.compute_s) AS compute_s
    FROM loracomp.ended_job AS e
    GROUP BY e.day, e.submitted_by, e.policy, e.base_model
    UNION ALL
    SELECT
        d.day,
        d.submitted_by,
        d.policy,
        d.base_model,
        d.jobs,
        d.succeeded,
        d.failed,
        d.attempts,
        d.prompt_tokens,
        d.output_tokens,
        d.compute_s
    FROM loracomp.purged_day AS d
) AS c
GROUP BY c.day, c.submitted_by, c.policy, c.base_model;
CREATE UNIQUE INDEX cost_by_submitter_key ON loracomp.cost_by_submitter (
    day, submitted_by, policy, base_model
);
COMMENT ON MATERIALIZED VIEW loracomp.cost_by_submitter IS 'Stored numbers that bi.cost_by_submitter reads.';
COMMENT ON COLUMN loracomp.cost_by_submitter.day IS 'Day on which the jobs ended, in UTC.';
COMMENT ON COLUMN loracomp.cost_by_submitter.submitted_by IS 'Database role that submitted the jobs.';
COMMENT ON COLUMN loracomp.cost_by_submitter.policy IS 'Name of the policy: the settings of routing and merging.';
COMMENT ON COLUMN loracomp.cost_by_submitter.base_model IS 'Base model that answered, or that the job asked for.';
COMMENT ON COLUMN loracomp.cost_by_submitter.jobs IS 'Number of jobs that ended.';
COMMENT ON COLUMN loracomp.cost_by_submitter.succeeded IS 'Number of jobs that were answered.';
COMMENT ON COLUMN loracomp.cost_by_submitter.failed IS 'Number of jobs that failed.';
COMMENT ON COLUMN loracomp.cost_by_submitter.attempts IS 'Number of attempts of the jobs that ended.';
COMMENT ON COLUMN loracomp.cost_by_submitter.prompt_tokens IS 'Tokens in the prompts of the jobs that were answered.';
COMMENT ON COLUMN loracomp.cost_by_submitter.output_tokens IS 'Tokens that were scored or generated for the jobs that were answered.';
COMMENT ON COLUMN loracomp.cost_by_submitter.compute_s IS
'Seconds of computing for the jobs that were answered: each batch''s time from encoding to prediction, divided by its jobs; without waiting.';

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

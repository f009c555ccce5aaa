-- What each submitter's jobs cost, by day.
--   bi.cost_by_submitter
--     loracomp.cost_by_submitter   what it rests on; refresh_reports() works it out

-- Refreshed by refresh_reports().
CREATE MATERIALIZED VIEW loracomp.cost_by_submitter AS
SELECT
    (j.finished_at AT TIME ZONE 'UTC')::date AS day,
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
FROM loracomp.job AS j
LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id
WHERE j.finished_at IS NOT NULL
GROUP BY (j.finished_at AT TIME ZONE 'UTC')::date, j.submitted_by, j.policy, coalesce(p.base_model, j.base_model);
CREATE UNIQUE INDEX cost_by_submitter_key ON loracomp.cost_by_submitter (
    day, submitted_by, policy, base_model
);
COMMENT ON MATERIALIZED VIEW loracomp.cost_by_submitter IS 'What bi.cost_by_submitter rests on.';
COMMENT ON COLUMN loracomp.cost_by_submitter.day IS 'Day on which the jobs ended, in UTC.';
COMMENT ON COLUMN loracomp.cost_by_submitter.submitted_by IS 'Database role that submitted them.';
COMMENT ON COLUMN loracomp.cost_by_submitter.base_model IS 'Frozen language model.';
COMMENT ON COLUMN loracomp.cost_by_submitter.jobs IS 'Jobs that ended.';
COMMENT ON COLUMN loracomp.cost_by_submitter.succeeded IS 'Those that were answered.';
COMMENT ON COLUMN loracomp.cost_by_submitter.failed IS 'Those that ended failed.';
COMMENT ON COLUMN loracomp.cost_by_submitter.attempts IS 'Attempts that they took.';
COMMENT ON COLUMN loracomp.cost_by_submitter.prompt_tokens IS 'Tokens of the prompts of those that were answered.';
COMMENT ON COLUMN loracomp.cost_by_submitter.output_tokens IS 'Tokens that were scored or generated for them.';
COMMENT ON COLUMN loracomp.cost_by_submitter.compute_s IS
'Their part of the seconds that their batches took from encoding to prediction; not waiting.';

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
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'cost_by_submitter') AS refreshed_at
FROM loracomp.cost_by_submitter AS c;
COMMENT ON VIEW bi.cost_by_submitter IS 'What each submitter''s jobs cost, by day, policy and base model. Refreshed, not live.';
COMMENT ON COLUMN bi.cost_by_submitter.refreshed_at IS 'When these numbers were computed last; later answers are not counted yet.';

-- drop: DROP VIEW IF EXISTS bi.cost_by_submitter
-- Reads only, with its owner's rights.
CREATE VIEW bi.cost_by_submitter AS
SELECT
    p.day,
    p.submitted_by,
    p.policy,
    p.base_model,
    count(*) AS jobs,
    count(*) FILTER (WHERE p.status = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE p.status = 'failed') AS failed,
    sum(p.attempts) AS attempts,
    coalesce(sum(p.prompt_tokens), 0) AS prompt_tokens,
    coalesce(sum(p.output_tokens), 0) AS output_tokens,
    coalesce(sum(p.compute_s), 0) AS compute_s
FROM bi.prediction AS p
GROUP BY p.day, p.submitted_by, p.policy, p.base_model;
COMMENT ON VIEW bi.cost_by_submitter IS 'What each submitter''s jobs cost, by day, policy and base model.';
COMMENT ON COLUMN bi.cost_by_submitter.day IS 'Day on which the jobs ended, in UTC.';
COMMENT ON COLUMN bi.cost_by_submitter.submitted_by IS 'Database role that submitted them.';
COMMENT ON COLUMN bi.cost_by_submitter.policy IS 'Name of the settings of routing and merging.';
COMMENT ON COLUMN bi.cost_by_submitter.base_model IS 'Frozen language model.';
COMMENT ON COLUMN bi.cost_by_submitter.jobs IS 'Jobs that ended.';
COMMENT ON COLUMN bi.cost_by_submitter.succeeded IS 'Those that were answered.';
COMMENT ON COLUMN bi.cost_by_submitter.failed IS 'Those that ended failed.';
COMMENT ON COLUMN bi.cost_by_submitter.attempts IS 'Attempts that they took.';
COMMENT ON COLUMN bi.cost_by_submitter.prompt_tokens IS 'Tokens of the prompts of those that were answered.';
COMMENT ON COLUMN bi.cost_by_submitter.output_tokens IS 'Tokens that were scored or generated for them.';
COMMENT ON COLUMN bi.cost_by_submitter.compute_s IS
'Their part of the seconds that their batches took from encoding to prediction; not waiting.';

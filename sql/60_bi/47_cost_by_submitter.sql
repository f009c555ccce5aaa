-- drop: DROP VIEW IF EXISTS bi.cost_by_submitter
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
COMMENT ON COLUMN bi.cost_by_submitter.refreshed_at IS 'Up to when it counts: when its numbers were last worked out.';

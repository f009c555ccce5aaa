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
COMMENT ON COLUMN bi.cost_by_submitter.refreshed_at IS 'Up to when it counts: when its numbers were last worked out.';

-- How often no adapter was used (fallback to the base model), by day.
--   bi.fallback_by_day
--     loracomp.fallback_by_day   the stored numbers; refresh_reports() computes them

-- Refreshed by refresh_reports(). Only policies with retrieval, because a policy such as base never uses adapters.
CREATE MATERIALIZED VIEW loracomp.fallback_by_day AS
SELECT
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    j.policy,
    p.base_model,
    j.evaluation IS NOT NULL AS is_evaluation,
    count(*) AS n,
    count(p.fallback) AS fell_back
FROM loracomp.prediction AS p
INNER JOIN loracomp.job AS j ON p.job_id = j.id
WHERE p.policy_settings ->> 'router' = 'retrieval'
GROUP BY (p.created_at AT TIME ZONE 'UTC')::date, j.policy, p.base_model, j.evaluation IS NOT NULL;
CREATE UNIQUE INDEX fallback_by_day_key ON loracomp.fallback_by_day (
    day, policy, base_model, is_evaluation
);
COMMENT ON MATERIALIZED VIEW loracomp.fallback_by_day IS 'Stored numbers that bi.fallback_by_day reads.';
COMMENT ON COLUMN loracomp.fallback_by_day.day IS 'Day in UTC on which the jobs were answered.';
COMMENT ON COLUMN loracomp.fallback_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN loracomp.fallback_by_day.n IS 'Number of answers that were routed by retrieval.';
COMMENT ON COLUMN loracomp.fallback_by_day.fell_back IS 'Number of answers that were routed by retrieval and for which no adapter was used.';

-- Reads only, with its owner's rights.
CREATE VIEW bi.fallback_by_day AS
SELECT
    c.day,
    c.policy,
    c.base_model,
    c.is_evaluation,
    c.n,
    c.fell_back,
    c.fell_back::double precision / c.n AS rate,
    i.low AS rate_low,
    i.high AS rate_high,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'fallback_by_day') AS as_of
FROM loracomp.fallback_by_day AS c
CROSS JOIN LATERAL bi.wilson_interval(c.fell_back, c.n) AS i;
COMMENT ON VIEW bi.fallback_by_day IS
'How often no adapter was used and the base model answered alone, by day. bi.prediction.fallback gives the reason. '
'Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.fallback_by_day.rate IS 'fell_back / n, 0 to 1.';
COMMENT ON COLUMN bi.fallback_by_day.rate_low IS 'Lower end of the 95 % confidence interval (Wilson).';
COMMENT ON COLUMN bi.fallback_by_day.rate_high IS 'Upper end of the 95 % confidence interval.';
COMMENT ON COLUMN bi.fallback_by_day.as_of IS 'When these numbers were computed last; later answers are not counted yet.';

-- drop: DROP MATERIALIZED VIEW IF EXISTS loracomp.fallback_by_day
-- Refreshed by refresh_reports(). Of policies that retrieve: the base policy falls back always.
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
WHERE p.policy ->> 'router' = 'retrieval'
GROUP BY (p.created_at AT TIME ZONE 'UTC')::date, j.policy, p.base_model, j.evaluation IS NOT NULL;
CREATE UNIQUE INDEX fallback_by_day_key ON loracomp.fallback_by_day (
    day, policy, base_model, is_evaluation
);
COMMENT ON MATERIALIZED VIEW loracomp.fallback_by_day IS 'What bi.fallback_by_day rests on.';
COMMENT ON COLUMN loracomp.fallback_by_day.day IS 'Day of the answers, in UTC.';
COMMENT ON COLUMN loracomp.fallback_by_day.is_evaluation IS 'Whether evaluations asked, and not people.';
COMMENT ON COLUMN loracomp.fallback_by_day.n IS 'Answers that were routed by retrieval.';
COMMENT ON COLUMN loracomp.fallback_by_day.fell_back IS 'Those for which nothing was composed.';

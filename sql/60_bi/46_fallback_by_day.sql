-- drop: DROP VIEW IF EXISTS bi.fallback_by_day
-- Reads only, with its owner's rights. Of policies that retrieve: the base policy falls back always.
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
    i.high AS rate_high
FROM (
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
    GROUP BY (p.created_at AT TIME ZONE 'UTC')::date, j.policy, p.base_model, j.evaluation IS NOT NULL
) AS c
CROSS JOIN LATERAL bi.wilson_interval(c.fell_back, c.n) AS i;
COMMENT ON VIEW bi.fallback_by_day IS
'How often nothing was composed and the base model answered alone, by day. bi.prediction.fallback says why.';
COMMENT ON COLUMN bi.fallback_by_day.day IS 'Day of the answers, in UTC.';
COMMENT ON COLUMN bi.fallback_by_day.policy IS 'Name of the settings of routing and merging.';
COMMENT ON COLUMN bi.fallback_by_day.base_model IS 'Frozen language model.';
COMMENT ON COLUMN bi.fallback_by_day.is_evaluation IS 'Whether evaluations asked, and not people.';
COMMENT ON COLUMN bi.fallback_by_day.n IS 'Answers that were routed by retrieval.';
COMMENT ON COLUMN bi.fallback_by_day.fell_back IS 'Those for which nothing was composed.';
COMMENT ON COLUMN bi.fallback_by_day.rate IS 'fell_back / n, 0 to 1.';
COMMENT ON COLUMN bi.fallback_by_day.rate_low IS 'Lower end of its 95 % confidence interval (Wilson).';
COMMENT ON COLUMN bi.fallback_by_day.rate_high IS 'Upper end of that interval.';

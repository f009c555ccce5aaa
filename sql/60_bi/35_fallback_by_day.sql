-- How often no adapter was used (fallback to the base model), by day.
--   bi.fallback_by_day
--     loracomp.fallback_by_day  the stored numbers, a table
--   fallback_by_day_on          computes a day of it

-- Reads only. Only policies with retrieval, because a policy such as base never uses adapters.
CREATE FUNCTION loracomp.fallback_by_day_on(day date) RETURNS SETOF loracomp.fallback_by_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    fallback_by_day_on.day,
    j.policy,
    p.base_model,
    j.evaluation IS NOT NULL AS is_evaluation,
    count(*) AS n,
    count(p.fallback) AS fell_back
FROM loracomp.jobs_on(fallback_by_day_on.day) AS j
INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
WHERE p.policy_settings ->> 'router' = 'retrieval'
GROUP BY j.policy, p.base_model, j.evaluation IS NOT NULL;
END;
COMMENT ON FUNCTION loracomp.fallback_by_day_on IS 'Rows of loracomp.fallback_by_day for a day, computed from its jobs.';

-- Reads only, with its owner's rights.
CREATE VIEW bi.fallback_by_day AS
SELECT
    c.*,
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
SELECT loracomp.copy_comments('bi.fallback_by_day', 'loracomp.fallback_by_day', 'bi.routing_by_day');

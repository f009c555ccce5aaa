-- drop: DROP VIEW IF EXISTS bi.fallback_by_day
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
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'fallback_by_day') AS refreshed_at
FROM loracomp.fallback_by_day AS c
CROSS JOIN LATERAL bi.wilson_interval(c.fell_back, c.n) AS i;
COMMENT ON VIEW bi.fallback_by_day IS
'How often nothing was composed and the base model answered alone, by day. bi.prediction.fallback says why. '
'Refreshed, not live.';
COMMENT ON COLUMN bi.fallback_by_day.rate IS 'fell_back / n, 0 to 1.';
COMMENT ON COLUMN bi.fallback_by_day.rate_low IS 'Lower end of its 95 % confidence interval (Wilson).';
COMMENT ON COLUMN bi.fallback_by_day.rate_high IS 'Upper end of that interval.';
COMMENT ON COLUMN bi.fallback_by_day.refreshed_at IS 'Up to when it counts: when its numbers were last worked out.';

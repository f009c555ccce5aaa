-- How long each step of answering took, by day.
--   bi.latency_by_day
--     loracomp.latency_by_day   the stored numbers, a table
--   latency_by_day_on           computes a day of it

-- Reads only. Jobs whose right answer was known are left out.
CREATE FUNCTION loracomp.latency_by_day_on(day date) RETURNS SETOF loracomp.latency_by_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    latency_by_day_on.day,
    s.base_model,
    s.step,
    s.n,
    s.quantiles[1] AS p50_ms,
    s.quantiles[2] AS p95_ms,
    s.quantiles[3] AS p99_ms
FROM (
    SELECT
        j.base_model,
        x.step,
        count(*) AS n,
        percentile_cont('{0.5, 0.95, 0.99}'::double precision[]) WITHIN GROUP (ORDER BY x.ms) AS quantiles
    FROM loracomp.jobs_on(latency_by_day_on.day) AS j
    INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
    CROSS JOIN LATERAL (
        SELECT t.key, t.value::double precision FROM jsonb_each(p.timings) AS t WHERE jsonb_typeof(t.value) = 'number'
        UNION ALL
        SELECT w.key, 1000 * loracomp.seconds_between(greatest(j.created_at, j.run_at), w.until)
        FROM (VALUES ('queue', j.claimed_at), ('total', j.finished_at)) AS w (key, until)
    ) AS x (step, ms)
    WHERE x.ms IS NOT NULL AND j.expected IS NULL
    GROUP BY j.base_model, x.step
) AS s;
END;
COMMENT ON FUNCTION loracomp.latency_by_day_on IS 'Rows of loracomp.latency_by_day for a day, computed from its jobs.';

-- Reads only, with its owner's rights.
CREATE VIEW bi.latency_by_day AS
SELECT l.*, (SELECT r.refreshed_at FROM loracomp.report_refresh AS r) AS as_of
FROM loracomp.latency_by_day AS l;
COMMENT ON VIEW bi.latency_by_day IS
'How long each step took for the jobs answered on a day. Leaves out jobs whose right answer was known. Refreshed by refresh_reports, not '
'live.';
SELECT loracomp.copy_comments('bi.latency_by_day', 'loracomp.latency_by_day', 'bi.accuracy_by_day');

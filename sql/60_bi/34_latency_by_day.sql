-- How long each step of answering took, by day.
--   bi.latency_by_day
--     loracomp.latency_by_day   the stored numbers; refresh_reports() computes them

-- Refreshed by refresh_reports().
CREATE MATERIALIZED VIEW loracomp.latency_by_day AS
SELECT
    s.day,
    s.base_model,
    s.is_evaluation,
    s.step,
    s.n,
    s.mean_ms,
    s.quantiles[1] AS p50_ms,
    s.quantiles[2] AS p90_ms,
    s.quantiles[3] AS p95_ms,
    s.quantiles[4] AS p99_ms,
    s.max_ms
FROM (
    SELECT
        (j.finished_at AT TIME ZONE 'UTC')::date AS day,
        p.base_model,
        j.evaluation IS NOT NULL AS is_evaluation,
        x.step,
        count(*) AS n,
        avg(x.ms) AS mean_ms,
        percentile_cont('{0.5, 0.9, 0.95, 0.99}'::double precision[]) WITHIN GROUP (ORDER BY x.ms) AS quantiles,
        max(x.ms) AS max_ms
    FROM loracomp.prediction AS p
    INNER JOIN loracomp.job AS j ON p.job_id = j.id
    CROSS JOIN LATERAL (
        SELECT t.key, t.value::double precision FROM jsonb_each(p.timings) AS t WHERE jsonb_typeof(t.value) = 'number'
        UNION ALL
        SELECT w.key, 1000 * loracomp.seconds_between(greatest(j.created_at, j.run_at), w.until)
        FROM (VALUES ('queue', j.claimed_at), ('total', j.finished_at)) AS w (key, until)
    ) AS x (step, ms)
    GROUP BY (j.finished_at AT TIME ZONE 'UTC')::date, p.base_model, j.evaluation IS NOT NULL, x.step
) AS s;
COMMENT ON MATERIALIZED VIEW loracomp.latency_by_day IS 'How long each step took for the jobs answered on a day; bi.latency_by_day reads it.';
COMMENT ON COLUMN loracomp.latency_by_day.day IS 'Day in UTC on which the jobs were answered.';
COMMENT ON COLUMN loracomp.latency_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN loracomp.latency_by_day.step IS
'queue: until a worker took the job; a step of the worker, such as predict, with the time of the job''s whole batch; or total: '
'from the time when the job could start to its answer.';
COMMENT ON COLUMN loracomp.latency_by_day.n IS 'Number of answers.';
COMMENT ON COLUMN loracomp.latency_by_day.mean_ms IS 'Mean time in milliseconds.';
COMMENT ON COLUMN loracomp.latency_by_day.p50_ms IS 'Median time in milliseconds.';
COMMENT ON COLUMN loracomp.latency_by_day.p90_ms IS '90th percentile in milliseconds.';
COMMENT ON COLUMN loracomp.latency_by_day.p95_ms IS '95th percentile in milliseconds.';
COMMENT ON COLUMN loracomp.latency_by_day.p99_ms IS '99th percentile in milliseconds.';
COMMENT ON COLUMN loracomp.latency_by_day.max_ms IS 'Longest time in milliseconds.';
CREATE UNIQUE INDEX latency_by_day_key ON loracomp.latency_by_day (
    day, base_model, is_evaluation, step
);

-- Reads only, with its owner's rights.
CREATE VIEW bi.latency_by_day AS
SELECT
    l.day,
    l.base_model,
    l.is_evaluation,
    l.step,
    l.n,
    l.mean_ms,
    l.p50_ms,
    l.p90_ms,
    l.p95_ms,
    l.p99_ms,
    l.max_ms,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'latency_by_day') AS as_of
FROM loracomp.latency_by_day AS l;
COMMENT ON VIEW bi.latency_by_day IS 'How long each step took for the jobs answered on a day. Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.latency_by_day.as_of IS 'When these numbers were computed last; later answers are not counted yet.';

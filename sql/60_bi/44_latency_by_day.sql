-- drop: DROP VIEW IF EXISTS bi.latency_by_day
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
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'latency_by_day') AS refreshed_at
FROM loracomp.latency_by_day AS l;
COMMENT ON VIEW bi.latency_by_day IS 'How long each step of the answers of a day took. Refreshed, not live.';
COMMENT ON COLUMN bi.latency_by_day.step IS
'queue, until a worker took it; a step that workers time, such as predict, which is the batch''s time and so each '
'of its answers''; or total, from when a job could start to its answer.';
COMMENT ON COLUMN bi.latency_by_day.refreshed_at IS 'Up to when it counts: when its numbers were last worked out.';

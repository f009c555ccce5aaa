-- Reads only, with its owner's rights.
CREATE VIEW bi.evaluation AS
SELECT
    e.name AS evaluation,
    e.description,
    e.split,
    e.kind,
    e.base_model,
    e.exclude_own,
    e.seed,
    e.created_by::text AS created_by,
    e.created_at,
    count(j.id) AS jobs,
    count(j.id) FILTER (WHERE j.status = 'queued') AS queued,
    count(j.id) FILTER (WHERE j.status = 'running') AS running,
    count(j.id) FILTER (WHERE j.status = 'succeeded') AS succeeded,
    count(j.id) FILTER (WHERE j.status = 'failed') AS failed,
    count(j.id) FILTER (WHERE j.status = 'cancelled') AS cancelled,
    max(j.finished_at) AS last_finished_at,
    now() AS as_of
FROM loracomp.evaluation AS e
LEFT JOIN loracomp.job AS j ON e.name = j.evaluation
GROUP BY e.name;
COMMENT ON VIEW bi.evaluation IS 'Named sets of jobs whose right answers are known, and how far each has got.';
COMMENT ON COLUMN bi.evaluation.evaluation IS 'Its name.';
COMMENT ON COLUMN bi.evaluation.created_by IS 'Database role that started it.';
COMMENT ON COLUMN bi.evaluation.created_at IS 'When it was started.';
COMMENT ON COLUMN bi.evaluation.jobs IS 'Jobs that it has.';
COMMENT ON COLUMN bi.evaluation.queued IS 'Those that wait for a worker.';
COMMENT ON COLUMN bi.evaluation.running IS 'Those that workers hold.';
COMMENT ON COLUMN bi.evaluation.succeeded IS 'Those that were answered.';
COMMENT ON COLUMN bi.evaluation.failed IS 'Those that ended failed.';
COMMENT ON COLUMN bi.evaluation.cancelled IS 'Those that were cancelled.';
COMMENT ON COLUMN bi.evaluation.last_finished_at IS 'When the last of them ended.';
COMMENT ON COLUMN bi.evaluation.as_of IS 'Up to when it counts: now, for it is live.';

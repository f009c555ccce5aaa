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
    now() AS as_of
FROM loracomp.evaluation AS e
LEFT JOIN loracomp.job AS j ON e.name = j.evaluation
GROUP BY e.name;
COMMENT ON VIEW bi.evaluation IS 'Evaluations (named sets of jobs whose right answers are known) and how many of their jobs have ended.';
COMMENT ON COLUMN bi.evaluation.evaluation IS 'Name of the evaluation; key.';
COMMENT ON COLUMN bi.evaluation.created_by IS 'Database role that started the evaluation.';
COMMENT ON COLUMN bi.evaluation.created_at IS 'When the evaluation was started.';
COMMENT ON COLUMN bi.evaluation.jobs IS 'Number of jobs of the evaluation.';
COMMENT ON COLUMN bi.evaluation.queued IS 'Number of its jobs that wait for a worker.';
COMMENT ON COLUMN bi.evaluation.running IS 'Number of its jobs that are running.';
COMMENT ON COLUMN bi.evaluation.succeeded IS 'Number of its jobs that were answered.';
COMMENT ON COLUMN bi.evaluation.failed IS 'Number of its jobs that failed.';
COMMENT ON COLUMN bi.evaluation.cancelled IS 'Number of its jobs that were cancelled.';
SELECT loracomp.copy_comments('bi.evaluation', 'loracomp.evaluation', 'bi.prediction');

CREATE TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON loracomp.evaluation
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_row();

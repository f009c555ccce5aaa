-- drop: DROP VIEW IF EXISTS bi.composed_adapter_wide
-- Reads only, with its owner's rights. For tools that don't join.
CREATE VIEW bi.composed_adapter_wide AS
SELECT
    c.job_id,
    c.place,
    c.adapter_id,
    c.adapter,
    c.version,
    a.label,
    c.task,
    t.family,
    c.weight,
    a.status AS adapter_status,
    a.rank,
    a.parameter_count,
    c.base_model,
    c.policy,
    c.strategy,
    j.evaluation,
    j.submitted_by::text AS submitted_by,
    coalesce(m.labels ->> j.task, j.task) AS own_task,
    cardinality(p.adapter_ids) AS adapter_count,
    j.is_correct,
    c.day,
    c.finished_at
FROM bi.composed_adapter AS c
CROSS JOIN loracomp.task_mask AS m
LEFT JOIN loracomp.job AS j ON c.job_id = j.id
LEFT JOIN loracomp.prediction AS p ON c.job_id = p.job_id
LEFT JOIN bi.dim_adapter AS a ON c.adapter_id = a.adapter_id
LEFT JOIN bi.dim_task AS t ON c.task = t.task;
COMMENT ON VIEW bi.composed_adapter_wide IS
'bi.composed_adapter with what its dimensions and its job say: one wide row an adapter of an answer.';
COMMENT ON COLUMN bi.composed_adapter_wide.family IS 'Kind of that task.';
COMMENT ON COLUMN bi.composed_adapter_wide.adapter_status IS 'staged, active or retired, as it is now.';
COMMENT ON COLUMN bi.composed_adapter_wide.evaluation IS 'Evaluation that the job belongs to; null for everyday jobs.';
COMMENT ON COLUMN bi.composed_adapter_wide.submitted_by IS 'Database role that submitted the job.';
COMMENT ON COLUMN bi.composed_adapter_wide.own_task IS 'Task that the job comes from; known for evaluations only.';
COMMENT ON COLUMN bi.composed_adapter_wide.adapter_count IS 'Adapters that the job''s answer was composed of.';

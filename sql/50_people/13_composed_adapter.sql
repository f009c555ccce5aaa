-- drop: DROP VIEW IF EXISTS loracomp.composed_adapter
-- Reads only. A trace outlives its adapters: name and version are null where an adapter is gone or hidden.
CREATE VIEW loracomp.composed_adapter WITH (security_invoker) AS
SELECT
    p.job_id,
    x.place::integer AS place,
    x.task,
    x.weight,
    x.adapter_id,
    a.name AS adapter,
    a.version,
    x.sha256
FROM loracomp.prediction AS p
CROSS JOIN LATERAL unnest(p.composed_tasks, p.adapter_weights, p.adapter_ids, p.adapter_sha256)
WITH ORDINALITY AS x (task, weight, adapter_id, sha256, place)
LEFT JOIN LATERAL loracomp.readable_adapter(x.adapter_id) AS a ON TRUE;
COMMENT ON VIEW loracomp.composed_adapter IS 'Adapters that were composed for each job, with their weights.';
COMMENT ON COLUMN loracomp.composed_adapter.job_id IS 'The job.';
COMMENT ON COLUMN loracomp.composed_adapter.place IS '1 is the adapter of the most probable task.';
COMMENT ON COLUMN loracomp.composed_adapter.task IS 'Task that the adapter was trained for.';
COMMENT ON COLUMN loracomp.composed_adapter.weight IS 'Its weight in the composition; a job''s weights sum to 1.';
COMMENT ON COLUMN loracomp.composed_adapter.adapter_id IS 'The adapter.';
COMMENT ON COLUMN loracomp.composed_adapter.adapter IS 'Its name.';
COMMENT ON COLUMN loracomp.composed_adapter.version IS 'Its version.';
COMMENT ON COLUMN loracomp.composed_adapter.sha256 IS 'Hash of its file.';

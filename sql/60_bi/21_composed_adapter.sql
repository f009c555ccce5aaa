-- drop: DROP VIEW IF EXISTS bi.composed_adapter
-- Reads only, with its owner's rights.
CREATE VIEW bi.composed_adapter AS
SELECT
    p.job_id,
    x.place::integer AS place,
    coalesce(m.labels ->> x.task, x.task) AS task,
    x.adapter_id,
    CASE WHEN m.labels ? x.task THEN 'hidden adapter ' || x.adapter_id ELSE a.name END AS adapter,
    a.version,
    x.weight,
    p.base_model,
    p.policy ->> 'name' AS policy,
    p.policy ->> 'strategy' AS strategy,
    p.created_at AS finished_at,
    (p.created_at AT TIME ZONE 'UTC')::date AS day
FROM loracomp.prediction AS p
CROSS JOIN loracomp.task_mask AS m
CROSS JOIN LATERAL unnest(p.composed_tasks, p.adapter_ids, p.adapter_weights)
WITH ORDINALITY AS x (task, adapter_id, weight, place)
LEFT JOIN loracomp.adapter AS a ON x.adapter_id = a.id;
COMMENT ON VIEW bi.composed_adapter IS 'Fact: a row for every adapter that took part in an answer.';
COMMENT ON COLUMN bi.composed_adapter.job_id IS 'Number of the job; joins with bi.prediction.';
COMMENT ON COLUMN bi.composed_adapter.place IS '1 is the heaviest adapter of the job.';
COMMENT ON COLUMN bi.composed_adapter.task IS 'Task that the adapter was trained for.';
COMMENT ON COLUMN bi.composed_adapter.adapter_id IS 'Number of the adapter.';
COMMENT ON COLUMN bi.composed_adapter.adapter IS 'Its name; null where it was removed since.';
COMMENT ON COLUMN bi.composed_adapter.version IS 'Its version; null where it was removed since.';
COMMENT ON COLUMN bi.composed_adapter.weight IS 'Its weight, 0 to 1; the weights of a job sum to 1.';
COMMENT ON COLUMN bi.composed_adapter.base_model IS 'Frozen language model that it was composed into.';
COMMENT ON COLUMN bi.composed_adapter.policy IS 'Name of the settings of routing and merging.';
COMMENT ON COLUMN bi.composed_adapter.strategy IS 'How the job''s adapters were merged.';
COMMENT ON COLUMN bi.composed_adapter.finished_at IS 'When the job was answered.';
COMMENT ON COLUMN bi.composed_adapter.day IS 'Day of the answer, in UTC; joins with bi.dim_date.';

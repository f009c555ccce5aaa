-- Adapters that were used for answers.

-- Reads only, with its owner's rights.
CREATE VIEW bi.composed_adapter AS
SELECT
    p.job_id,
    x.ordinal::integer AS ordinal,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> x.task, x.task) AS task,
    x.adapter_id,
    loracomp.masked_adapter(a.name, x.task, x.adapter_id, (SELECT m.labels FROM loracomp.task_mask AS m)) AS adapter,
    a.version,
    x.weight,
    p.base_model,
    p.policy_settings ->> 'name' AS policy,
    p.policy_settings ->> 'strategy' AS strategy,
    p.created_at AS finished_at,
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    now() AS as_of
FROM loracomp.prediction AS p
CROSS JOIN LATERAL unnest(p.composed_tasks, p.adapter_ids, p.adapter_weights)
WITH ORDINALITY AS x (task, adapter_id, weight, ordinal)
LEFT JOIN loracomp.adapter AS a ON x.adapter_id = a.id;
COMMENT ON VIEW bi.composed_adapter IS
'Fact: a row for every adapter that was used for an answer, or got a weight in a job of kind route, which composes nothing.';
SELECT loracomp.copy_comments('bi.composed_adapter', 'loracomp.composed_adapter', 'bi.prediction');

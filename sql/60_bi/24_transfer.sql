-- Reads only, with its owner's rights.
CREATE VIEW bi.transfer AS
SELECT
    g.adapter_id,
    CASE WHEN m.labels ? o.name THEN 'hidden adapter ' || a.id ELSE a.name || '@' || a.version END AS adapter,
    coalesce(m.labels ->> o.name, o.name) AS adapter_task,
    a.status AS adapter_status,
    b.name AS base_model,
    coalesce(m.labels ->> t.name, t.name) AS task,
    t.family,
    g.n,
    g.mean_gain,
    g.standard_error,
    g.accuracy,
    g.base_accuracy,
    g.measured_at,
    now() AS as_of
FROM (
    SELECT
        x.task_id,
        u.adapter_id,
        count(*) AS n,
        avg(u.gain::double precision) AS mean_gain,
        stddev_samp(u.gain::double precision) / sqrt(count(*)) AS standard_error,
        avg(u.is_right::integer)::double precision AS accuracy,
        avg(x.base_is_right::integer)::double precision AS base_accuracy,
        max(x.measured_at) AS measured_at
    FROM loracomp.measurement AS x
    CROSS JOIN LATERAL unnest(x.adapter_ids, x.gains, x.are_right) AS u (adapter_id, gain, is_right)
    GROUP BY x.task_id, u.adapter_id
) AS g
INNER JOIN loracomp.adapter AS a ON g.adapter_id = a.id
INNER JOIN loracomp.task AS o ON a.task_id = o.id
INNER JOIN loracomp.task AS t ON g.task_id = t.id
INNER JOIN loracomp.base_model AS b ON a.base_model_id = b.id
CROSS JOIN loracomp.task_mask AS m;
COMMENT ON VIEW bi.transfer IS
'What each adapter is worth on each task: a row for every adapter version and task whose examples it was measured on.';
COMMENT ON COLUMN bi.transfer.adapter_id IS 'Number of this version of the adapter; joins with bi.dim_adapter.';
COMMENT ON COLUMN bi.transfer.adapter IS
'Its name and version, such as rte@2, or its label where its task is hidden from the reader.';
COMMENT ON COLUMN bi.transfer.adapter_task IS 'Task that it was trained for.';
COMMENT ON COLUMN bi.transfer.adapter_status IS 'staged, active or retired.';
COMMENT ON COLUMN bi.transfer.base_model IS 'Frozen language model that it belongs to.';
COMMENT ON COLUMN bi.transfer.task IS 'Task of the examples.';
COMMENT ON COLUMN bi.transfer.family IS 'Kind of that task.';
COMMENT ON COLUMN bi.transfer.n IS 'Examples that it was measured on; it has learnt from none of them.';
COMMENT ON COLUMN bi.transfer.mean_gain IS
'Mean gain: log-probability of the right answer under the adapter minus the base model''s, in nats.';
COMMENT ON COLUMN bi.transfer.standard_error IS 'Of mean_gain; null for one example.';
COMMENT ON COLUMN bi.transfer.accuracy IS 'Share of the examples with choices that it has right; null where none has choices.';
COMMENT ON COLUMN bi.transfer.base_accuracy IS 'The same of the base model alone, on the same examples.';
COMMENT ON COLUMN bi.transfer.measured_at IS 'When one of them was measured last.';
COMMENT ON COLUMN bi.transfer.as_of IS 'Up to when it counts: now, for it is live.';

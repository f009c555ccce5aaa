-- Reads only, with its owner's rights.
CREATE VIEW bi.transfer AS
SELECT
    g.adapter_id,
    loracomp.masked_adapter(
        a.name || '@' || a.version, o.name, a.id, (SELECT m.labels FROM loracomp.task_mask AS m)
    ) AS adapter,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> o.name, o.name) AS adapter_task,
    a.status AS adapter_status,
    b.name AS base_model,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> t.name, t.name) AS task,
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
INNER JOIN loracomp.base_model AS b ON a.base_model_id = b.id;
COMMENT ON VIEW bi.transfer IS
'How much each adapter improves answers on each task: a row for every adapter version and task that was measured.';
COMMENT ON COLUMN bi.transfer.adapter IS
'Name and version of the adapter, such as rte@2, or a label if its task is hidden from the reader.';
COMMENT ON COLUMN bi.transfer.adapter_task IS 'Task that the adapter was trained for.';
COMMENT ON COLUMN bi.transfer.task IS 'Task of the measured examples.';
COMMENT ON COLUMN bi.transfer.n IS 'Number of measured examples, none of which the adapter was trained on.';
COMMENT ON COLUMN bi.transfer.mean_gain IS
'Mean gain: log-probability of the right answer under the adapter minus the base model''s, in nats.';
COMMENT ON COLUMN bi.transfer.standard_error IS 'Standard error of mean_gain; null if n is 1.';
COMMENT ON COLUMN bi.transfer.accuracy IS 'Share of the examples with choices that the adapter answers correctly; null if none has choices.';
COMMENT ON COLUMN bi.transfer.base_accuracy IS 'Share of the same examples that the base model alone answers correctly.';
COMMENT ON COLUMN bi.transfer.measured_at IS 'Time of the newest of these measurements.';
COMMENT ON COLUMN bi.transfer.adapter_status IS
'staged: checked, but not used yet. active: used for jobs. retired: no longer used, but kept for replay.';
SELECT loracomp.copy_comments('bi.transfer', 'bi.dim_adapter', 'bi.prediction');

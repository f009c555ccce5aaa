-- Reads only, with its owner's rights.
CREATE VIEW bi.dim_adapter AS
SELECT
    a.id AS adapter_id,
    loracomp.masked_adapter(a.name, t.name, a.id, (SELECT m.labels FROM loracomp.task_mask AS m)) AS adapter,
    a.version,
    loracomp.masked_adapter(
        a.name || '@' || a.version, t.name, a.id, (SELECT m.labels FROM loracomp.task_mask AS m)
    ) AS label,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> t.name, t.name) AS task,
    t.family,
    b.name AS base_model,
    a.status,
    a.rank,
    a.alpha,
    a.use_rslora,
    a.scaling,
    a.parameter_count,
    a.byte_count,
    CASE WHEN NOT (SELECT m.labels FROM loracomp.task_mask AS m) ? t.name THEN a.sha256 END AS sha256,
    a.created_by::text AS created_by,
    a.created_at,
    a.activated_at,
    a.retired_at
FROM loracomp.adapter AS a
INNER JOIN loracomp.task AS t ON a.task_id = t.id
INNER JOIN loracomp.base_model AS b ON a.base_model_id = b.id;
COMMENT ON VIEW bi.dim_adapter IS
'Dimension: a row for every version of an adapter. bi.composed_adapter joins it by adapter_id.';
COMMENT ON COLUMN bi.dim_adapter.adapter_id IS 'Key: id of this version of the adapter.';
COMMENT ON COLUMN bi.dim_adapter.adapter IS
'Name of the adapter, or a label if its task is hidden from the reader.';
COMMENT ON COLUMN bi.dim_adapter.label IS 'Name and version of the adapter, such as rte@2.';
COMMENT ON COLUMN bi.dim_adapter.task IS 'Task that the adapter was trained for.';
COMMENT ON COLUMN bi.dim_adapter.base_model IS 'Base model that the adapter was trained for.';
COMMENT ON COLUMN bi.dim_adapter.sha256 IS
'Sha256 of the adapter''s file, as in traces; null if its task is hidden from the reader.';
COMMENT ON COLUMN bi.dim_adapter.created_by IS 'Database role that registered the adapter.';
COMMENT ON COLUMN bi.dim_adapter.created_at IS 'When the adapter was registered.';
SELECT loracomp.copy_comments('bi.dim_adapter', 'loracomp.adapter', 'loracomp.task');

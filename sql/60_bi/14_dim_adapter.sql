-- Reads only, with its owner's rights.
CREATE VIEW bi.dim_adapter AS
SELECT
    a.id AS adapter_id,
    CASE WHEN m.labels ? t.name THEN 'hidden adapter ' || a.id ELSE a.name END AS adapter,
    a.version,
    CASE WHEN m.labels ? t.name THEN 'hidden adapter ' || a.id ELSE a.name || '@' || a.version END AS label,
    coalesce(m.labels ->> t.name, t.name) AS task,
    t.family,
    b.name AS base_model,
    a.status,
    a.rank,
    a.alpha,
    a.use_rslora,
    a.scaling,
    cardinality(a.target_modules) AS target_module_count,
    a.parameter_count,
    a.byte_count,
    CASE WHEN NOT m.labels ? t.name THEN a.sha256 END AS sha256,
    a.created_by::text AS created_by,
    a.created_at,
    a.activated_at,
    a.retired_at
FROM loracomp.adapter AS a
INNER JOIN loracomp.task AS t ON a.task_id = t.id
INNER JOIN loracomp.base_model AS b ON a.base_model_id = b.id
CROSS JOIN loracomp.task_mask AS m;
COMMENT ON VIEW bi.dim_adapter IS
'Dimension: a row for every version of an adapter. bi.composed_adapter joins it by adapter_id.';
COMMENT ON COLUMN bi.dim_adapter.adapter_id IS 'Number of this version of the adapter. Key.';
COMMENT ON COLUMN bi.dim_adapter.adapter IS
'Name of the adapter, or its label where its task is hidden from the reader.';
COMMENT ON COLUMN bi.dim_adapter.label IS 'Name and version in one, such as rte@2.';
COMMENT ON COLUMN bi.dim_adapter.task IS 'Task that it was trained for.';
COMMENT ON COLUMN bi.dim_adapter.family IS 'Kind of that task.';
COMMENT ON COLUMN bi.dim_adapter.base_model IS 'Frozen language model that it belongs to.';
COMMENT ON COLUMN bi.dim_adapter.target_module_count IS 'Modules of the base model that it changes.';
COMMENT ON COLUMN bi.dim_adapter.sha256 IS
'Of its file; traces name it. Null where its task is hidden from the reader.';
COMMENT ON COLUMN bi.dim_adapter.created_by IS 'Database role that registered it.';
COMMENT ON COLUMN bi.dim_adapter.created_at IS 'When it was registered.';

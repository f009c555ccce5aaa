-- Reads only, with its owner's rights.
CREATE VIEW bi.dim_base_model AS
SELECT
    b.name AS base_model,
    b.source,
    b.revision,
    b.architecture,
    b.context_length,
    b.parameter_count,
    b.is_default,
    b.created_at,
    b.has_chat_template,
    b.fingerprint,
    (SELECT count(*) FROM loracomp.adapter AS a WHERE a.base_model_id = b.id AND a.status = 'active') AS active_adapters
FROM loracomp.base_model AS b;
COMMENT ON VIEW bi.dim_base_model IS 'Dimension: a row for every base model (frozen language model). Facts join it by base_model.';
COMMENT ON COLUMN bi.dim_base_model.base_model IS 'Key: name of the base model.';
COMMENT ON COLUMN bi.dim_base_model.created_at IS 'When the base model was registered.';
COMMENT ON COLUMN bi.dim_base_model.active_adapters IS 'Number of active adapters for this base model.';
SELECT loracomp.copy_comments('bi.dim_base_model', 'loracomp.base_model');

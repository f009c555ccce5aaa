-- drop: DROP VIEW IF EXISTS bi.dim_base_model
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
    b.created_at
FROM loracomp.base_model AS b;
COMMENT ON VIEW bi.dim_base_model IS 'Dimension: a row for every frozen language model. Facts join it by base_model.';
COMMENT ON COLUMN bi.dim_base_model.base_model IS 'Name of the model. Key.';
COMMENT ON COLUMN bi.dim_base_model.source IS 'Where it comes from.';
COMMENT ON COLUMN bi.dim_base_model.revision IS 'Revision at its source; null where that has none.';
COMMENT ON COLUMN bi.dim_base_model.architecture IS 'Class of the model.';
COMMENT ON COLUMN bi.dim_base_model.context_length IS 'Longest input with its answer, in tokens.';
COMMENT ON COLUMN bi.dim_base_model.parameter_count IS 'Parameters of the model.';
COMMENT ON COLUMN bi.dim_base_model.is_default IS 'Whether jobs that name no model mean this one.';
COMMENT ON COLUMN bi.dim_base_model.created_at IS 'When it was registered.';

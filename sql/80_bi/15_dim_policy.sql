-- Reads only, with its owner's rights.
CREATE VIEW bi.dim_policy AS
SELECT
    p.name AS policy,
    p.description,
    p.router,
    p.k,
    p.routing_temperature,
    p.routing_top_p,
    p.max_adapters,
    p.min_similarity,
    p.weighting,
    p.strategy,
    p.density,
    p.choice_normalization,
    p.created_at,
    p.updated_at,
    p.min_share,
    p.gain_prior,
    p.gain_margin,
    p.chat_template,
    p.calibration_rows,
    p.text_adapters
FROM loracomp.policy AS p;
COMMENT ON VIEW bi.dim_policy IS
'Dimension: a row for every policy, with its current settings. '
'Facts join it by policy. Use a left join, because reports keep the names of policies that were deleted or renamed.';
COMMENT ON COLUMN bi.dim_policy.policy IS 'Key: name of the policy.';
COMMENT ON COLUMN bi.dim_policy.created_at IS 'When the policy was created.';
COMMENT ON COLUMN bi.dim_policy.routing_temperature IS 'Temperature of the softmax over similarities.';
COMMENT ON COLUMN bi.dim_policy.routing_top_p IS
'Nucleus sampling: the most probable tasks are kept until their probabilities add up to this.';
SELECT loracomp.copy_comments('bi.dim_policy', 'loracomp.policy');

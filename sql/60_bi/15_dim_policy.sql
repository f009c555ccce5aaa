-- drop: DROP VIEW IF EXISTS bi.dim_policy
-- Reads only, with its owner's rights.
CREATE VIEW bi.dim_policy AS
SELECT
    p.name AS policy,
    p.description,
    p.router,
    p.k,
    p.temperature,
    p.aggregation,
    p.nucleus,
    p.top_p,
    p.max_adapters,
    p.min_similarity,
    p.weighting,
    p.strategy,
    p.density,
    p.seed,
    p.choice_normalization,
    p.rescale,
    p.contrast,
    p.created_at,
    p.updated_at,
    p.min_share
FROM loracomp.policy AS p;
COMMENT ON VIEW bi.dim_policy IS
'Dimension: a row for every policy, with its settings as they are now; bi.prediction_wide has them as they were. '
'Facts join it by policy.';
COMMENT ON COLUMN bi.dim_policy.policy IS 'Name of the policy. Key.';
COMMENT ON COLUMN bi.dim_policy.description IS 'What it is for.';
COMMENT ON COLUMN bi.dim_policy.router IS
'How tasks are chosen: retrieval; or a control: own_task, random, random_parameters, base.';
COMMENT ON COLUMN bi.dim_policy.k IS 'Training examples to retrieve.';
COMMENT ON COLUMN bi.dim_policy.temperature IS 'Of the softmax over similarities.';
COMMENT ON COLUMN bi.dim_policy.aggregation IS 'How examples'' shares become a task''s: softmax_sum, mean, max, vote.';
COMMENT ON COLUMN bi.dim_policy.nucleus IS 'Whether the nucleus is taken over tasks or over examples.';
COMMENT ON COLUMN bi.dim_policy.top_p IS 'Probability that the nucleus must reach.';
COMMENT ON COLUMN bi.dim_policy.max_adapters IS 'Adapters in a mix at most.';
COMMENT ON COLUMN bi.dim_policy.min_similarity IS 'Below it nothing is composed.';
COMMENT ON COLUMN bi.dim_policy.weighting IS 'similarity: by probability. uniform: all alike.';
COMMENT ON COLUMN bi.dim_policy.strategy IS 'How adapters are merged.';
COMMENT ON COLUMN bi.dim_policy.density IS 'Share of entries that ties, magnitude_prune and dare_* keep.';
COMMENT ON COLUMN bi.dim_policy.seed IS 'Of masks and of random choices.';
COMMENT ON COLUMN bi.dim_policy.choice_normalization IS
'What a choice''s log-likelihood is divided by: none, characters, tokens.';
COMMENT ON COLUMN bi.dim_policy.rescale IS 'Whether the mix is scaled to the norm of the exact weighted sum.';
COMMENT ON COLUMN bi.dim_policy.contrast IS
'How many times the base model''s log-likelihood of a choice is taken off the mix''s; 0 asks the mix alone.';
COMMENT ON COLUMN bi.dim_policy.created_at IS 'When it was made.';
COMMENT ON COLUMN bi.dim_policy.updated_at IS 'When it was last changed.';
COMMENT ON COLUMN bi.dim_policy.min_share IS
'A task whose weight would be less is left out, and the others share it; the most probable always stays.';

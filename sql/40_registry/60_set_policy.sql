-- drop: DROP FUNCTION IF EXISTS loracomp.set_policy(text, jsonb)
-- Changes the settings that are given of a policy; makes the policy, with defaults for the rest, if there is none.
CREATE FUNCTION loracomp.set_policy(name text, settings jsonb) RETURNS loracomp.policy
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    before loracomp.policy;
    after loracomp.policy;
    unknown text;
BEGIN
    IF jsonb_typeof(settings) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'settings must be a JSON object' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT string_agg(s.key, ', ') INTO unknown
    FROM jsonb_object_keys(settings) AS s (key)
    WHERE s.key IN ('name', 'created_at', 'updated_at')
        OR NOT to_jsonb(jsonb_populate_record(NULL::loracomp.policy, '{}')) ? s.key;
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'a policy has no setting %', unknown
            USING HINT = 'loracomp policy show default lists the settings';
    END IF;
    INSERT INTO loracomp.policy (name) VALUES (set_policy.name) ON CONFLICT (name) DO NOTHING;
    SELECT * INTO before FROM loracomp.policy AS p WHERE p.name = set_policy.name FOR UPDATE;
    after := jsonb_populate_record(before, settings);
    UPDATE loracomp.policy AS p SET
        description = after.description, router = after.router, k = after.k, temperature = after.temperature,
        aggregation = after.aggregation, nucleus = after.nucleus, top_p = after.top_p,
        max_adapters = after.max_adapters, min_similarity = after.min_similarity, weighting = after.weighting,
        strategy = after.strategy, density = after.density, seed = after.seed,
        choice_normalization = after.choice_normalization, rescale = after.rescale,
        contrast = after.contrast, min_share = after.min_share, updated_at = now()
    WHERE p.name = set_policy.name
    RETURNING * INTO after;
    RETURN after;
END
$$;
COMMENT ON FUNCTION loracomp.set_policy IS
'Sets the given settings of a policy, and makes it if there is none. Traces keep the settings that jobs ran with.';

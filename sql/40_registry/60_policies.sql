-- Policies: named settings of routing and merging.
--   set_policy
--   list_policies
--   policy_at                   as it was at a time, from the audit

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
        top_p = after.top_p, max_adapters = after.max_adapters, min_similarity = after.min_similarity,
        weighting = after.weighting, strategy = after.strategy, density = after.density, seed = after.seed,
        choice_normalization = after.choice_normalization, contrast = after.contrast, min_share = after.min_share,
        gain_prior = after.gain_prior, gain_margin = after.gain_margin, updated_at = now()
    WHERE p.name = set_policy.name
    RETURNING * INTO after;
    RETURN after;
END
$$;
COMMENT ON FUNCTION loracomp.set_policy IS
'Sets the given settings of a policy, and makes it if there is none. Traces keep the settings that jobs ran with.';

-- Reads policies: one, or all where the name is null.
CREATE FUNCTION loracomp.list_policies(name text DEFAULT NULL) RETURNS SETOF loracomp.policy
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT * FROM loracomp.policy AS p
WHERE p.name = coalesce(list_policies.name, p.name)
ORDER BY p.name <> 'default', p.name;
END;
COMMENT ON FUNCTION loracomp.list_policies IS 'Policies with all their settings, the default first.';

-- Reads the audit: what the last change until then left; where there was none, what the first change since found; where
-- there is none either, the policy as it is. A renaming ends the one name and begins the other.
CREATE FUNCTION loracomp.policy_at(name text, at timestamptz) RETURNS SETOF loracomp.policy
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    WITH event AS (
        SELECT
            e.id, e.at <= policy_at.at AS is_past,
            CASE WHEN e.before ->> 'name' = policy_at.name THEN e.before END AS before,
            CASE WHEN e.after ->> 'name' = policy_at.name THEN e.after END AS after
        FROM loracomp.audit_event AS e
        WHERE e.entity = 'policy' AND policy_at.name IN (e.before ->> 'name', e.after ->> 'name')
    ),
    stored AS (
        (SELECT 1 AS turn, e.after AS policy FROM event AS e WHERE e.is_past ORDER BY e.id DESC LIMIT 1)
        UNION ALL
        (SELECT 2, e.before FROM event AS e WHERE NOT e.is_past ORDER BY e.id LIMIT 1)
        UNION ALL
        SELECT 3, to_jsonb(p) FROM loracomp.policy AS p WHERE p.name = policy_at.name
    ),
    -- Null is an answer: it had been deleted, or was not there yet.
    found AS (SELECT s.turn, s.policy FROM stored AS s ORDER BY s.turn LIMIT 1)
    SELECT p.*
    FROM found AS f
    CROSS JOIN LATERAL jsonb_populate_record(NULL::loracomp.policy, f.policy) AS p
    -- What an event left was there, whatever an administrator has made of created_at.
    WHERE f.policy IS NOT NULL AND (f.turn = 1 OR p.created_at <= policy_at.at);
$$;
COMMENT ON FUNCTION loracomp.policy_at IS
'A policy as it was at a time; no row where it was not there. A setting that came with a later release is null.';

-- Policies: named settings of routing and merging.
--   set_policy
--     with_settings             20_routing/10_task_weights.sql
--   trigger keep_default_policy   refuses to delete or rename the policy of jobs that name none

-- Changes the given settings of a policy. If there is no such policy, creates it, with defaults for the other settings.
CREATE FUNCTION loracomp.set_policy(name text, settings jsonb) RETURNS loracomp.policy
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    before loracomp.policy;
    after loracomp.policy;
    known CONSTANT text[] := ARRAY(
        SELECT a.attname FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = 'loracomp.policy'::regclass AND a.attnum > 0 AND NOT a.attisdropped
            AND a.attname NOT IN ('name', 'created_at', 'updated_at')
        ORDER BY a.attnum
    );
BEGIN
    INSERT INTO loracomp.policy (name) VALUES (set_policy.name) ON CONFLICT (name) DO NOTHING;
    SELECT * INTO before FROM loracomp.policy AS p WHERE p.name = set_policy.name FOR UPDATE;
    after := loracomp.with_settings(before, settings, known);
    UPDATE loracomp.policy AS p SET
        description = after.description, router = after.router, k = after.k, temperature = after.temperature,
        top_p = after.top_p, max_adapters = after.max_adapters, min_similarity = after.min_similarity,
        weighting = after.weighting, strategy = after.strategy, density = after.density, seed = after.seed,
        choice_normalization = after.choice_normalization, contrast = after.contrast, min_share = after.min_share,
        gain_prior = after.gain_prior, gain_margin = after.gain_margin,
        chat_template = after.chat_template, calibration_rows = after.calibration_rows, updated_at = now()
    WHERE p.name = set_policy.name
    RETURNING * INTO after;
    RETURN after;
END
$$;
COMMENT ON FUNCTION loracomp.set_policy IS
'Sets the given settings of a policy, and creates the policy if it does not exist. An error names the setting and its allowed '
'values. Traces keep the settings that jobs ran with.';

-- The owner may: the registry of another database is restored into an emptied table.
CREATE FUNCTION loracomp.keep_default_policy() RETURNS trigger
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF tg_op = 'UPDATE' AND new.name = old.name THEN
        RETURN new;
    END IF;
    IF NOT pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = tg_relid), 'usage') THEN
        RAISE EXCEPTION 'policy default can be neither deleted nor renamed: jobs that name no policy use it'
            USING ERRCODE = 'restrict_violation', HINT = 'loracomp.set_policy changes its settings';
    END IF;
    RETURN coalesce(new, old);
END
$$;
COMMENT ON FUNCTION loracomp.keep_default_policy IS
'Trigger: refuses to delete or rename the policy default, except for the owner.';

CREATE TRIGGER keep_default_policy BEFORE DELETE OR UPDATE OF name ON loracomp.policy
FOR EACH ROW WHEN (old.name = 'default') EXECUTE FUNCTION loracomp.keep_default_policy();

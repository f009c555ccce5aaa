-- Policies: named settings of routing and merging.
--   set_policy
--     with_settings             a policy with some settings replaced
--       check_setting           raises if a constraint of loracomp.policy refuses a setting
--   policy_with                 a named policy with some settings replaced
--     with_settings

-- Evaluates the constraints of the table, so that a setting's range is written in one place only. The comment of each constraint says the
-- range in words.
CREATE FUNCTION loracomp.check_setting(policy loracomp.policy, setting text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    condition text;
    allowed text;
    holds boolean;
BEGIN
    FOR condition, allowed IN
        SELECT pg_get_expr(c.conbin, c.conrelid), obj_description(c.oid, 'pg_constraint')
        FROM pg_catalog.pg_constraint AS c
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
        WHERE c.conrelid = 'loracomp.policy'::regclass AND c.contype = 'c' AND a.attname = check_setting.setting
    LOOP
        EXECUTE format('SELECT %s FROM (SELECT ($1).*) AS policy', condition) INTO holds USING check_setting.policy;
        IF NOT holds THEN
            RAISE EXCEPTION '% must be %, not %', check_setting.setting, allowed,
                to_jsonb(check_setting.policy) ->> check_setting.setting USING ERRCODE = 'check_violation';
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.check_setting IS
'Raises an error that names a setting of a policy and its allowed values, if a constraint of loracomp.policy refuses it.';

CREATE FUNCTION loracomp.with_settings(
    policy loracomp.policy,
    settings jsonb,
    known text[] DEFAULT '{
        k,routing_temperature,routing_top_p,max_adapters,min_share,weighting,gain_prior,gain_margin,calibration_rows,min_similarity
    }'
) RETURNS loracomp.policy
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    used loracomp.policy := with_settings.policy;
    setting text;
    wanted jsonb;
BEGIN
    IF jsonb_typeof(with_settings.settings) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'settings must be a JSON object, such as {"routing_top_p": 0.9}'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Replaces one setting at a time, so that an error can name the setting.
    FOR setting, wanted IN SELECT s.key, s.value FROM jsonb_each(with_settings.settings) AS s LOOP
        IF setting <> ALL (known) THEN
            RAISE EXCEPTION 'there is no setting %: the settings are %', left(setting, 100),
                array_to_string(known, ', ') USING ERRCODE = 'invalid_parameter_value';
        END IF;
        IF wanted = 'null' THEN
            RAISE EXCEPTION '% must not be null', setting
                USING ERRCODE = 'not_null_violation', HINT = 'leave it out to keep its value';
        END IF;
        BEGIN
            used := jsonb_populate_record(used, jsonb_build_object(setting, wanted));
        EXCEPTION WHEN data_exception THEN
            RAISE EXCEPTION '% must be of type %, not %', setting, (
                SELECT format_type(a.atttypid, NULL) FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = 'loracomp.policy'::regclass AND a.attname = setting
            ), left(wanted::text, 100) USING ERRCODE = 'invalid_parameter_value';
        END;
        PERFORM loracomp.check_setting(used, setting);
    END LOOP;
    RETURN used;
END
$$;
COMMENT ON FUNCTION loracomp.with_settings IS
'A policy with some of its known settings replaced, such as {"routing_top_p": 0.9}. An error names an unknown setting, or the allowed '
'values of a setting.';

CREATE FUNCTION loracomp.policy_with(policy text DEFAULT 'default', settings jsonb DEFAULT '{}') RETURNS loracomp.policy
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    used loracomp.policy;
BEGIN
    SELECT p.* INTO used FROM loracomp.policy AS p WHERE p.name = policy_with.policy;
    IF used.name IS NULL THEN
        RAISE EXCEPTION 'there is no policy %', policy_with.policy
            USING ERRCODE = 'no_data_found', HINT = concat(
                'loracomp.policy lists the existing ones, and for analysts bi.dim_policy',
                loracomp.did_you_mean(policy_with.policy, ARRAY(SELECT p.name FROM loracomp.policy AS p))
            );
    END IF;
    RETURN loracomp.with_settings(used, policy_with.settings);
END
$$;
COMMENT ON FUNCTION loracomp.policy_with IS
'The policy with this name, with some of its routing settings replaced; an argument for task_weights.';

-- Changes the given settings of a policy. If the policy does not exist, the function creates it, with defaults for the other settings.
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
    SELECT * INTO before FROM loracomp.policy AS p WHERE p.name = set_policy.name FOR NO KEY UPDATE;
    after := loracomp.with_settings(before, settings, known);
    EXECUTE format(
        'UPDATE loracomp.policy AS p SET %s, updated_at = now() WHERE p.name = $2 RETURNING p.*',
        (SELECT string_agg(format('%1$I = ($1).%1$I', s.setting), ', ') FROM unnest(known) AS s (setting))
    ) INTO after USING after, set_policy.name;
    RETURN after;
END
$$;
COMMENT ON FUNCTION loracomp.set_policy IS
'Sets the given settings of a policy, and creates the policy if it does not exist. An error names the setting and its allowed '
'values. Traces keep the settings that jobs ran with.';

-- Adapters: staged, then active, then retired; their weights stay for replay.
--   stage_adapter
--     find_task, find_base_model
--   activate_adapter
--     compare_adapters          the new adapter vs. the active one or the base model: 55_compare_adapters.sql
--   retire_adapter
--     find_adapter              for both: an adapter by name, name@version or number
--       find_base_model
--   read_adapters               weights, for workers
--   trigger check_parts         refuses weights for an adapter that is not staged

-- Adds an adapter as staged, with the next version of its name; its weights follow in the same transaction, by COPY. If the task already
-- has an adapter of this name that computes the same (with the same digest), that adapter is returned, whatever its status, with created =
-- false.
CREATE FUNCTION loracomp.stage_adapter(
    task text,
    base_model text,
    name text,
    rank integer,
    alpha double precision,
    use_rslora boolean,
    scaling double precision,
    target_modules text[],
    parameter_count bigint,
    byte_count bigint,
    sha256 text,
    digest text,
    config jsonb,
    training jsonb
) RETURNS TABLE (adapter_id integer, adapter_version integer, created boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    owner_task CONSTANT integer := loracomp.find_task(stage_adapter.task);
    owner_base CONSTANT integer := (loracomp.find_base_model(stage_adapter.base_model)).id;
BEGIN
    IF loracomp.is_blank(stage_adapter.name) OR stage_adapter.name ~ '@|^[0-9]+$' THEN
        RAISE EXCEPTION 'name: an adapter''s name must not be blank, must not be a number and must not contain @, and is "%"',
            stage_adapter.name
            USING ERRCODE = 'invalid_parameter_value',
                HINT = 'loracomp numbers the versions after @ itself; choose another name with --name';
    END IF;
    -- Lock the base model, so that two calls don't take the same version number.
    PERFORM FROM loracomp.base_model AS b WHERE b.id = owner_base FOR NO KEY UPDATE;
    RETURN QUERY
    SELECT a.id, a.version, false
    FROM loracomp.adapter AS a
    WHERE a.task_id = owner_task AND a.base_model_id = owner_base AND a.name = stage_adapter.name
        AND a.digest = stage_adapter.digest
    ORDER BY a.version DESC LIMIT 1;
    IF found THEN
        RETURN;
    END IF;
    RETURN QUERY
    INSERT INTO loracomp.adapter AS a (
        task_id, base_model_id, name, version, rank, alpha, use_rslora, scaling, target_modules,
        parameter_count, byte_count, sha256, digest, config, training, created_by
    )
    SELECT
        owner_task, owner_base, stage_adapter.name, coalesce(max(o.version), 0) + 1, stage_adapter.rank,
        stage_adapter.alpha, stage_adapter.use_rslora, stage_adapter.scaling, stage_adapter.target_modules,
        stage_adapter.parameter_count, stage_adapter.byte_count, stage_adapter.sha256, stage_adapter.digest,
        stage_adapter.config, stage_adapter.training, loracomp.caller()
    FROM loracomp.adapter AS o
    WHERE o.base_model_id = owner_base AND o.name = stage_adapter.name
    RETURNING a.id, a.version, true;
END
$$;
COMMENT ON FUNCTION loracomp.stage_adapter IS
'Registers a checked adapter as staged; its weights must follow in the same transaction. If an adapter with the same digest exists, it is '
'returned instead.';

-- staged or retired -> active; the adapter that was active for the same task and base model is retired at the same time.
-- Raises if weights are missing, or, without force, if the new adapter is worse than the one that it would replace on measured
-- examples (p < 0.05). Does nothing if it is active. Returns the id of the retired adapter, or null.
CREATE FUNCTION loracomp.activate_adapter(adapter text, base_model text DEFAULT NULL, force boolean DEFAULT FALSE)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    chosen loracomp.adapter := loracomp.find_adapter(activate_adapter.adapter, activate_adapter.base_model);
    stored bigint;
    old loracomp.adapter;
    compared record;
    against text;
    figures text;
    before text;
BEGIN
    -- Lock the task before reading the status, so that two activations of one task wait for each other.
    PERFORM FROM loracomp.task AS t WHERE t.id = chosen.task_id FOR NO KEY UPDATE;
    SELECT * INTO chosen FROM loracomp.adapter AS a WHERE a.id = chosen.id FOR NO KEY UPDATE;
    IF chosen.status = 'active' THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(sum(octet_length(w.bytes)), 0) INTO stored
    FROM loracomp.adapter_part AS w WHERE w.adapter_id = chosen.id;
    IF stored <> chosen.byte_count THEN
        RAISE EXCEPTION 'adapter %@% should have % bytes of weights in the database, and has %',
            chosen.name, chosen.version, chosen.byte_count, stored USING HINT = 'stage the adapter again from its folder';
    END IF;
    SELECT * INTO old FROM loracomp.adapter AS a
    WHERE a.task_id = chosen.task_id AND a.base_model_id = chosen.base_model_id AND a.status = 'active' FOR NO KEY UPDATE;
    SELECT * INTO compared FROM loracomp.compare_adapters(chosen.id, old.id);
    against := coalesce(old.name || '@' || old.version, 'the base model');
    IF compared.examples > 0 THEN
        figures := format(
            '%s@%s gains %s nats over %s on %s measured examples: better on %s, worse on %s, p = %s',
            chosen.name, chosen.version, to_char(compared.mean_difference, 'FMS9990.000'), against,
            compared.examples, compared.better, compared.worse, to_char(compared.p, 'FM0.0000')
        );
        IF old.id IS NOT NULL AND compared.worse > compared.better AND compared.p < 0.05
            AND activate_adapter.force IS NOT TRUE
        THEN
            RAISE EXCEPTION '%', figures
                USING ERRCODE = 'check_violation', CONSTRAINT = 'a_new_version_must_not_be_worse',
                    HINT = 'keep the version that is active, or activate this one with force';
        END IF;
        before := loracomp.give_reason(figures || CASE WHEN activate_adapter.force THEN ' (forced)' ELSE '' END);
        IF compared.mean_difference < 0 THEN
            RAISE WARNING '%', figures USING HINT = 'to go back, ' || CASE
                WHEN old.id IS NULL THEN format('retire %s@%s', chosen.name, chosen.version) ELSE 'activate ' || against
            END;
        END IF;
    ELSE
        RAISE WARNING 'adapter %@% is not compared with %: no example is measured under both',
            chosen.name, chosen.version, against
            USING HINT = 'run loracomp task measure and then loracomp adapter measure, on rows that no version has learnt from';
    END IF;
    UPDATE loracomp.adapter AS a SET status = 'retired', retired_at = now() WHERE a.id = old.id;
    UPDATE loracomp.adapter AS a SET status = 'active', activated_at = now(), retired_at = NULL WHERE a.id = chosen.id;
    IF figures IS NOT NULL THEN
        PERFORM loracomp.give_reason(before);
    END IF;
    IF NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.task_id = chosen.task_id) THEN
        RAISE WARNING 'adapter %@% is never retrieved: its task has no embedded example', chosen.name, chosen.version
            USING HINT = 'import examples with loracomp task import';
    END IF;
    RETURN old.id;
END
$$;
COMMENT ON FUNCTION loracomp.activate_adapter IS
'Makes an adapter (a name, name@version or number) the active one of its task and base model; returns the id of the adapter that it '
'replaced. If it is worse than that one on measured examples (p < 0.05), force is needed. Weaker evidence that it is worse only raises a '
'warning.';

-- staged or active -> retired: no job is routed to it any more; it stays stored for replay. Does nothing if it is retired.
CREATE FUNCTION loracomp.retire_adapter(adapter text, base_model text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    chosen CONSTANT loracomp.adapter := loracomp.find_adapter(retire_adapter.adapter, retire_adapter.base_model);
BEGIN
    UPDATE loracomp.adapter AS a SET status = 'retired', retired_at = now() WHERE a.id = chosen.id AND a.status <> 'retired';
END
$$;
COMMENT ON FUNCTION loracomp.retire_adapter IS
'Takes an adapter out of routing. It stays stored for replay, and can be activated again.';

-- Reads one adapter by NAME (its newest version), NAME@VERSION or number. base_model null: the default; a number needs none.
CREATE FUNCTION loracomp.find_adapter(adapter text, base_model text DEFAULT NULL) RETURNS loracomp.adapter
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    number CONSTANT integer := substring(find_adapter.adapter FROM '^[0-9]{1,9}$')::integer;
    wanted_version CONSTANT integer := substring(find_adapter.adapter FROM '@([0-9]{1,9})$')::integer;
    wanted_name CONSTANT text := regexp_replace(find_adapter.adapter, '@[0-9]{1,9}$', '');
    base CONSTANT loracomp.base_model := CASE WHEN number IS NULL THEN loracomp.find_base_model(find_adapter.base_model) END;
    found_adapter loracomp.adapter;
BEGIN
    SELECT * INTO found_adapter FROM loracomp.adapter AS a
    WHERE a.id = number OR (
        a.base_model_id = base.id AND a.name = wanted_name AND a.version = coalesce(wanted_version, a.version)
    )
    ORDER BY a.version DESC LIMIT 1;
    IF found_adapter.id IS NULL THEN
        RAISE EXCEPTION '%', CASE
            WHEN number IS NULL THEN format('base model %s has no adapter %s', base.name, find_adapter.adapter)
            ELSE format('there is no adapter with id %s', number)
        END
            USING ERRCODE = 'no_data_found', HINT = concat(
                'loracomp adapter list shows the existing ones',
                loracomp.did_you_mean(wanted_name, ARRAY(
                    SELECT DISTINCT a.name FROM loracomp.adapter AS a WHERE a.base_model_id = base.id
                ))
            );
    END IF;
    RETURN found_adapter;
END
$$;
COMMENT ON FUNCTION loracomp.find_adapter IS
'An adapter by name (its newest version), name@version or number. base_model null: the default base model.';

-- Reads the weights of adapters, part by part in order, with their hash, scaling and config.
CREATE FUNCTION loracomp.read_adapters(adapter_ids integer[])
RETURNS TABLE (
    adapter_id integer, name text, version integer, sha256 text, scaling double precision, config jsonb, bytes bytea
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT a.id, a.name, a.version, a.sha256, a.scaling, a.config, w.bytes
FROM loracomp.adapter AS a
LEFT JOIN loracomp.adapter_part AS w ON a.id = w.adapter_id
WHERE a.id = ANY (read_adapters.adapter_ids)
ORDER BY a.id, w.part;
END;
COMMENT ON FUNCTION loracomp.read_adapters IS 'The safetensors files of adapters, in parts, with the sha256 that the whole file must have.';

-- activate_adapter counts the bytes, so that none may follow, except by the owner, who repairs. The adapter is locked against its activation.
CREATE FUNCTION loracomp.check_parts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    owner_status CONSTANT text := (SELECT a.status FROM loracomp.adapter AS a WHERE a.id = new.adapter_id FOR SHARE);
BEGIN
    IF owner_status <> 'staged' AND NOT pg_has_role(loracomp.caller(), current_user, 'member') THEN
        RAISE EXCEPTION 'adapter % is %, and its weights no longer change', new.adapter_id, owner_status
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'stage a new version from its folder';
    END IF;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.check_parts IS 'Trigger: refuses weights for an adapter that is active or retired.';

CREATE TRIGGER check_parts BEFORE INSERT ON loracomp.adapter_part FOR EACH ROW EXECUTE FUNCTION loracomp.check_parts();

-- Adapters: staged, then active, then retired; their weights stay for replay.
--   stage_adapter
--     find_base_model
--   activate_adapter            by number, or by name
--     compare_adapters          what both are worth on their task's measured examples
--     adapter_named
--     compare_adapters          what both are worth on their task's measured examples
--   retire_adapter              by number, or by name
--     adapter_named
--   adapter_named               one, by name@version
--     find_adapter
--   find_adapter                one, by name and version
--     find_base_model
--   list_adapters
--   read_adapters               weights, for workers

-- Adds an adapter as staged, with the next version of its name; its weights follow in the same transaction, by COPY.
-- The same file with the same scaling is the adapter that stands there, whatever its status: created is then false.
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
    config jsonb,
    training jsonb
) RETURNS TABLE (adapter_id integer, adapter_version integer, created boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    owner_task integer := (SELECT t.id FROM loracomp.task AS t WHERE t.name = stage_adapter.task);
    owner_base integer := (loracomp.find_base_model(stage_adapter.base_model)).id;
BEGIN
    IF owner_task IS NULL THEN
        RAISE EXCEPTION 'there is no task %', stage_adapter.task
            USING ERRCODE = 'no_data_found', HINT = 'loracomp task add makes one';
    END IF;
    -- One at a time for a base model, or two would take the same version.
    PERFORM FROM loracomp.base_model AS b WHERE b.id = owner_base FOR NO KEY UPDATE;
    RETURN QUERY
    SELECT a.id, a.version, false
    FROM loracomp.adapter AS a
    WHERE a.task_id = owner_task AND a.base_model_id = owner_base AND a.name = stage_adapter.name
        AND a.sha256 = stage_adapter.sha256 AND a.scaling = stage_adapter.scaling
        AND a.config -> 'alpha_pattern' IS NOT DISTINCT FROM stage_adapter.config -> 'alpha_pattern'
    ORDER BY a.version DESC LIMIT 1;
    IF found THEN
        RETURN;
    END IF;
    RETURN QUERY
    INSERT INTO loracomp.adapter AS a (
        task_id, base_model_id, name, version, rank, alpha, use_rslora, scaling, target_modules,
        parameter_count, byte_count, sha256, config, training, created_by
    )
    SELECT
        owner_task, owner_base, stage_adapter.name, coalesce(max(o.version), 0) + 1, stage_adapter.rank,
        stage_adapter.alpha, stage_adapter.use_rslora, stage_adapter.scaling, stage_adapter.target_modules,
        stage_adapter.parameter_count, stage_adapter.byte_count, stage_adapter.sha256, stage_adapter.config,
        stage_adapter.training, loracomp.caller()
    FROM loracomp.adapter AS o
    WHERE o.base_model_id = owner_base AND o.name = stage_adapter.name
    RETURNING a.id, a.version, true;
END
$$;
COMMENT ON FUNCTION loracomp.stage_adapter IS
'Registers a checked adapter as staged; its weights must follow in the same transaction. The same file is not added twice.';

-- staged or retired -> active; the one that was active for the same task and base model retires in the same step.
-- Raises if weights are missing, or if measured examples say that it is worse than the one that it would replace (p < 0.05)
-- and it is not forced. An active one stays so. Returns the id of the one that retired, or null.
CREATE FUNCTION loracomp.activate_adapter(adapter_id integer, force boolean DEFAULT FALSE) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    chosen loracomp.adapter;
    stored bigint;
    old loracomp.adapter;
    compared record;
    figures text;
    before text;
BEGIN
    -- Two activations of one task wait for each other at the task; only then is the status read.
    PERFORM FROM loracomp.task AS t
    WHERE t.id = (SELECT a.task_id FROM loracomp.adapter AS a WHERE a.id = adapter_id) FOR NO KEY UPDATE;
    SELECT * INTO chosen FROM loracomp.adapter AS a WHERE a.id = adapter_id FOR UPDATE;
    IF chosen.id IS NULL THEN
        RAISE EXCEPTION 'there is no adapter with id %', adapter_id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp adapter list names those that there are';
    END IF;
    IF chosen.status = 'active' THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(sum(octet_length(w.bytes)), 0) INTO stored
    FROM loracomp.adapter_part AS w WHERE w.adapter_id = chosen.id;
    IF stored <> chosen.byte_count THEN
        RAISE EXCEPTION 'adapter %@% has % bytes of weights in the database and should have %',
            chosen.name, chosen.version, stored, chosen.byte_count USING HINT = 'stage it again from its folder';
    END IF;
    SELECT * INTO old FROM loracomp.adapter AS a
    WHERE a.task_id = chosen.task_id AND a.base_model_id = chosen.base_model_id AND a.status = 'active' FOR UPDATE;
    SELECT * INTO compared FROM loracomp.compare_adapters(chosen.id, old.id);
    IF compared.examples > 0 THEN
        figures := format(
            '%s@%s gains %s nats over %s@%s on %s measured examples: better on %s, worse on %s, p = %s',
            chosen.name, chosen.version, to_char(compared.mean_difference, 'FMS9990.000'), old.name, old.version,
            compared.examples, compared.better, compared.worse, to_char(compared.p, 'FM0.0000')
        );
        IF compared.worse > compared.better AND compared.p < 0.05 AND activate_adapter.force IS NOT TRUE THEN
            RAISE EXCEPTION '%', figures
                USING ERRCODE = 'check_violation', CONSTRAINT = 'a_new_version_must_not_be_worse',
                    HINT = 'keep the version that is active, or activate this one by force';
        END IF;
        before := loracomp.give_reason(figures || CASE WHEN activate_adapter.force THEN ' (forced)' ELSE '' END);
    END IF;
    UPDATE loracomp.adapter AS a SET status = 'retired', retired_at = now() WHERE a.id = old.id;
    UPDATE loracomp.adapter AS a SET status = 'active', activated_at = now(), retired_at = NULL WHERE a.id = chosen.id;
    IF figures IS NOT NULL THEN
        PERFORM loracomp.give_reason(before);
    END IF;
    IF NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.task_id = chosen.task_id) THEN
        RAISE WARNING 'adapter %@% is never retrieved: its task has no embedded example', chosen.name, chosen.version
            USING HINT = 'loracomp task import loads some';
    END IF;
    RETURN old.id;
END
$$;
COMMENT ON FUNCTION loracomp.activate_adapter(integer, boolean) IS
'Makes an adapter the active one of its task and base model; returns the id of the one that it replaced. Where measured '
'examples say that it is worse than that one (compare_adapters: p < 0.05), only by force. Warns where no job can retrieve it.';

CREATE FUNCTION loracomp.activate_adapter(adapter text, base_model text DEFAULT NULL, force boolean DEFAULT FALSE)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    RETURN loracomp.activate_adapter(
        (loracomp.adapter_named(activate_adapter.adapter, activate_adapter.base_model)).id, activate_adapter.force
    );
END
$$;
COMMENT ON FUNCTION loracomp.activate_adapter(text, text, boolean) IS
'The same by name or name@version: the newest version, and of the default base model, unless given.';

-- staged or active -> retired: no job is routed to it any more; it stays for replay. A retired one stays so.
CREATE FUNCTION loracomp.retire_adapter(adapter_id integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    UPDATE loracomp.adapter AS a SET status = 'retired', retired_at = now()
    WHERE a.id = retire_adapter.adapter_id AND a.status <> 'retired';
    IF NOT found AND NOT EXISTS (SELECT FROM loracomp.adapter AS a WHERE a.id = retire_adapter.adapter_id) THEN
        RAISE EXCEPTION 'there is no adapter with id %', adapter_id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp adapter list names those that there are';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.retire_adapter(integer) IS
'Takes an adapter out of routing; it stays for replay and can be activated again.';

CREATE FUNCTION loracomp.retire_adapter(adapter text, base_model text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM loracomp.retire_adapter((loracomp.adapter_named(retire_adapter.adapter, retire_adapter.base_model)).id);
END
$$;
COMMENT ON FUNCTION loracomp.retire_adapter(text, text) IS
'The same by name or name@version: the newest version, and of the default base model, unless given.';

-- Reads one adapter by NAME or NAME@VERSION.
CREATE FUNCTION loracomp.adapter_named(adapter text, base_model text) RETURNS loracomp.adapter
LANGUAGE plpgsql STABLE SET search_path = loracomp, pg_temp
AS $$
BEGIN
    RETURN loracomp.find_adapter(
        regexp_replace(adapter_named.adapter, '@[0-9]{1,9}$', ''),
        substring(adapter_named.adapter FROM '@([0-9]{1,9})$')::integer, adapter_named.base_model
    );
END
$$;
COMMENT ON FUNCTION loracomp.adapter_named IS 'An adapter by name or name@version.';

-- Reads one adapter by name, version and base model; null means the newest version, the default base model.
CREATE FUNCTION loracomp.find_adapter(name text, version integer DEFAULT NULL, base_model text DEFAULT NULL)
RETURNS loracomp.adapter
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    base loracomp.base_model := loracomp.find_base_model(base_model);
    found_adapter loracomp.adapter;
BEGIN
    SELECT * INTO found_adapter FROM loracomp.adapter AS a
    WHERE a.base_model_id = base.id AND a.name = find_adapter.name
        AND a.version = coalesce(find_adapter.version, a.version)
    ORDER BY a.version DESC LIMIT 1;
    IF found_adapter.id IS NULL THEN
        RAISE EXCEPTION 'base model % has no adapter %', base.name, concat_ws('@', find_adapter.name, find_adapter.version)
            USING ERRCODE = 'no_data_found', HINT = 'loracomp adapter list names those that there are';
    END IF;
    RETURN found_adapter;
END
$$;
COMMENT ON FUNCTION loracomp.find_adapter IS 'The adapter of that name; null means the newest version and the default base model.';

-- Reads adapters of all statuses, newest version first.
CREATE FUNCTION loracomp.list_adapters()
RETURNS TABLE (
    adapter_id integer,
    adapter text,
    name text,
    version integer,
    status text,
    task text,
    base_model text,
    rank integer,
    alpha double precision,
    use_rslora boolean,
    modules integer,
    parameter_count bigint,
    byte_count bigint,
    sha256 text,
    created_by name,
    created_at timestamptz,
    activated_at timestamptz,
    retired_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT
    a.id,
    a.name || '@' || a.version,
    a.name,
    a.version,
    a.status,
    t.name,
    b.name,
    a.rank,
    a.alpha,
    a.use_rslora,
    cardinality(a.target_modules),
    a.parameter_count,
    a.byte_count,
    a.sha256,
    a.created_by,
    a.created_at,
    a.activated_at,
    a.retired_at
FROM loracomp.adapter AS a
INNER JOIN loracomp.task AS t ON a.task_id = t.id
INNER JOIN loracomp.base_model AS b ON a.base_model_id = b.id
ORDER BY b.name, a.name, a.version DESC;
END;
COMMENT ON FUNCTION loracomp.list_adapters IS 'Adapters of all statuses, by base model and name, newest version first; activate_adapter takes adapter_id or adapter.';

-- Reads the weights of adapters, part by part in order, with what is needed to check and to use them.
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
COMMENT ON FUNCTION loracomp.read_adapters IS 'Weights of adapters, in parts, with the hash to check them by.';

-- drop: DROP FUNCTION IF EXISTS loracomp.stage_adapter(text, text, text, integer, double precision, boolean, double precision, text[], bigint, bigint, text, jsonb, jsonb)
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

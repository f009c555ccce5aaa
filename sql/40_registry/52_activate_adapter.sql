-- drop: DROP FUNCTION IF EXISTS loracomp.activate_adapter(integer)
-- staged or retired -> active; the one that was active for the same task and base model retires in the same step.
-- Raises if weights are missing. An active one stays so. Returns the id of the one that retired, or null.
CREATE FUNCTION loracomp.activate_adapter(adapter_id integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    chosen loracomp.adapter;
    stored bigint;
    replaced integer;
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
    FROM loracomp.adapter_weights AS w WHERE w.adapter_id = chosen.id;
    IF stored <> chosen.byte_count THEN
        RAISE EXCEPTION 'adapter %@% has % bytes of weights in the database and should have %',
            chosen.name, chosen.version, stored, chosen.byte_count USING HINT = 'stage it again from its folder';
    END IF;
    UPDATE loracomp.adapter AS a SET status = 'retired', retired_at = now()
    WHERE a.task_id = chosen.task_id AND a.base_model_id = chosen.base_model_id AND a.status = 'active'
    RETURNING a.id INTO replaced;
    UPDATE loracomp.adapter AS a SET status = 'active', activated_at = now(), retired_at = NULL WHERE a.id = chosen.id;
    RETURN replaced;
END
$$;
COMMENT ON FUNCTION loracomp.activate_adapter IS
'Makes an adapter the active one of its task and base model; returns the id of the one that it replaced.';

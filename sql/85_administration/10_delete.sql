-- Deletes base models, adapters and tasks. These functions also check whether jobs or traces refer to the object to delete.
--   remove_base_model           a base model; by force also its adapters
--   delete_adapter              an adapter with its weights
--   delete_task                 a task with its examples and adapters
--   delete_policy               a policy that no job names

-- Removes a base model; with force also its adapters. Raises while jobs name it.
CREATE FUNCTION loracomp.remove_base_model(name text, force boolean DEFAULT FALSE) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    base CONSTANT loracomp.base_model := loracomp.find_base_model(coalesce(remove_base_model.name, ''));
    jobs CONSTANT bigint := (SELECT count(*) FROM loracomp.job AS j WHERE j.base_model = base.name);
    adapters CONSTANT bigint := (SELECT count(*) FROM loracomp.adapter AS a WHERE a.base_model_id = base.id);
BEGIN
    IF jobs > 0 THEN
        RAISE EXCEPTION '% jobs refer to base model %', jobs, base.name
            USING HINT = 'delete these jobs with loracomp.purge_jobs or loracomp.erase_jobs, or keep the base model: '
                'without a worker it costs nothing';
    END IF;
    IF adapters > 0 AND remove_base_model.force IS NOT TRUE THEN
        RAISE EXCEPTION 'base model % has % adapters', base.name, adapters
            USING HINT = 'force (force => true, --force) deletes the adapters too';
    END IF;
    IF base.is_default AND EXISTS (SELECT FROM loracomp.base_model AS b WHERE b.id <> base.id) THEN
        RAISE EXCEPTION 'base model % is the default', base.name
            USING HINT = 'make another one the default first: loracomp model default NAME';
    END IF;
    DELETE FROM loracomp.adapter AS a WHERE a.base_model_id = base.id;
    DELETE FROM loracomp.base_model AS b WHERE b.id = base.id;
END
$$;
COMMENT ON FUNCTION loracomp.remove_base_model IS
'Removes a base model that no job names. A base model that has adapters is removed only with force, together with its adapters.';

-- Deletes an adapter with its weights. Without force it raises an error if the adapter is active, if waiting jobs are to measure it, or if
-- a stored trace names it, because that job could then not be replayed.
CREATE FUNCTION loracomp.delete_adapter(adapter text, base_model text DEFAULT NULL, force boolean DEFAULT FALSE)
RETURNS TABLE (what text, rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    gone CONSTANT loracomp.adapter := loracomp.find_adapter(delete_adapter.adapter, delete_adapter.base_model);
    traces CONSTANT bigint := (SELECT count(*) FROM loracomp.prediction AS p WHERE gone.id = ANY (p.adapter_ids));
    waiting CONSTANT bigint := (
        SELECT count(*) FROM loracomp.job AS j
        WHERE j.kind = 'measure' AND j.finished_at IS NULL AND gone.id = ANY (j.adapter_ids)
    );
    needed CONSTANT text := concat_ws(
        ' and ',
        CASE WHEN gone.status = 'active' THEN 'is active' END,
        CASE WHEN waiting > 0 THEN format('has %s jobs waiting to measure it', waiting) END,
        CASE WHEN traces > 0 THEN format('is used in the traces of %s jobs, which could not be replayed without it', traces) END
    );
BEGIN
    IF needed <> '' AND delete_adapter.force IS NOT TRUE THEN
        RAISE EXCEPTION 'adapter %@% %', gone.name, gone.version, needed
            USING HINT = 'retire it (loracomp adapter retire), which keeps it for replay, or delete it by force (force => true, --force)';
    END IF;
    DELETE FROM loracomp.adapter AS a WHERE a.id = gone.id;
    RETURN QUERY
    VALUES
        ('adapters deleted', 1::bigint),
        ('traces kept, which name it', traces),
        ('jobs kept, which were to measure it', waiting);
END
$$;
COMMENT ON FUNCTION loracomp.delete_adapter IS
'Deletes an adapter, by name or name@version, with its weights. If it is active, or if a trace or a waiting job names it, force is '
'needed.';

-- Deletes a task with its examples, embeddings and adapters of all versions. Without force it raises an error if the task has an active
-- adapter, or if a stored trace names it, because that job could then not be replayed.
CREATE FUNCTION loracomp.delete_task(task text, force boolean DEFAULT FALSE) RETURNS TABLE (what text, rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    target integer;
    active bigint;
    traces bigint;
    examples bigint;
    adapters bigint;
BEGIN
    target := loracomp.find_task(delete_task.task);
    active := (SELECT count(*) FROM loracomp.adapter AS a WHERE a.task_id = target AND a.status = 'active');
    traces := (
        SELECT count(*) FROM loracomp.prediction AS p
        WHERE delete_task.task = ANY (p.composed_tasks) OR delete_task.task = ANY (p.example_tasks)
    );
    IF active > 0 AND delete_task.force IS NOT TRUE THEN
        RAISE EXCEPTION 'task % has an active adapter', delete_task.task
            USING HINT = 'retire it first (loracomp adapter retire), or delete the task by force (force => true, --force)';
    END IF;
    IF traces > 0 AND delete_task.force IS NOT TRUE THEN
        RAISE EXCEPTION 'the traces of % jobs refer to task %, and these jobs could not be replayed without it',
            traces, delete_task.task
            USING HINT = 'wait until purge_jobs has deleted them, or delete the task by force (force => true, --force)';
    END IF;
    DELETE FROM loracomp.adapter AS a WHERE a.task_id = target;
    GET DIAGNOSTICS adapters = ROW_COUNT;
    DELETE FROM loracomp.example AS e WHERE e.task_id = target;
    GET DIAGNOSTICS examples = ROW_COUNT;
    DELETE FROM loracomp.task AS t WHERE t.id = target;
    RETURN QUERY
    VALUES
        ('examples deleted', examples),
        ('adapters deleted', adapters),
        ('traces kept, which name it', traces);
END
$$;
COMMENT ON FUNCTION loracomp.delete_task IS
'Deletes a task with its examples and adapters. If it has an active adapter, or a trace names it, force is needed.';

-- Deletes a policy. Raises while a job or a declaration names it, and always for the policies that loracomp itself gives to jobs.
CREATE FUNCTION loracomp.delete_policy(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    used CONSTANT loracomp.policy := loracomp.policy_with(delete_policy.name);
    jobs CONSTANT bigint := (SELECT count(*) FROM loracomp.job AS j WHERE j.policy = used.name);
    declared CONSTANT bigint := (SELECT count(*) FROM loracomp.declaration AS d WHERE d.policy = used.name);
BEGIN
    IF used.name IN ('default', 'measured') THEN
        RAISE EXCEPTION 'policy % can''t be deleted, because loracomp gives it to jobs itself', used.name
            USING ERRCODE = 'restrict_violation', HINT = 'loracomp.set_policy changes its settings';
    END IF;
    IF jobs + declared > 0 THEN
        RAISE EXCEPTION '% jobs and % declarations have policy %', jobs, declared, used.name
            USING ERRCODE = 'restrict_violation',
            HINT = 'delete these jobs with loracomp.purge_jobs or loracomp.erase_jobs, and alter these declarations, or keep the policy';
    END IF;
    DELETE FROM loracomp.policy AS p WHERE p.name = used.name;
END
$$;
COMMENT ON FUNCTION loracomp.delete_policy IS 'Deletes a policy that no job or declaration names; default and measured stay.';

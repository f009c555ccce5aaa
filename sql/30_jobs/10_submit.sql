-- Submission, by INSERT into loracomp.job or by submit_job.
--   submit_job                  inserts a job, or returns the existing one if the idempotency key was used before
--   trigger check_columns       before the insert: refuses columns that the inserting role may not fill
--   trigger fill_job            after that: fills columns that were left out
--     unknown_tasks             refuses names of tasks that don't exist
--   trigger admit_jobs          after the insert: 15_limits.sql
--   trigger hint_job            after the insert: wakes idle workers

-- Inserts a job with the caller's rights. If the idempotency_key was used before, it returns that job; if an argument differs, it
-- raises. run_at is not compared, because its default differs in each call and retries change it.
CREATE FUNCTION loracomp.submit_job(
    prompt text,
    choices text[] DEFAULT NULL,
    max_new_tokens integer DEFAULT NULL,
    policy text DEFAULT 'default',
    priority integer DEFAULT 0,
    run_at timestamptz DEFAULT now(),
    idempotency_key text DEFAULT NULL,
    tags jsonb DEFAULT '{}',
    exclude_tasks text[] DEFAULT '{}',
    stop text[] DEFAULT '{}',
    base_model text DEFAULT NULL,
    kind text DEFAULT 'predict',
    max_attempts integer DEFAULT 3,
    timeout_s integer DEFAULT 600,
    temperature double precision DEFAULT 0,
    top_p double precision DEFAULT 1,
    seed bigint DEFAULT NULL,
    tasks text[] DEFAULT NULL,
    weights double precision[] DEFAULT NULL,
    chat_template boolean DEFAULT NULL,
    system_text text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    job_id bigint;
    differing text;
BEGIN
    LOOP
        INSERT INTO loracomp.job AS j (
            prompt, choices, max_new_tokens, policy, priority, run_at, idempotency_key, tags, exclude_tasks, stop,
            base_model, kind, max_attempts, timeout_s, temperature, top_p, seed, tasks, weights, chat_template,
            system_text
        ) VALUES (
            submit_job.prompt, submit_job.choices, submit_job.max_new_tokens, submit_job.policy, submit_job.priority,
            submit_job.run_at, submit_job.idempotency_key, submit_job.tags, submit_job.exclude_tasks, submit_job.stop,
            submit_job.base_model, submit_job.kind, submit_job.max_attempts, submit_job.timeout_s,
            submit_job.temperature, submit_job.top_p, submit_job.seed, submit_job.tasks, submit_job.weights,
            submit_job.chat_template, submit_job.system_text
        )
        ON CONFLICT ON CONSTRAINT idempotency_key_was_used_before DO NOTHING
        RETURNING j.id INTO job_id;
        EXIT WHEN job_id IS NOT NULL;
        -- Arguments that the caller left out have the values that the trigger filled in; 64 is that of max_new_tokens.
        SELECT
            j.id,
            (
                SELECT string_agg(a.name, ', ' ORDER BY a.place)
                FROM (VALUES
                    (1, 'prompt', j.prompt <> submit_job.prompt),
                    (2, 'choices', j.choices IS DISTINCT FROM submit_job.choices),
                    (3, 'max_new_tokens', coalesce(j.max_new_tokens, 64) <> coalesce(submit_job.max_new_tokens, 64)),
                    (4, 'policy', j.policy <> submit_job.policy),
                    (5, 'priority', j.priority <> submit_job.priority),
                    (6, 'tags', j.tags <> submit_job.tags),
                    (7, 'exclude_tasks', j.exclude_tasks <> submit_job.exclude_tasks),
                    (8, 'stop', j.stop <> submit_job.stop),
                    (9, 'base_model', j.base_model <> submit_job.base_model),
                    (10, 'kind', j.kind <> submit_job.kind),
                    (11, 'max_attempts', j.max_attempts <> submit_job.max_attempts),
                    (12, 'timeout_s', j.timeout_s <> submit_job.timeout_s),
                    (13, 'temperature', j.temperature <> submit_job.temperature),
                    (14, 'top_p', j.top_p <> submit_job.top_p),
                    (15, 'seed', j.seed IS DISTINCT FROM submit_job.seed),
                    (16, 'tasks', j.tasks IS DISTINCT FROM submit_job.tasks),
                    (17, 'weights', j.weights IS DISTINCT FROM submit_job.weights),
                    (18, 'chat_template', j.chat_template IS DISTINCT FROM submit_job.chat_template),
                    (19, 'system_text', j.system_text IS DISTINCT FROM submit_job.system_text)
                ) AS a (place, name, differs)
                WHERE a.differs
            )
        INTO job_id, differing
        FROM loracomp.job AS j
        WHERE j.submitted_by = current_user AND j.idempotency_key = submit_job.idempotency_key;
        IF differing IS NOT NULL THEN
            RAISE EXCEPTION 'idempotency_key was used before, by job %, with another %', job_id, differing
                USING ERRCODE = 'unique_violation', CONSTRAINT = 'idempotency_key_was_used_before',
                    HINT = 'send the same arguments again, or use another key';
        END IF;
        -- If the existing job was purged just now, no job is found, and the loop inserts this one.
        EXIT WHEN job_id IS NOT NULL;
    END LOOP;
    RETURN job_id;
END
$$;
COMMENT ON FUNCTION loracomp.submit_job IS
'Inserts a job and returns its id. Called again with the same idempotency_key and arguments, it returns the same id.';

-- Refuses columns that the inserting role may not fill, by name. Roles have the right to insert all of them, because Postgres's
-- own error would name only the table. It runs with the rights of the inserting role, so current_user is that role. Its search
-- path is fixed, because otherwise the role could provide its own pg_has_role.
CREATE FUNCTION loracomp.check_columns() RETURNS trigger
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    yours text[];
    untouched jsonb;
    wrong text;
BEGIN
    IF pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = tg_relid), 'usage') THEN
        RETURN new;
    END IF;
    yours := ARRAY(
        SELECT a.attname::text FROM pg_attribute AS a
        WHERE a.attrelid = 'loracomp.incoming_job'::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
    );
    untouched := jsonb_build_object(
        'status', 'queued', 'attempts', 0, 'expired_leases', 0, 'scheduled', FALSE,
        'submitted_by', current_user, 'created_at', now(), 'due', now()
    );
    IF pg_has_role(current_user, 'loracomp_admin', 'usage') THEN
        yours := yours || '{task,expected,evaluation}';
    END IF;
    SELECT string_agg(c.name, ', ' ORDER BY c.name) INTO wrong
    FROM jsonb_each(to_jsonb(new) - yours - 'id') AS c (name, given)
    WHERE c.given <> 'null' AND c.given IS DISTINCT FROM untouched -> c.name;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'column % of loracomp.job is not yours to fill', wrong
            USING ERRCODE = 'insufficient_privilege',
                HINT = 'leave it out; tags are for your own; you may fill ' || array_to_string(yours, ', ');
    END IF;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.check_columns IS
'Trigger: refuses by name what the inserting role may not fill, such as a lease, an answer or another submitter.';

-- Its name comes before fill_job, which fills some of these.
CREATE TRIGGER check_columns BEFORE INSERT ON loracomp.job FOR EACH ROW
WHEN (
    num_nonnulls(
        new.task, new.expected, new.evaluation, new.example_id, new.worker, new.claimed_together, new.lease_token,
        new.claimed_at, new.lease_expires_at, new.finished_at, new.error_code, new.error, new.is_correct,
        new.adapter_ids
    ) > 0
    -- Not as one row: that would not come back from a dump as it was.
    OR new.status IS DISTINCT FROM 'queued'
    OR new.attempts IS DISTINCT FROM 0
    OR new.expired_leases IS DISTINCT FROM 0
    OR new.scheduled IS DISTINCT FROM FALSE
    OR new.submitted_by IS DISTINCT FROM current_user
    OR new.created_at IS DISTINCT FROM now()
    OR new.due IS DISTINCT FROM now()
)
EXECUTE FUNCTION loracomp.check_columns();
COMMENT ON TRIGGER check_columns ON loracomp.job IS 'Refuses columns that are not the inserting role''s to fill.';

-- Fills columns that an INSERT may leave out, computes due again when run_at or priority changes, and refuses names of
-- policies, base models and tasks that don't exist, and tasks that are asked for and excluded. It runs with its owner's rights,
-- because it reads tables that a submitter may not read.
CREATE FUNCTION loracomp.fill_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    unknown text;
BEGIN
    IF tg_op = 'INSERT' AND NOT loracomp.caller_is_admin() THEN
        -- A run_at in the past must not bring a job to the front of the queue.
        new.run_at := greatest(new.run_at, new.created_at);
    END IF;
    -- Jobs in the background (of evaluations, of kind measure, with a priority below 0) are due 1000 minutes later (the range of
    -- priorities above 0), so that other jobs go first.
    new.scheduled := new.run_at > now();
    new.due := new.run_at - make_interval(mins => new.priority) + make_interval(
        mins => CASE WHEN new.evaluation IS NULL AND new.kind <> 'measure' AND new.priority >= 0 THEN 0 ELSE 1000 END
    );
    IF new.choices IS NULL AND new.max_new_tokens IS NULL AND new.kind = 'predict' THEN
        new.max_new_tokens := 64;
    END IF;
    IF new.base_model IS NULL THEN
        SELECT b.name INTO new.base_model FROM loracomp.base_model AS b WHERE b.is_default;
        IF new.base_model IS NULL THEN
            RAISE EXCEPTION 'base_model is not given and no base model is the default'
                USING ERRCODE = 'not_null_violation', CONSTRAINT = 'base_model_must_be_given_where_none_is_the_default',
                    HINT = 'name a base model, or let an administrator make one the default';
        END IF;
    -- The foreign keys refuse such names too, but say neither which name it was nor where the existing ones are.
    ELSIF tg_op = 'INSERT' AND NOT EXISTS (SELECT FROM loracomp.base_model AS b WHERE b.name = new.base_model) THEN
        RAISE EXCEPTION 'base_model % does not exist', left(new.base_model, 100)
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'base_model_must_exist',
                HINT = concat(
                    'the table loracomp.base_model lists the existing ones',
                    loracomp.did_you_mean(new.base_model, ARRAY(SELECT b.name FROM loracomp.base_model AS b))
                );
    END IF;
    IF tg_op = 'INSERT' AND new.policy <> 'default'
        AND NOT EXISTS (SELECT FROM loracomp.policy AS p WHERE p.name = new.policy)
    THEN
        RAISE EXCEPTION 'policy % does not exist', left(new.policy, 100)
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'policy_must_exist',
                HINT = concat(
                    'the table loracomp.policy lists the existing ones',
                    loracomp.did_you_mean(new.policy, ARRAY(SELECT p.name FROM loracomp.policy AS p))
                );
    END IF;
    IF (new.chat_template OR new.system_text IS NOT NULL) AND NOT EXISTS (
        SELECT FROM loracomp.base_model AS b WHERE b.name = new.base_model AND b.has_chat_template
    ) THEN
        RAISE EXCEPTION 'base model % has no chat template, which % asks for', new.base_model,
            CASE WHEN new.system_text IS NULL THEN 'chat_template' ELSE 'system_text' END
            USING ERRCODE = 'check_violation', CONSTRAINT = 'base_model_has_no_chat_template',
                HINT = 'leave it out, or name a base model that has one; one registered by an earlier release says so '
                    'after loracomp model add';
    END IF;
    IF new.tasks IS NOT NULL AND (tg_op = 'INSERT' OR new.tasks IS DISTINCT FROM old.tasks) THEN
        unknown := loracomp.unknown_tasks(ARRAY(SELECT u.name FROM unnest(new.tasks) AS u (name) WHERE u.name IS NOT NULL));
        IF unknown IS NOT NULL THEN
            RAISE EXCEPTION 'tasks names tasks that do not exist: %', unknown
                USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'tasks_must_exist',
                    HINT = 'loracomp.readable_tasks() lists the tasks that your jobs may use';
        END IF;
    END IF;
    -- Checked only when it is inserted or changed: a job must still run after a task that it excludes was deleted.
    IF new.exclude_tasks <> '{}' AND (tg_op = 'INSERT' OR new.exclude_tasks IS DISTINCT FROM old.exclude_tasks) THEN
        -- Only for one dimension: array_remove would raise for more, and a constraint's message is clearer.
        unknown := loracomp.unknown_tasks(
            ARRAY(SELECT u.name FROM unnest(new.exclude_tasks) AS u (name) WHERE u.name IS NOT NULL)
        );
        IF unknown IS NOT NULL THEN
            RAISE EXCEPTION 'exclude_tasks names tasks that do not exist: %', unknown
                USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'exclude_tasks_must_name_tasks',
                    HINT = 'remove these names: a task that does not exist is never used';
        END IF;
    END IF;
    -- Only when it is inserted: rename_task may give a waiting job's task the name of a deleted one that the job excludes.
    IF tg_op = 'INSERT' AND new.tasks && new.exclude_tasks THEN
        RAISE EXCEPTION 'tasks and exclude_tasks both name %', (
            SELECT string_agg(DISTINCT u.name, ', ') FROM unnest(new.tasks) AS u (name) WHERE u.name = ANY (new.exclude_tasks)
        )
            USING ERRCODE = 'check_violation', CONSTRAINT = 'tasks_and_exclude_tasks_must_differ',
                HINT = 'remove it from one of them: with tasks, no other task is used anyway';
    END IF;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.fill_job IS
'Trigger: fills due, base_model and max_new_tokens of a job, and refuses unknown names in policy, base_model, '
'exclude_tasks and tasks, and a chat template where the base model has none.';

CREATE TRIGGER fill_job
BEFORE INSERT OR UPDATE OF run_at, priority, choices, max_new_tokens, kind, base_model, exclude_tasks, tasks,
chat_template, system_text
ON loracomp.job
FOR EACH ROW EXECUTE FUNCTION loracomp.fill_job();
COMMENT ON TRIGGER fill_job ON loracomp.job IS 'Fills due, base_model and max_new_tokens.';

-- Notifies idle workers of new jobs. Workers also poll, so notifications are optional. NOTIFY holds a lock of the whole server
-- until commit: if many jobs are inserted, turn it off by ALTER DATABASE name SET loracomp.notify = 'off'. Any login can fill the
-- server's notification queue, and NOTIFY would then make the INSERT fail; so none is sent while the queue is more than half full.
CREATE FUNCTION loracomp.hint_job() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF current_setting('loracomp.notify', true) IS DISTINCT FROM 'off' AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('loracomp_job', '');
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.hint_job IS
'Trigger: notifies idle workers of new jobs, unless the setting loracomp.notify is off.';

CREATE TRIGGER hint_job AFTER INSERT ON loracomp.job FOR EACH STATEMENT EXECUTE FUNCTION loracomp.hint_job();
COMMENT ON TRIGGER hint_job ON loracomp.job IS 'Wakes idle workers.';

-- Submitting a job: by INSERT INTO loracomp.job, by submit_job, or by submit_jobs (12_submit_many.sql).
--   submitter_columns           names of the columns that submitters may fill
--   submit_job                  a job from arguments
--     insert_job                inserts a job from a JSON object, or finds the job with the same idempotency key
--       job_from_json           a row of loracomp.job, with defaults
--   triggers before the insert, in the order of their names:
--     check_columns             refuses columns that the inserting role may not fill
--     fill_defaults             fills columns that were left out
--     look_up_names             refuses names that don't exist; runs after fill_defaults, which fills one of them
--       check_name, check_tasks_exist
--     place_job                 gives the job its place in the queue: 18_places.sql
--   triggers after the insert:
--     admit_jobs                refuses jobs that would exceed the limit of the queue: 15_limits.sql
--     hint_job                  wakes idle workers
--
-- A job is validated only when it is inserted, because the submitter can read the error then; nobody could when a worker updates the job.
-- A task or a base model's chat template may be removed while the job waits. Then the worker does without the task, or fails that job.

CREATE FUNCTION loracomp.submitter_columns() RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '{
    prompt, choices, descriptions, max_new_tokens, stop, temperature, top_p, seed, policy, base_model, kind, priority, run_at, tasks,
    weights, exclude_tasks, idempotency_key, tags, max_attempts, timeout_s, chat_template, system_text, text_at
}'::text[];
COMMENT ON FUNCTION loracomp.submitter_columns IS 'Names of the columns of loracomp.job that a submitter may fill.';

-- Changes nothing. Raises if a key of the object is not a column that submitters may fill. A missing key, or null, means the column's default.
CREATE FUNCTION loracomp.job_from_json(given jsonb) RETURNS loracomp.job
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    filled loracomp.job := jsonb_populate_record(NULL::loracomp.job, '{
        "policy": "default", "kind": "predict", "priority": 0, "tags": {}, "exclude_tasks": [], "stop": [], "max_attempts": 3,
        "timeout_s": 600, "temperature": 0, "top_p": 1
    }');
    unknown text;
BEGIN
    IF jsonb_typeof(given) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'a job must be a JSON object'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'such as {"prompt": "Is it wet?"}';
    END IF;
    filled.run_at := now();
    SELECT string_agg(k.name, ', ' ORDER BY k.name) INTO unknown
    FROM jsonb_object_keys(given) AS k (name) WHERE k.name <> ALL (loracomp.submitter_columns());
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'a job has no column % that you may fill', left(unknown, 200)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'submitters may fill: ' || array_to_string(loracomp.submitter_columns(), ', ');
    END IF;
    RETURN jsonb_populate_record(filled, (
        SELECT jsonb_object_agg(g.name, g.value) FROM jsonb_each(given) AS g (name, value) WHERE g.value <> 'null'
    ));
END
$$;
COMMENT ON FUNCTION loracomp.job_from_json IS
'Makes a row of loracomp.job from a JSON object; a column that submitters may not fill is refused. For insert_job.';

-- Inserts a job with the caller's rights. If the idempotency_key was used before, it returns the earlier job, or raises if a column differs.
-- It does not compare run_at, because its default is the time of the call and retries change it; nor priority, because set_priority changes it.
CREATE FUNCTION loracomp.insert_job(job jsonb) RETURNS bigint
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    given loracomp.job := loracomp.job_from_json(job);
    inserted bigint;
    earlier loracomp.job;
    differing text;
BEGIN
    LOOP
        -- Looked up first, because a refused INSERT uses up a place in the queue.
        SELECT * INTO earlier FROM loracomp.job AS j
        WHERE j.submitted_by = current_user AND j.idempotency_key = given.idempotency_key;
        EXIT WHEN earlier.id IS NOT NULL;
        INSERT INTO loracomp.job (
            prompt, choices, descriptions, max_new_tokens, stop, temperature, top_p, seed, policy, base_model, kind, priority,
            run_at, tasks, weights, exclude_tasks, idempotency_key, tags, max_attempts, timeout_s, chat_template, system_text,
            text_at
        )
        VALUES (
            given.prompt, given.choices, given.descriptions, given.max_new_tokens, given.stop, given.temperature, given.top_p,
            given.seed, given.policy, given.base_model, given.kind, given.priority, given.run_at, given.tasks, given.weights, given.exclude_tasks,
            given.idempotency_key, given.tags, given.max_attempts, given.timeout_s, given.chat_template, given.system_text,
            given.text_at
        )
        ON CONFLICT ON CONSTRAINT idempotency_key_was_used_before DO NOTHING
        RETURNING id INTO inserted;
        IF inserted IS NOT NULL THEN
            RETURN inserted;
        END IF;
    END LOOP;
    -- fill_defaults filled these columns of the earlier job, so fill them here too before the comparison.
    given.base_model := coalesce(given.base_model, earlier.base_model);
    given.max_new_tokens := coalesce(given.max_new_tokens, 64);
    earlier.max_new_tokens := coalesce(earlier.max_new_tokens, 64);
    SELECT string_agg(g.name, ', ' ORDER BY g.name) INTO differing
    FROM jsonb_each(to_jsonb(given) - '{run_at,priority}'::text[]) AS g (name, value)
    WHERE g.name = ANY (loracomp.submitter_columns()) AND g.value <> to_jsonb(earlier) -> g.name;
    IF differing IS NOT NULL THEN
        RAISE EXCEPTION 'idempotency_key was used before, by job %, with another %', earlier.id, differing
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'idempotency_key_was_used_before',
                HINT = 'send the same arguments again, or use another key';
    END IF;
    RETURN earlier.id;
END
$$;
COMMENT ON FUNCTION loracomp.insert_job IS
'Inserts a job from a JSON object of its columns, or finds the one with its idempotency key and content; returns its id. '
'submit_job and submit_jobs call it.';

CREATE FUNCTION loracomp.submit_job(
    prompt text,
    choices text[] DEFAULT NULL,
    descriptions text[] DEFAULT NULL,
    max_new_tokens integer DEFAULT NULL,
    policy text DEFAULT NULL,
    priority integer DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    tags jsonb DEFAULT NULL,
    exclude_tasks text[] DEFAULT NULL,
    stop text[] DEFAULT NULL,
    base_model text DEFAULT NULL,
    kind text DEFAULT NULL,
    max_attempts integer DEFAULT NULL,
    timeout_s integer DEFAULT NULL,
    temperature double precision DEFAULT NULL,
    top_p double precision DEFAULT NULL,
    seed bigint DEFAULT NULL,
    tasks text[] DEFAULT NULL,
    weights double precision[] DEFAULT NULL,
    chat_template boolean DEFAULT NULL,
    system_text text DEFAULT NULL,
    text_at int4range DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
SET extra_float_digits = 1 -- numbers pass through JSON as they are
AS $$
BEGIN
    -- If an installer is at work, wait for it here: a function that is called below may just be being replaced. LOCK TABLE would be refused,
    -- because submitters have rights to some columns only.
    PERFORM FROM loracomp.job LIMIT 0;
    RETURN loracomp.insert_job(jsonb_build_object(
        'prompt', prompt, 'choices', choices, 'descriptions', descriptions, 'max_new_tokens', max_new_tokens, 'stop', stop,
        'temperature', temperature, 'top_p', top_p, 'seed', seed, 'policy', policy, 'base_model', base_model,
        'kind', kind, 'priority', priority, 'run_at', run_at, 'tasks', tasks, 'weights', weights,
        'exclude_tasks', exclude_tasks, 'idempotency_key', idempotency_key, 'tags', tags,
        'max_attempts', max_attempts, 'timeout_s', timeout_s, 'chat_template', chat_template,
        'system_text', system_text, 'text_at', text_at
    ));
END
$$;
COMMENT ON FUNCTION loracomp.submit_job IS
'Inserts a job and returns its id; null means the column''s default. Called again with the same idempotency_key and arguments, it returns '
'the same id.';

-- Names the columns that the inserting role may not fill. Roles have the INSERT privilege on all columns, because Postgres's own error
-- would name only the table. The trigger runs with the rights of the inserting role, so current_user is that role; its search path is
-- fixed, because otherwise the role could put its own pg_has_role in the way.
CREATE FUNCTION loracomp.check_columns() RETURNS trigger
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    yours text[] := loracomp.submitter_columns();
    untouched jsonb;
    wrong text;
BEGIN
    IF pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = tg_relid), 'usage') THEN
        RETURN new;
    END IF;
    untouched := jsonb_build_object(
        'status', 'queued', 'attempts', 0, 'expired_leases', 0, 'scheduled', FALSE,
        'submitted_by', current_user, 'created_at', now(), 'background', FALSE, 'watched', FALSE
    );
    IF loracomp.is_admin(current_user) THEN
        yours := yours || '{task,expected,example_id}';
    END IF;
    SELECT string_agg(c.name, ', ' ORDER BY c.name) INTO wrong
    FROM jsonb_each(to_jsonb(new) - yours - 'id') AS c (name, given)
    WHERE c.given <> 'null' AND c.given IS DISTINCT FROM untouched -> c.name;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'column % of loracomp.job is not yours to fill', wrong
            USING ERRCODE = 'insufficient_privilege',
                HINT = 'leave it out, and put values of your own into tags; you may fill ' || array_to_string(yours, ', ');
    END IF;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.check_columns IS
'Trigger: refuses by name what the inserting role may not fill, such as a lease, an answer or another submitter.';

-- Triggers run in the order of their names, so this one runs before fill_defaults and place_job, which fill some of these columns.
CREATE TRIGGER check_columns BEFORE INSERT ON loracomp.job FOR EACH ROW
WHEN (
    num_nonnulls(
        new.task, new.expected, new.example_id, new.worker, new.lease_token, new.claimed_at,
        new.lease_expires_at, new.finished_at, new.error_code, new.error, new.is_correct,
        new.adapter_ids, new.labelled_task, new.place
    ) > 0
    -- Compared one by one, because pg_dump does not restore a comparison of rows as it was.
    OR new.status IS DISTINCT FROM 'queued'
    OR new.attempts IS DISTINCT FROM 0
    OR new.expired_leases IS DISTINCT FROM 0
    OR new.scheduled IS DISTINCT FROM FALSE
    OR new.submitted_by IS DISTINCT FROM current_user
    OR new.created_at IS DISTINCT FROM now()
    OR new.background IS DISTINCT FROM FALSE
    OR new.watched IS DISTINCT FROM FALSE
)
EXECUTE FUNCTION loracomp.check_columns();

-- Fills columns that an INSERT may leave out. It runs with its owner's rights, because not every installation lets submitters read which
-- base model is the default.
CREATE FUNCTION loracomp.fill_defaults() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF NOT loracomp.caller_is_admin() THEN
        -- A run_at in the past must not bring a job to the front of the queue.
        new.run_at := greatest(new.run_at, new.created_at);
    END IF;
    IF new.choices IS NULL AND new.max_new_tokens IS NULL AND new.kind = 'predict' THEN
        new.max_new_tokens := 64;
    END IF;
    IF new.base_model IS NULL THEN
        new.base_model := (SELECT b.name FROM loracomp.base_model AS b WHERE b.is_default);
    END IF;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.fill_defaults IS 'Trigger: fills base_model and max_new_tokens of a new job where they were left out.';

CREATE TRIGGER fill_defaults BEFORE INSERT ON loracomp.job FOR EACH ROW EXECUTE FUNCTION loracomp.fill_defaults();

-- Foreign keys would refuse some of these names too, but their errors suggest no name that exists. The trigger runs with its owner's rights,
-- because it reads tables that submitters may not read.
CREATE FUNCTION loracomp.look_up_names() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF new.base_model IS NULL THEN
        RAISE EXCEPTION 'base_model is not given and no base model is the default'
            USING ERRCODE = 'not_null_violation', CONSTRAINT = 'base_model_must_be_given_where_none_is_the_default',
                HINT = 'let an administrator run loracomp library load, which brings one, or loracomp model default';
    END IF;
    PERFORM loracomp.check_name('base_model', new.base_model, ARRAY(SELECT b.name FROM loracomp.base_model AS b));
    PERFORM loracomp.check_name('policy', new.policy, ARRAY(SELECT p.name FROM loracomp.policy AS p))
    WHERE new.policy <> 'default';
    IF new.tasks && new.exclude_tasks THEN
        RAISE EXCEPTION 'tasks and exclude_tasks both name %', (
            SELECT string_agg(DISTINCT u.name, ', ') FROM unnest(new.tasks) AS u (name) WHERE u.name = ANY (new.exclude_tasks)
        )
            USING ERRCODE = 'check_violation', CONSTRAINT = 'tasks_and_exclude_tasks_must_differ',
                HINT = 'remove it from one of them: with tasks, no other task is used anyway';
    END IF;
    PERFORM loracomp.check_tasks_exist('tasks', new.tasks) WHERE new.tasks IS NOT NULL;
    PERFORM loracomp.check_tasks_exist('exclude_tasks', new.exclude_tasks) WHERE new.exclude_tasks <> '{}';
    IF (new.chat_template OR new.system_text IS NOT NULL) AND NOT EXISTS (
        SELECT FROM loracomp.base_model AS b WHERE b.name = new.base_model AND b.has_chat_template
    ) THEN
        RAISE EXCEPTION 'base model % has no chat template, which % asks for', new.base_model,
            CASE WHEN new.system_text IS NULL THEN 'chat_template' ELSE 'system_text' END
            USING ERRCODE = 'check_violation', CONSTRAINT = 'base_model_has_no_chat_template',
                HINT = 'leave it out, or name a base model that has one';
    END IF;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.look_up_names IS
'Trigger: refuses a new job that names a base model, a policy or a task that does not exist, or asks for a chat template where the base '
'model has none.';

CREATE TRIGGER look_up_names BEFORE INSERT ON loracomp.job FOR EACH ROW EXECUTE FUNCTION loracomp.look_up_names();

-- Changes nothing.
CREATE FUNCTION loracomp.check_name(field text, given text, known text[]) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF given <> ALL (known) THEN
        RAISE EXCEPTION '% % does not exist', field, left(given, 100)
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = field || '_must_exist',
                HINT = concat('the table loracomp.', field, ' lists the existing ones', loracomp.did_you_mean(given, known));
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_name IS 'Raises if a name is not known, and suggests known names that resemble it. For look_up_names.';

-- Notifications are optional, because workers and the keeper also poll. A transaction that sends one holds a lock of the whole server while it
-- commits; where many clients insert jobs, turn notifications off by ALTER DATABASE name SET loracomp.notify = 'off'. Any login can fill the
-- server's notification queue, and then NOTIFY fails; so nothing is sent while the queue is more than half full.
CREATE FUNCTION loracomp.notify(channel text, payload text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF current_setting('loracomp.notify', true) IS DISTINCT FROM 'off' AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify(channel, payload);
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.notify IS
'Sends a notification, unless the setting loracomp.notify is off or the server''s queue of notifications is half full.';

CREATE FUNCTION loracomp.hint_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM loracomp.notify('loracomp_job', '');
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.hint_job IS 'Trigger: notifies idle workers of new jobs.';

CREATE TRIGGER hint_job AFTER INSERT ON loracomp.job FOR EACH STATEMENT EXECUTE FUNCTION loracomp.hint_job();

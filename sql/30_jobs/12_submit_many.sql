-- Submission of many jobs at once, from a table or a file. Everything here runs with the caller's rights.
--   submit_jobs                 inserts the valid jobs, and returns for each other one why it was refused
--     job_from_json             a row of loracomp.job from a JSON object
--     submit_one                tries one row alone, after an INSERT of several rows was refused
--       job_from_json, submit_job
--   view incoming_job           a target for COPY and INSERT ... SELECT
--   trigger insert_incoming_job
--     job_from_json

-- Changes nothing; raises for a name that is not a column that submitters may fill. Missing columns get the table's defaults.
CREATE FUNCTION loracomp.job_from_json(given jsonb) RETURNS loracomp.job
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    columns CONSTANT text[] := '{prompt,choices,max_new_tokens,stop,temperature,top_p,seed,policy,base_model,kind,'
        'priority,run_at,tasks,weights,exclude_tasks,idempotency_key,tags,max_attempts,timeout_s,chat_template,system_text}';
    filled loracomp.job;
    unknown text;
BEGIN
    IF jsonb_typeof(given) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'a job must be a JSON object'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'such as {"prompt": "Is it wet?"}';
    END IF;
    SELECT string_agg(k.name, ', ' ORDER BY k.name) INTO unknown
    FROM jsonb_object_keys(given) AS k (name) WHERE k.name <> ALL (columns);
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'a job has no column % that you may fill', left(unknown, 200)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'submitters may fill: ' || array_to_string(columns, ', ');
    END IF;
    filled.policy := 'default';
    filled.kind := 'predict';
    filled.priority := 0;
    filled.run_at := now();
    filled.tags := '{}';
    filled.exclude_tasks := '{}';
    filled.stop := '{}';
    filled.max_attempts := 3;
    filled.timeout_s := 600;
    filled.temperature := 0;
    filled.top_p := 1;
    RETURN jsonb_populate_record(filled, given);
END
$$;
COMMENT ON FUNCTION loracomp.job_from_json IS
'Makes a row of loracomp.job from a JSON object, for submit_jobs and incoming_job; an unknown column name is refused.';

-- Inserts one job, or finds the existing one if its idempotency key was used before. If the job is refused, it returns the reason
-- instead of raising.
CREATE FUNCTION loracomp.submit_one(given jsonb, OUT job_id bigint, OUT refused text)
LANGUAGE plpgsql
AS $$
DECLARE
    j loracomp.job;
    hint text;
    rule text;
    field text;
    content jsonb;
BEGIN
    j := loracomp.job_from_json(given);
    job_id := loracomp.submit_job(
        j.prompt, j.choices, j.max_new_tokens, j.policy, j.priority, j.run_at, j.idempotency_key, j.tags,
        j.exclude_tasks, j.stop, j.base_model, j.kind, j.max_attempts, j.timeout_s, j.temperature, j.top_p, j.seed,
        j.tasks, j.weights, j.chat_template, j.system_text
    );
EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
    GET STACKED DIAGNOSTICS refused = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT, rule = CONSTRAINT_NAME, field = COLUMN_NAME;
    -- For our constraints return the name, which is a sentence, rather than Postgres's message. Names of columns keep their _.
    IF refused ~ '^(new row|insert or update) ' THEN
        refused := replace(rule, '_', ' ');
        FOR field IN SELECT k.name FROM jsonb_object_keys(given) AS k (name) LOOP
            refused := replace(refused, replace(field, '_', ' '), field);
        END LOOP;
    ELSIF sqlstate = '23502' AND field <> '' THEN
        refused := field || ' must be given';
    ELSIF sqlstate LIKE '22%' AND sqlstate <> '22023' THEN
        -- A value does not have its column's type. Postgres does not say which, so look for it.
        FOR field, content IN SELECT g.key, g.value FROM jsonb_each(given) AS g LOOP
            BEGIN
                PERFORM jsonb_populate_record(NULL::loracomp.job, jsonb_build_object(field, content));
            EXCEPTION WHEN data_exception THEN
                refused := field || ': ' || sqlerrm;
            END;
        END LOOP;
    END IF;
    refused := concat_ws('; ', refused, nullif(hint, ''));
END
$$;
COMMENT ON FUNCTION loracomp.submit_one IS 'Inserts one job; returns its id, or the reason why it was refused. For submit_jobs.';

-- Inserts jobs, each given as a JSON object of columns of loracomp.job. All rows are tried in one INSERT; if that is refused, each
-- half is tried alone, and so on, until the refused row is alone. The limits of the queue refuse all rows.
CREATE FUNCTION loracomp.submit_jobs(jobs jsonb[]) RETURNS TABLE (place bigint, job_id bigint, refused text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    pending int8range[] := ARRAY[int8range(1, cardinality(jobs) + 1)];
    part int8range;
    middle bigint;
    ids bigint[];
    reason text;
BEGIN
    WHILE cardinality(pending) > 0 LOOP
        part := pending[cardinality(pending)];
        pending := trim_array(pending, 1);
        CONTINUE WHEN isempty(part);
        reason := NULL;
        BEGIN
            -- Ids are assigned in the order of the rows.
            WITH inserted AS (
                INSERT INTO loracomp.job AS i (
                    prompt, choices, max_new_tokens, policy, priority, run_at, idempotency_key, tags, exclude_tasks,
                    stop, base_model, kind, max_attempts, timeout_s, temperature, top_p, seed, tasks, weights,
                    chat_template, system_text
                )
                SELECT
                    r.prompt, r.choices, r.max_new_tokens, r.policy, r.priority, r.run_at, r.idempotency_key, r.tags,
                    r.exclude_tasks, r.stop, r.base_model, r.kind, r.max_attempts, r.timeout_s, r.temperature,
                    r.top_p, r.seed, r.tasks, r.weights, r.chat_template, r.system_text
                FROM generate_series(lower(part), upper(part) - 1) AS s (place)
                CROSS JOIN LATERAL loracomp.job_from_json(jobs[s.place]) AS r
                ORDER BY s.place
                RETURNING i.id
            )
            SELECT array_agg(n.id ORDER BY n.id) INTO ids FROM inserted AS n;
        EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
            IF upper(part) - lower(part) > 1 THEN
                middle := (lower(part) + upper(part)) / 2;
                pending := pending || int8range(middle, upper(part)) || int8range(lower(part), middle);
                CONTINUE;
            END IF;
            SELECT ARRAY[o.job_id], o.refused INTO ids, reason FROM loracomp.submit_one(jobs[lower(part)]) AS o;
        END;
        RETURN QUERY SELECT lower(part) - 1 + u.place, u.id, reason FROM unnest(ids) WITH ORDINALITY AS u (id, place);
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.submit_jobs IS
'Inserts jobs given as JSON objects. Valid jobs are inserted; returns for each its position with its id, or with the reason why '
'it was refused.';

-- COPY refuses a table with row security, but not a view with such a trigger.
CREATE VIEW loracomp.incoming_job WITH (security_invoker) AS
SELECT
    j.prompt,
    j.choices,
    j.max_new_tokens,
    j.stop,
    j.temperature,
    j.top_p,
    j.seed,
    j.policy,
    j.base_model,
    j.kind,
    j.priority,
    j.run_at,
    j.tasks,
    j.weights,
    j.exclude_tasks,
    j.idempotency_key,
    j.tags,
    j.max_attempts,
    j.timeout_s,
    j.chat_template,
    j.system_text
FROM loracomp.job AS j;
COMMENT ON VIEW loracomp.incoming_job IS
'Columns of loracomp.job that a submitter may fill; for COPY, which can''t write into a table with row-level security.';

-- Inserts the row into loracomp.job, with the caller's rights. A null becomes the column's default.
CREATE FUNCTION loracomp.insert_incoming_job() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO loracomp.job (
        prompt, choices, max_new_tokens, policy, priority, run_at, idempotency_key, tags, exclude_tasks, stop,
        base_model, kind, max_attempts, timeout_s, temperature, top_p, seed, tasks, weights, chat_template,
        system_text
    )
    SELECT
        r.prompt, r.choices, r.max_new_tokens, r.policy, r.priority, r.run_at, r.idempotency_key, r.tags,
        r.exclude_tasks, r.stop, r.base_model, r.kind, r.max_attempts, r.timeout_s, r.temperature, r.top_p, r.seed,
        r.tasks, r.weights, r.chat_template, r.system_text
    FROM loracomp.job_from_json((
        SELECT jsonb_object_agg(c.key, c.value) FROM jsonb_each(to_jsonb(new)) AS c WHERE c.value <> 'null'
    )) AS r;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.insert_incoming_job IS 'Trigger: inserts each row that is written into incoming_job as a job.';

CREATE TRIGGER insert_incoming_job INSTEAD OF INSERT ON loracomp.incoming_job
FOR EACH ROW EXECUTE FUNCTION loracomp.insert_incoming_job();
COMMENT ON TRIGGER insert_incoming_job ON loracomp.incoming_job IS 'Inserts the row as a job.';

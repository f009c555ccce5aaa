-- drop: DROP FUNCTION IF EXISTS loracomp.submit_job(text, text[], integer, text, integer, timestamptz, text, jsonb, text[], text[], text, text, integer, integer, double precision, double precision, bigint)
-- Inserts a job as the caller. The same idempotency_key again changes nothing and returns the job that is there;
-- with another payload it raises. priority, run_at, max_attempts and timeout_s say when, not what: not compared.
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
    seed bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    job_id bigint;
    same boolean;
BEGIN
    LOOP
        INSERT INTO loracomp.job AS j (
            prompt, choices, max_new_tokens, policy, priority, run_at, idempotency_key, tags, exclude_tasks, stop,
            base_model, kind, max_attempts, timeout_s, temperature, top_p, seed
        ) VALUES (
            submit_job.prompt, submit_job.choices, submit_job.max_new_tokens, submit_job.policy, submit_job.priority,
            submit_job.run_at, submit_job.idempotency_key, submit_job.tags, submit_job.exclude_tasks, submit_job.stop,
            submit_job.base_model, submit_job.kind, submit_job.max_attempts, submit_job.timeout_s,
            submit_job.temperature, submit_job.top_p, submit_job.seed
        )
        ON CONFLICT ON CONSTRAINT idempotency_key_was_used_before DO NOTHING
        RETURNING j.id INTO job_id;
        EXIT WHEN job_id IS NOT NULL;
        -- What the caller left open was filled in; 64 is what the trigger fills in for max_new_tokens.
        SELECT
            j.id,
            (j.prompt, j.choices, j.policy, j.tags, j.exclude_tasks, j.stop, j.kind, j.temperature, j.top_p, j.seed)
                IS NOT DISTINCT FROM (submit_job.prompt, submit_job.choices, submit_job.policy, submit_job.tags,
                    submit_job.exclude_tasks, submit_job.stop, submit_job.kind, submit_job.temperature,
                    submit_job.top_p, submit_job.seed)
                AND coalesce(j.max_new_tokens, 64) = coalesce(submit_job.max_new_tokens, 64)
                AND j.base_model = coalesce(submit_job.base_model, j.base_model)
        INTO job_id, same
        FROM loracomp.job AS j
        WHERE j.submitted_by = current_user AND j.idempotency_key = submit_job.idempotency_key;
        -- None is found where it was purged just now: then there is room for this one.
        EXIT WHEN same;
        IF NOT same THEN
            RAISE EXCEPTION 'idempotency_key was used before with another payload, by job %', job_id
                USING ERRCODE = 'unique_violation', CONSTRAINT = 'idempotency_key_was_used_before',
                    HINT = 'send the same payload again, or take another key';
        END IF;
    END LOOP;
    RETURN job_id;
END
$$;
COMMENT ON FUNCTION loracomp.submit_job IS
'Inserts a job and returns its id; called again with the same idempotency_key and payload, returns the same id.';

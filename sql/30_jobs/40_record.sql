-- Records predictions with their traces and ends the jobs, in one statement.
--   record_predictions          called by a worker with a batch's answers
--     succeed_jobs              ends the jobs (record_measurements calls it too)
--     wait_for_jobs             waits up to two seconds for jobs that other sessions have locked

-- running -> succeeded, and inserts the prediction with its trace, in one statement, for jobs whose token is still valid.
-- Answers and their traces from route_jobs are in the same order.
CREATE FUNCTION loracomp.record_predictions(
    answers loracomp.answer[],
    traces loracomp.route_trace[],
    device text,
    base_model text,
    base_fingerprint text,
    encoder text,
    code_version text
) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- The plan is forced to find each job by its id, because the index of leases contains many dead rows of finished jobs.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    written bigint;
    missing bigint := cardinality(answers);
BEGIN
    IF missing IS DISTINCT FROM cardinality(traces) THEN
        RAISE EXCEPTION 'answers and traces must have one element for each job' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR try IN 1..2 LOOP
        RETURN QUERY
        WITH held AS MATERIALIZED (
            SELECT a.*, j.worker, j.attempts, j.submitted_by
            FROM unnest(answers, traces) AS a -- with the attributes of both
            -- A job has a lease token only while it runs.
            JOIN loracomp.job AS j ON j.id = a.job_id AND j.lease_token = a.lease_token
            ORDER BY j.id
            FOR UPDATE OF j SKIP LOCKED
        ),
        recorded AS (
            INSERT INTO loracomp.prediction (
                example_ids, example_tasks, similarities, tasks, probabilities, weights,
                composed_tasks, adapter_ids, adapter_sha256, adapter_weights, policy_settings, fallback,
                eligible_task_count, expected_gains, chat_template, calibration_examples, job_id, output, choice_index,
                choice_scores, choice_biases, label_scores, score_weights, composition_digest, prompt_tokens,
                output_tokens, finish_reason,
                timings, batch_size, worker, device, attempt,
                base_model, base_fingerprint, encoder, code_version, submitted_by
            )
            SELECT
                h.example_ids, h.example_tasks, h.similarities, h.tasks, h.probabilities, h.weights,
                h.composed_tasks, h.adapter_ids, h.adapter_sha256, h.adapter_weights, h.policy_settings, h.fallback,
                h.eligible_task_count, h.expected_gains, h.chat_template, h.calibration_examples,
                h.job_id, h.output, h.choice_index, h.choice_scores, h.choice_biases, h.label_scores, h.score_weights,
                h.composition_digest, h.prompt_tokens, h.output_tokens, h.finish_reason,
                -- Add the time from the worker's call until the row is written to the step that the worker timed.
                h.timings || CASE WHEN jsonb_typeof(h.timings -> 'record') = 'number' THEN jsonb_build_object(
                    'record',
                    round(
                        (h.timings ->> 'record')::numeric
                        + 1000 * extract(EPOCH FROM clock_timestamp() - statement_timestamp()), 3
                    )
                ) ELSE '{}' END,
                h.batch_size, h.worker, record_predictions.device, h.attempts,
                record_predictions.base_model, record_predictions.base_fingerprint, record_predictions.encoder,
                record_predictions.code_version, h.submitted_by
            FROM held AS h
            RETURNING job_id, output
        )
        SELECT s.id
        FROM (SELECT array_agg(r.job_id) AS ids, array_agg(r.output) AS outputs FROM recorded AS r) AS a
        CROSS JOIN LATERAL loracomp.succeed_jobs(a.ids, a.outputs) AS s (id);
        GET DIAGNOSTICS written = ROW_COUNT;
        missing := missing - written;
        EXIT WHEN missing = 0 OR try = 2 OR NOT loracomp.wait_for_jobs(
            ARRAY(SELECT a.job_id FROM unnest(answers) AS a), ARRAY(SELECT a.lease_token FROM unnest(answers) AS a)
        );
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.record_predictions IS
'Writes predictions with their traces and ends their jobs, if the lease token is still valid; returns these ids.';

-- running -> succeeded, for jobs that the caller has locked, planned by the caller's settings.
CREATE FUNCTION loracomp.succeed_jobs(ids bigint[], outputs text[] DEFAULT NULL) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    RETURN QUERY
    UPDATE loracomp.job AS j SET
        status = 'succeeded', finished_at = now(), is_correct = a.output = j.expected,
        lease_token = NULL, lease_expires_at = NULL, error_code = NULL, error = NULL
    FROM unnest(succeed_jobs.ids, succeed_jobs.outputs) AS a (job_id, output)
    WHERE j.id = a.job_id
    RETURNING j.id;
END
$$;
COMMENT ON FUNCTION loracomp.succeed_jobs IS
'Ends jobs as succeeded, and notes whether their outputs are right; returns their ids. For workers'' writes.';

-- Locks the jobs whose token is still valid, and waits for locks of other sessions. Workers first write the jobs that are not
-- locked, and call this for the others. A heartbeat holds such a lock for a moment, but a submitter who cancels a job and leaves
-- the transaction open holds it for long. So the wait ends after two seconds, and the job is left until its lease expires;
-- otherwise one submitter could stop every worker.
CREATE FUNCTION loracomp.wait_for_jobs(ids bigint[], tokens bigint[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
SET lock_timeout = '2s'
AS $$
BEGIN
    PERFORM FROM unnest(wait_for_jobs.ids, wait_for_jobs.tokens) AS i (id, token)
    JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
    WHERE j.id = ANY (wait_for_jobs.ids)
    ORDER BY j.id
    FOR UPDATE OF j;
    RETURN found;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected THEN
        RETURN TRUE;
END
$$;
COMMENT ON FUNCTION loracomp.wait_for_jobs IS
'Waits up to two seconds for jobs that other sessions have locked; returns whether another try can succeed. For workers'' writes.';

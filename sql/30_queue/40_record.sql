-- Records predictions with their traces and ends the jobs, in one transaction.
--   record_predictions          called by a worker with a batch's predictions
--     hold_jobs                 30_leases.sql
--     succeed_jobs              ends the jobs (record_measurements calls it too)

-- running -> succeeded, and inserts the prediction with its trace, in one statement, for jobs whose token is still valid.
-- Answers and their traces from route_jobs are in the same order.
CREATE FUNCTION loracomp.record_predictions(
    predictions loracomp.predicted[],
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
    held CONSTANT bigint[] := loracomp.hold_jobs(
        ARRAY(SELECT a.job_id FROM unnest(predictions) AS a), ARRAY(SELECT a.lease_token FROM unnest(predictions) AS a)
    );
BEGIN
    IF cardinality(predictions) IS DISTINCT FROM cardinality(traces) THEN
        RAISE EXCEPTION 'predictions and traces must have one element for each job' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY
    WITH recorded AS (
        INSERT INTO loracomp.prediction (
            example_ids, example_tasks, similarities, tasks, probabilities, weights,
            composed_tasks, adapter_ids, adapter_sha256, adapter_weights, policy_settings, fallback,
            searched_task_count, expected_gains, chat_template, calibration_examples, job_id, output, choice_index,
            choice_scores, choice_biases, label_scores, score_weights, description_similarities, composition_digest,
            prompt_tokens, output_tokens, finish_reason,
            timings, batch_size, worker, device, attempt,
            base_model, base_fingerprint, encoder, code_version, submitted_by
        )
        SELECT
            a.example_ids, a.example_tasks, a.similarities, a.tasks, a.probabilities, a.weights,
            a.composed_tasks, a.adapter_ids, a.adapter_sha256, a.adapter_weights, a.policy_settings, a.fallback,
            a.searched_task_count, a.expected_gains, a.chat_template, a.calibration_examples,
            a.job_id, a.output, a.choice_index, a.choice_scores, a.choice_biases, a.label_scores, a.score_weights,
            a.description_similarities, a.composition_digest, a.prompt_tokens, a.output_tokens, a.finish_reason,
            -- Add the time from the worker's call until the row is written to the step that the worker timed.
            a.timings || CASE WHEN jsonb_typeof(a.timings -> 'record') = 'number' THEN jsonb_build_object(
                'record',
                round(
                    (a.timings ->> 'record')::numeric
                    + 1000 * extract(EPOCH FROM clock_timestamp() - statement_timestamp()), 3
                )
            ) ELSE '{}' END,
            a.batch_size, j.worker, record_predictions.device, j.attempts,
            record_predictions.base_model, record_predictions.base_fingerprint, record_predictions.encoder,
            record_predictions.code_version, j.submitted_by
        FROM unnest(predictions, traces) AS a -- with the attributes of both
        JOIN loracomp.job AS j ON j.id = a.job_id AND j.lease_token = a.lease_token -- a batch may contain an older attempt of a job, too
        WHERE j.id = ANY (held) -- so that no statistics, however old, lead to a plan that goes through all jobs
        RETURNING job_id, output
    )
    SELECT s.id
    FROM (SELECT array_agg(r.job_id) AS ids, array_agg(r.output) AS outputs FROM recorded AS r) AS a
    CROSS JOIN LATERAL loracomp.succeed_jobs(a.ids, a.outputs) AS s (id);
END
$$;
COMMENT ON FUNCTION loracomp.record_predictions IS
'Writes predictions with their traces and ends their jobs, if the lease token is still valid; returns these ids.';

-- running -> succeeded, for jobs that the caller has locked. The planner uses the caller's settings.
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
    WHERE j.id = a.job_id AND j.id = ANY (succeed_jobs.ids)
    RETURNING j.id;
END
$$;
COMMENT ON FUNCTION loracomp.succeed_jobs IS
'Ends jobs as succeeded, and notes whether their outputs are right; returns their ids. For workers'' writes.';

-- drop: DROP FUNCTION IF EXISTS loracomp.record_predictions(jsonb)
-- running -> succeeded, and the prediction with its trace, in one statement, for jobs whose token still holds.
-- Takes an array of objects: job_id, lease_token and the columns of loracomp.prediction.
CREATE FUNCTION loracomp.record_predictions(predictions jsonb) RETURNS SETOF bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
BEGIN ATOMIC
    WITH input AS MATERIALIZED (
        SELECT (e.value ->> 'job_id')::bigint AS id, (e.value ->> 'lease_token')::bigint AS token, e.value
        FROM jsonb_array_elements(record_predictions.predictions) AS e
    ),
    held AS MATERIALIZED (
        SELECT j.id, j.worker, j.attempts, i.value
        FROM input AS i
        JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
        WHERE j.status = 'running'
        ORDER BY j.id
        FOR UPDATE OF j
    ),
    recorded AS (
        INSERT INTO loracomp.prediction
        SELECT p.*
        FROM held AS h
        CROSS JOIN LATERAL jsonb_populate_record(
            NULL::loracomp.prediction,
            -- What the worker measured up to the call goes on until the row is written.
            jsonb_set(
                '{"example_ids": [], "example_tasks": [], "similarities": [], "tasks": [], "probabilities": [],
                "weights": [], "composed_tasks": [], "adapter_ids": [], "adapter_sha256": [], "adapter_weights": [],
                "prompt_tokens": 0, "output_tokens": 0, "timings": {}, "batch_size": 1}'::jsonb
                || h.value
                || jsonb_build_object('worker', h.worker, 'attempt', h.attempts, 'created_at', now()),
                '{timings,record}',
                to_jsonb(round(
                    coalesce((h.value #>> '{timings,record}')::numeric, 0)
                    + 1000 * extract(EPOCH FROM clock_timestamp() - statement_timestamp()), 3
                )),
                create_if_missing => FALSE
            )
        ) AS p
        RETURNING job_id
    )
    UPDATE loracomp.job AS j SET
        status = 'succeeded',
        finished_at = now(),
        lease_token = NULL,
        lease_expires_at = NULL,
        error_code = NULL,
        error = NULL
    FROM recorded AS r
    WHERE j.id = r.job_id
    RETURNING j.id;
END;
COMMENT ON FUNCTION loracomp.record_predictions IS
'Writes predictions with their traces and ends their jobs, where the lease token still holds; returns those ids.';

-- drop: DROP FUNCTION IF EXISTS loracomp.record_predictions(json, bigint[], halfvec[], json)
-- running -> succeeded, and the prediction with its trace, in one statement, for jobs whose token still holds.
-- Takes an array of objects with the columns of loracomp.prediction; beside it, one for each in the same order, the lease
-- token that its claim returned and its embedding, which as text would be most of what there is to read; and columns that
-- all of them have in common, so that these are read once. json and not jsonb: it is read once.
CREATE FUNCTION loracomp.record_predictions(
    predictions json, tokens bigint[], embeddings halfvec[] DEFAULT NULL, shared json DEFAULT '{}'
) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- Each job by its number, whatever the statistics say: many that ran lie dead in the index of leases.
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    common loracomp.prediction;
    written bigint;
    missing bigint := cardinality(record_predictions.tokens);
BEGIN
    IF json_typeof(record_predictions.predictions) <> 'array' THEN
        RAISE EXCEPTION 'predictions must be a JSON array of objects' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF json_typeof(record_predictions.shared) <> 'object' THEN
        RAISE EXCEPTION 'shared must be a JSON object' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    common := json_populate_record(NULL::loracomp.prediction, coalesce(record_predictions.shared, '{}'));
    FOR attempt IN 1..2 LOOP
        RETURN QUERY
        WITH held AS MATERIALIZED (
            SELECT p.*, j.worker AS held_by, j.attempts, j.submitted_by AS asked_by
            FROM json_populate_recordset(common, record_predictions.predictions) WITH ORDINALITY AS p
            -- A job has a token while it runs, and only then.
            JOIN loracomp.job AS j ON j.id = p.job_id AND j.lease_token = record_predictions.tokens[p.ordinality]
            ORDER BY j.id
            FOR UPDATE OF j SKIP LOCKED
        ),
        recorded AS (
            INSERT INTO loracomp.prediction (
                job_id, output, choice_index, choice_scores, query_embedding,
                example_ids, example_tasks, similarities, tasks, probabilities, weights,
                composed_tasks, adapter_ids, adapter_sha256, adapter_weights,
                policy, fallback, composition_digest, norm_ratio, cosine,
                prompt_tokens, output_tokens, timings, batch_size, worker, device, attempt,
                base_model, base_fingerprint, encoder, code_version, submitted_by
            )
            SELECT
                h.job_id, h.output, h.choice_index, h.choice_scores,
                coalesce(record_predictions.embeddings[h.ordinality], h.query_embedding),
                coalesce(h.example_ids, '{}'), coalesce(h.example_tasks, '{}'), coalesce(h.similarities, '{}'),
                coalesce(h.tasks, '{}'), coalesce(h.probabilities, '{}'), coalesce(h.weights, '{}'),
                coalesce(h.composed_tasks, '{}'), coalesce(h.adapter_ids, '{}'), coalesce(h.adapter_sha256, '{}'),
                coalesce(h.adapter_weights, '{}'),
                h.policy, h.fallback, h.composition_digest, h.norm_ratio, h.cosine,
                coalesce(h.prompt_tokens, 0), coalesce(h.output_tokens, 0),
                -- What the worker measured up to the call goes on until the row is written.
                coalesce(h.timings, '{}') || CASE WHEN jsonb_typeof(h.timings -> 'record') = 'number' THEN jsonb_build_object(
                    'record',
                    round(
                        (h.timings ->> 'record')::numeric
                        + 1000 * extract(EPOCH FROM clock_timestamp() - statement_timestamp()), 3
                    )
                ) ELSE '{}' END,
                coalesce(h.batch_size, 1), h.held_by, h.device, h.attempts,
                h.base_model, h.base_fingerprint, h.encoder, h.code_version, h.asked_by
            FROM held AS h
            RETURNING job_id, output
        )
        UPDATE loracomp.job AS j SET
            status = 'succeeded',
            finished_at = now(),
            is_correct = r.output = j.expected,
            lease_token = NULL,
            lease_expires_at = NULL,
            error_code = NULL,
            error = NULL
        FROM recorded AS r
        WHERE j.id = r.job_id
        RETURNING j.id;
        GET DIAGNOSTICS written = ROW_COUNT;
        missing := missing - written;
        EXIT WHEN missing = 0 OR NOT loracomp.wait_for_jobs(
            ARRAY(
                SELECT (p.value ->> 'job_id')::bigint
                FROM json_array_elements(record_predictions.predictions) WITH ORDINALITY AS p ORDER BY p.ordinality
            ), record_predictions.tokens
        );
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.record_predictions IS
'Writes predictions with their traces and ends their jobs, where the lease token still holds; returns those ids.';

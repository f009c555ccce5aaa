-- A job explained in words.
--   explain_job
--     explain_state             the job's status, in a sentence
--     explain_next              what the user can do, if the job has no answer
--     explain_request           the job's prompt and settings
--     explain_answer            the answer and the choices' scores
--       explain_vote            the choice with the highest score, and its probability
--     explain_route             the nearest examples, and the tasks' probabilities that follow from them
--     explain_composition       the adapters
--     explain_run               times, tokens and versions

-- Reads only, with the caller's rights. Raises for a job that does not exist or is another submitter's.
CREATE FUNCTION loracomp.explain_job(id bigint)
RETURNS text LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    j loracomp.job;
    p loracomp.prediction;
BEGIN
    SELECT * INTO j FROM loracomp.job AS job WHERE job.id = explain_job.id;
    IF j.id IS NULL THEN
        RAISE EXCEPTION 'job % does not exist, or is not yours', explain_job.id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.job_result lists your jobs';
    END IF;
    SELECT * INTO p FROM loracomp.prediction AS prediction WHERE prediction.job_id = j.id;
    -- Replace control characters and characters that change the direction of text, because a terminal would act on them, and the text may
    -- come from another person.
    RETURN regexp_replace(
        concat_ws(
            E'\n\n',
            loracomp.explain_state(j), loracomp.explain_next(j), loracomp.explain_request(j),
            nullif(loracomp.explain_answer(j, p), ''), nullif(loracomp.explain_route(p), ''),
            loracomp.explain_composition(p), loracomp.explain_run(p)
        ) COLLATE "C",
        E'[\\u0001-\\u0009\\u000b-\\u001f\\u007f-\\u009f\\u202a-\\u202e\\u2066-\\u2069]', '�', 'g'
    );
END
$$;
COMMENT ON FUNCTION loracomp.explain_job IS
'Explains in words how a job got its answer: retrieved examples, tasks, adapters, scores, times and versions. For a job without an '
'answer: its status, and what to do.';

-- Reads only.
CREATE FUNCTION loracomp.explain_state(job loracomp.job)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT concat_ws(
    E'\n',
    format(
        'Job %s: %s%s. Submitted by %s at %s.',
        job.id, job.status,
        CASE job.kind WHEN 'route' THEN ' (computes only weights)' WHEN 'measure' THEN ' (measures adapters)' END,
        job.submitted_by, to_char(job.created_at, 'YYYY-MM-DD HH24:MI:SS TZ')
    ),
    CASE job.status
        WHEN 'succeeded' THEN format(
            'Answered by attempt %s of %s, %s s after it could start.', job.attempts, job.max_attempts,
            loracomp.seconds_between(greatest(job.created_at, job.run_at), job.finished_at)
        )
        WHEN 'failed' THEN format('Failed after attempt %s of %s.', job.attempts, job.max_attempts)
        WHEN 'cancelled' THEN format('Cancelled at %s.', to_char(job.finished_at, 'YYYY-MM-DD HH24:MI:SS TZ'))
        WHEN 'running' THEN format(
            'Attempt %s of %s has been running on worker %s for %s s.', job.attempts, job.max_attempts, job.worker,
            loracomp.seconds_between(job.claimed_at, now())
        )
        WHEN 'queued' THEN CASE
            WHEN job.run_at > now()
                THEN format(
                    'It can start at %s (in %s s).', to_char(job.run_at, 'YYYY-MM-DD HH24:MI:SS TZ'),
                    loracomp.seconds_between(now(), job.run_at)
                )
            ELSE format(
                'It has been due for %s s.', loracomp.seconds_between(greatest(job.created_at, job.run_at), now())
            )
        END
    END,
    'Error: ' || job.error_code || ': ' || job.error
);
END;
COMMENT ON FUNCTION loracomp.explain_state IS 'A job''s status in a sentence, for explain_job.';

-- Reads only. Returns null for a job that has an answer.
CREATE FUNCTION loracomp.explain_next(job loracomp.job)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT 'Next: ' || CASE
    WHEN job.status = 'queued' AND coalesce(greatest(h.live_workers, h.busy_workers), 0) = 0
        THEN format(
            'no worker for base model %s is running (due jobs: %s). Start one: LORACOMP_BASE_MODEL=%s loracomp worker',
            job.base_model, coalesce(h.due, 0),
            '''' || replace(job.base_model, '''', '''\''''') || '''' -- quoted for a shell
        )
    WHEN job.status = 'queued' AND job.run_at > now()
        THEN 'wait until it can start.'
    WHEN job.status = 'queued'
        THEN format(
            'wait. Due jobs: %s, the oldest for %s s; running jobs: %s%s.', h.due, h.oldest_due_s, h.running,
            ' (of these alone on their worker, because the job''s lease expired before: ' || nullif(h.alone, 0) || ')'
        )
    WHEN job.status = 'running' AND job.lease_expires_at < now()
        THEN 'wait. Its lease has expired, because its worker died or hangs; '
            'the keeper queues the job again within seconds.'
    WHEN job.status = 'running'
        THEN format(
            'wait. Its lease ends in %s s unless the worker renews it.',
            loracomp.seconds_between(now(), job.lease_expires_at)
        )
    WHEN job.status = 'failed'
        THEN format(
            'if the job''s prompt or a setting is wrong, submit a corrected job. Otherwise fix what the error '
            'names, then run SELECT loracomp.retry_job(%s)', job.id
        )
    WHEN job.status = 'cancelled'
        THEN format('if you want its answer after all, run SELECT loracomp.retry_job(%s)', job.id)
END
FROM (VALUES (true)) AS one (here)
LEFT JOIN loracomp.queue_health AS h ON h.base_model = job.base_model AND job.status = 'queued';
END;
COMMENT ON FUNCTION loracomp.explain_next IS 'What the user can do if a job has no answer, for explain_job.';

-- Reads only.
CREATE FUNCTION loracomp.explain_request(job loracomp.job)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT concat_ws(
    E'\n',
    'Prompt: ' || loracomp.shorten(job.prompt, 240),
    'System text: ' || loracomp.shorten(job.system_text, 240),
    'Choices: ' || (
        SELECT
            string_agg(loracomp.shorten(concat_ws(': ', c.choice, c.description), 60), ' | ' ORDER BY c.ordinal)
            FILTER (WHERE c.ordinal <= 8)
            || CASE WHEN count(*) > 8 THEN format(' | ... %s more', count(*) - 8) ELSE '' END
        FROM unnest(job.choices, job.descriptions) WITH ORDINALITY AS c (choice, description, ordinal)
    ),
    'Expected: ' || loracomp.shorten(job.expected, 240),
    'Excluded tasks: ' || nullif(array_to_string(job.exclude_tasks, ', '), ''),
    'Only tasks: ' || nullif(array_to_string(job.tasks, ', '), '')
    || coalesce(' with weights ' || nullif(array_to_string(job.weights, ', '), ''), '')
);
END;
COMMENT ON FUNCTION loracomp.explain_request IS 'A job''s prompt and settings, for explain_job.';

-- Reads no table.
CREATE FUNCTION loracomp.explain_vote(choices text[], scores double precision[])
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT concat_ws(' ', loracomp.shorten(s.choice, 24), to_char(loracomp.confidence(scores), 'FM0.00'))
FROM unnest(choices, scores) WITH ORDINALITY AS s (choice, score, ordinal)
ORDER BY s.score DESC, s.ordinal
LIMIT 1;
END;
COMMENT ON FUNCTION loracomp.explain_vote IS 'The choice with the highest score, and its probability by softmax, for explain_job.';

-- Reads only.
CREATE FUNCTION loracomp.explain_answer(job loracomp.job, prediction loracomp.prediction)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT concat_ws(
    E'\n',
    'Answer: ' || CASE prediction.finish_reason
        WHEN 'no_tokens' THEN 'none, because the model ended the text before its first token'
        ELSE loracomp.shorten(prediction.output, 240)
    END,
    'Ended by: ' || CASE prediction.finish_reason
        WHEN 'stop' THEN 'one of the job''s stop texts'
        WHEN 'length' THEN 'max_new_tokens'
        WHEN 'end_of_text' THEN 'end of text'
    END,
    format(
        'Scores (log-likelihood in nats, normalised by: %s%s); confidence %s',
        prediction.policy_settings ->> 'choice_normalization',
        CASE
            WHEN prediction.label_scores IS NOT null THEN format(
                ', fitted on %s labelled examples', cardinality(prediction.calibration_examples)
            )
            WHEN prediction.choice_biases IS NOT null THEN ', less half of what other rows of the table scored'
            WHEN loracomp.uses_gains(prediction.policy_settings ->> 'weighting') THEN ', without calibration'
        END,
        to_char(loracomp.confidence(prediction.choice_scores), 'FM0.00')
    )
    || E'\n' || (
        SELECT
            string_agg(
                format(
                    '%s %s%s  %s', CASE WHEN s.ordinal = prediction.choice_index THEN '>' ELSE ' ' END,
                    to_char(s.score, '99990.000'), a.added,
                    loracomp.shorten(s.choice, greatest(12, 66 - coalesce(char_length(a.added), 0)))
                ),
                E'\n' ORDER BY s.score DESC, s.ordinal
            )
        FROM unnest(
            job.choices, prediction.choice_scores, prediction.choice_biases, prediction.label_scores,
            prediction.description_similarities
        ) WITH ORDINALITY AS s (choice, score, bias, label, similarity, ordinal)
        CROSS JOIN LATERAL (
            SELECT '  of which ' || nullif(concat_ws(
                ', ', 'bias ' || to_char(s.bias, 'FMS990.000'), 'rows ' || to_char(s.label, 'FMS990.000'),
                'description ' || to_char(prediction.score_weights[3] * s.similarity, 'FMS990.000')
            ), '') AS added
        ) AS a
        WHERE s.score IS NOT null
    ),
    (
        SELECT
            concat_ws(
                '; ',
                format(
                    '%s favours %s (weight %s)',
                    CASE prediction.adapter_ids WHEN '{}' THEN 'The base model' ELSE 'The adapter mix' END,
                    loracomp.explain_vote(
                        job.choices, array_agg(s.score - s.bias - s.label - s.described ORDER BY s.ordinal)
                    ),
                    to_char(prediction.score_weights[1], 'FM990.00')
                ),
                CASE WHEN prediction.label_scores IS NOT null THEN format(
                    'the classifier trained on %s labelled rows favours %s (weight %s)',
                    cardinality(prediction.calibration_examples),
                    loracomp.explain_vote(job.choices, prediction.label_scores),
                    to_char(prediction.score_weights[2], 'FM990.00')
                ) END,
                CASE WHEN prediction.description_similarities IS NOT null THEN format(
                    'the descriptions favour %s (weight %s)',
                    loracomp.explain_vote(job.choices, array_agg(s.described ORDER BY s.ordinal)),
                    to_char(prediction.score_weights[3], 'FM990.00')
                ) END
            ) || '.'
        FROM (
            SELECT
                u.score, u.ordinal, coalesce(u.bias, 0) AS bias, coalesce(u.label, 0) AS label,
                coalesce(prediction.score_weights[3] * u.similarity, 0) AS described
            FROM unnest(
                prediction.choice_scores, prediction.choice_biases, prediction.label_scores,
                prediction.description_similarities
            ) WITH ORDINALITY AS u (score, bias, label, similarity, ordinal)
        ) AS s
        HAVING num_nonnulls(prediction.label_scores, prediction.description_similarities) > 0
    ),
    (
        SELECT format(
            'Closest to the description of %s: %s (similarity %s)', loracomp.shorten(s.choice, 24),
            loracomp.shorten(s.description, 120), to_char(s.similarity, 'FM0.000')
        )
        FROM unnest(job.choices, job.descriptions, prediction.description_similarities)
        WITH ORDINALITY AS s (choice, description, similarity, ordinal)
        WHERE s.similarity IS NOT null ORDER BY s.similarity DESC, s.ordinal LIMIT 1
    ),
    CASE WHEN EXISTS (
        SELECT FROM unnest(prediction.calibration_examples) AS c (id)
        CROSS JOIN LATERAL loracomp.readable_example(prediction.job_id, c.id) AS e WHERE e.prompt = job.prompt
    ) THEN 'One of the labelled rows has the same prompt as this job; its label was not used for this answer.' END
);
END;
COMMENT ON FUNCTION loracomp.explain_answer IS 'A job''s answer and the score of each choice, for explain_job.';

-- Reads only. Returns null if nothing was retrieved, because the job gave the weights itself.
CREATE FUNCTION loracomp.explain_route(prediction loracomp.prediction)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT concat_ws(
    E'\n\n',
    format('Nearest examples (%s retrieved)', cardinality(prediction.example_ids)) || E'\n' || (
        SELECT
            string_agg(
                format(
                    '  %s  %s  %s', to_char(x.similarity, 'FM0.000'), rpad(x.task, x.width),
                    concat_ws(
                        ': ', x.source, loracomp.shorten(x.prompt, greatest(20, 66 - x.width - char_length(x.source)))
                    )
                ),
                E'\n' ORDER BY x.ordinal
            )
        FROM (
            SELECT
                r.*, max(char_length(r.task)) OVER () AS width,
                coalesce(r.source_ref, format('example %s', r.example_id)) AS source
            FROM loracomp.retrieved_example AS r
            WHERE r.job_id = prediction.job_id AND r.ordinal <= 8
        ) AS x
    ),
    format(
        'Tasks (policy %s: temperature %s, weighting %s, top_p %s, at most %s adapters%s)',
        prediction.policy_settings ->> 'name', prediction.policy_settings ->> 'routing_temperature',
        prediction.policy_settings ->> 'weighting', prediction.policy_settings ->> 'routing_top_p',
        prediction.policy_settings ->> 'max_adapters',
        CASE WHEN prediction.calibration_examples IS NOT null THEN '; weights from labelled rows' END
    ) || E'\n' || (
        SELECT
            string_agg(
                format(
                    '  %s  probability %s  %s%s', rpad(t.task, t.width), to_char(t.probability, 'FM0.000'),
                    CASE WHEN t.weight > 0 THEN 'weight ' || to_char(t.weight, 'FM0.000') ELSE 'not composed' END,
                    '  expected gain ' || to_char(t.gain, 'FMS990.000') || ' nats'
                ),
                E'\n' ORDER BY t.ordinal
            ) FILTER (WHERE t.named)
            || coalesce(
                E'\n  and ' || nullif(count(*) FILTER (WHERE NOT t.named), 0) || ' tasks with smaller weights', ''
            )
        FROM (
            SELECT
                u.*, max(char_length(u.task)) OVER () AS width,
                u.weight = 0 OR u.weight >= 0.05 OR prediction.calibration_examples IS null AS named
            FROM unnest(prediction.tasks, prediction.probabilities, prediction.weights, prediction.expected_gains)
            WITH ORDINALITY AS u (task, probability, weight, gain, ordinal)
        ) AS t
    ),
    CASE WHEN prediction.calibration_examples IS NOT null THEN format(
        'A task without an adapter has %s labelled examples with the job''s choices. '
        'Adapters that make their labels more likely get larger weights, '
        'and the examples calibrate the choices'' scores.',
        cardinality(prediction.calibration_examples)
    ) END
)
WHERE prediction.example_ids <> '{}';
END;
COMMENT ON FUNCTION loracomp.explain_route IS
'The nearest examples of a job and the probabilities of their tasks, for explain_job.';

-- Reads only.
CREATE FUNCTION loracomp.explain_composition(prediction loracomp.prediction)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT CASE
    WHEN prediction.job_id IS null THEN null
    WHEN prediction.adapter_ids = '{}' THEN 'Composition: none. The base model answered alone: ' || prediction.fallback
    ELSE concat_ws(
        E'\n',
        CASE
            WHEN prediction.composition_digest IS null
                THEN 'Weights (a job of kind route computes weights but composes no adapters)'
            ELSE format('Composition: %s', prediction.policy_settings ->> 'strategy')
        END,
        (
            SELECT
                CASE
                    WHEN count(*) > 8 AND min(c.weight) = max(c.weight) THEN format(
                        '  %s each  %s adapters (loracomp.composed_adapter names them)',
                        to_char(min(c.weight), 'FM0.000'), count(*)
                    )
                    ELSE string_agg(
                        format(
                            '  %s  %s', to_char(c.weight, 'FM0.000'),
                            coalesce(
                                c.adapter || ' version ' || c.version,
                                format('adapter %s of %s, sha256 %s...', c.adapter_id, c.task, left(c.sha256, 12))
                            )
                        ),
                        E'\n' ORDER BY c.ordinal
                    )
                END
            FROM loracomp.composed_adapter AS c
            WHERE c.job_id = prediction.job_id
        ),
        CASE
            WHEN prediction.description_similarities IS NOT null AND prediction.label_scores IS null THEN format(
                'The choices are described, so the less similar the nearest example is (here %s), the less the '
                'adapters count, and the more the descriptions.', to_char(prediction.similarities[1], 'FM0.000')
            )
        END
    )
END;
END;
COMMENT ON FUNCTION loracomp.explain_composition IS 'The adapters that answered a job, for explain_job.';

-- Reads only.
CREATE FUNCTION loracomp.explain_run(prediction loracomp.prediction)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT concat_ws(
    E'\n',
    'Time of each step of its batch: ' || (
        SELECT
            string_agg(
                format('%s %s ms', t.key, round(t.value::numeric, 1)), ', '
                ORDER BY array_position('{claim,ready,encode,route,load,compose,calibrate,predict,record}', t.key)
            )
        FROM jsonb_each_text(prediction.timings - 'share') AS t
    )
    || coalesce(
        '; this job''s share of the computing ' || round((prediction.timings ->> 'share')::numeric, 1) || ' ms', ''
    )
    || format(' (batch of %s on %s, worker %s)', prediction.batch_size, prediction.device, prediction.worker),
    CASE
        WHEN prediction.composition_digest IS NOT null THEN format(
            'Tokens: %s in the prompt%s, %s scored or generated', prediction.prompt_tokens,
            CASE WHEN prediction.chat_template THEN ' in the chat template' END, prediction.output_tokens
        )
    END,
    format(
        'Versions: base model %s (%s...), encoder %s, loracomp %s%s',
        prediction.base_model, left(prediction.base_fingerprint, 12), prediction.encoder, prediction.code_version,
        '; composition ' || left(prediction.composition_digest, 12) || '...'
    )
)
WHERE prediction.job_id IS NOT null;
END;
COMMENT ON FUNCTION loracomp.explain_run IS 'Times, tokens and versions behind a job''s answer, for explain_job.';

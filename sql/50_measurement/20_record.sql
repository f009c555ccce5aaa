-- Functions that workers call for jobs of kind measure.
--   plan_measurements           says what to score for each job
--   record_measurements         writes the results
--     hold_jobs, succeed_jobs  30_queue/30_leases.sql, 40_record.sql
--   labelled_scores             the scores that a worker fits evidence to
--   record_evidence             writes which adapters explain a task's labelled examples

-- Changes nothing.
CREATE FUNCTION loracomp.plan_measurements(job_ids bigint[])
RETURNS TABLE (
    job_id bigint,
    expected text,
    choice_normalization text,
    adapter_ids integer[],
    adapter_sha256 text[],
    chat_template boolean
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
SELECT
    j.id,
    j.expected,
    p.choice_normalization,
    array_agg(a.id ORDER BY a.id),
    array_agg(a.sha256 ORDER BY a.id),
    loracomp.in_chat_template(p.chat_template, b.has_chat_template, j.choices)
FROM loracomp.job AS j
JOIN loracomp.policy AS p ON p.name = j.policy
JOIN loracomp.base_model AS b ON b.name = j.base_model
JOIN loracomp.adapter AS a ON a.id = ANY (j.adapter_ids)
WHERE j.id = ANY (plan_measurements.job_ids) AND j.kind = 'measure'
GROUP BY j.id, p.name, b.id;
$$;
COMMENT ON FUNCTION loracomp.plan_measurements IS
'What to score for jobs of kind measure: the right answer, how scores of choices are normalised, the adapters, and whether the prompt is '
'put into the chat template. There is no row for a job that was deleted, or whose adapters were deleted.';

-- running -> succeeded, and writes the measurements, for jobs whose token is still valid.
-- Results for an adapter that the job does not name, or for an example that has changed meanwhile, are left out.
CREATE FUNCTION loracomp.record_measurements(results loracomp.measured[]) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- The same settings as in record_predictions.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    held_ids bigint[] := loracomp.hold_jobs(
        ARRAY(SELECT r.job_id FROM unnest(results) AS r), ARRAY(SELECT r.lease_token FROM unnest(results) AS r)
    );
    example_ids CONSTANT bigint[] := ARRAY(SELECT j.example_id FROM loracomp.job AS j WHERE j.id = ANY (held_ids));
    free CONSTANT bigint[] := ARRAY(
        SELECT e.id FROM loracomp.example AS e WHERE e.id = ANY (example_ids) FOR KEY SHARE SKIP LOCKED
    );
BEGIN
    IF EXISTS (
        SELECT FROM unnest(results) AS r
        JOIN loracomp.job AS j ON j.id = r.job_id AND j.lease_token = r.lease_token
        CROSS JOIN LATERAL jsonb_each(r.choice_scores) AS s (adapter, scores)
        WHERE j.id = ANY (held_ids)
            AND (CASE jsonb_typeof(s.scores) WHEN 'array' THEN jsonb_array_length(s.scores) END = cardinality(j.choices)) IS NOT TRUE
    ) THEN
        RAISE EXCEPTION 'choice_scores must have a list for each adapter, with a number for each choice'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- If a submitter has dropped a declaration in a transaction that is still open, the foreign key's check would wait for it. Such a job
    -- is left out, and measured again after its lease expires.
    held_ids := ARRAY(
        SELECT j.id FROM loracomp.job AS j
        WHERE j.id = ANY (held_ids) AND (
            j.example_id = ANY (free) OR NOT EXISTS (SELECT FROM loracomp.example AS e WHERE e.id = j.example_id)
        )
    );
    RETURN QUERY
    WITH held AS MATERIALIZED (
        SELECT r.*, j.example_id, j.adapter_ids AS asked, j.base_model, j.worker, j.prompt, j.choices, j.expected
        FROM unnest(results) AS r
        JOIN loracomp.job AS j ON j.id = r.job_id AND j.lease_token = r.lease_token AND j.kind = 'measure'
        WHERE j.id = ANY (held_ids)
    ),
    newest AS (
        SELECT DISTINCT ON (e.id) h.*, b.id AS base_model_id, e.task_id
        FROM held AS h
        JOIN loracomp.base_model AS b ON b.name = h.base_model
        JOIN loracomp.example AS e ON e.id = h.example_id
            AND (e.prompt, e.choices, e.label) IS NOT DISTINCT FROM (h.prompt, h.choices, h.expected)
        ORDER BY e.id, h.job_id DESC
    ),
    -- Two jobs of a batch may measure the same example. If their policies or the example's text differ, only the newest job counts, because
    -- one row must not mix gains that were computed from different kinds of scores.
    measured AS (
        SELECT DISTINCT ON (h.example_id, u.adapter_id) h.example_id, u.adapter_id, u.gain, u.is_right,
            h.choice_scores -> u.adapter_id::text AS scores
        FROM newest AS n
        JOIN held AS h ON h.example_id = n.example_id
            AND (h.base_model, h.choice_normalization, h.chat_template, h.prompt, h.choices, h.expected)
            IS NOT DISTINCT FROM (n.base_model, n.choice_normalization, n.chat_template, n.prompt, n.choices, n.expected)
        CROSS JOIN LATERAL unnest(h.adapter_ids, h.gains, h.are_right) AS u (adapter_id, gain, is_right)
        WHERE u.adapter_id = ANY (h.asked)
        ORDER BY h.example_id, u.adapter_id, h.job_id DESC
    ),
    recorded AS (
        INSERT INTO loracomp.measurement AS m (
            example_id, base_model_id, task_id, choice_normalization, base_score, base_is_right, adapter_ids, gains,
            are_right, choice_scores, worker, chat_template
        )
        SELECT
            n.example_id, n.base_model_id, n.task_id, n.choice_normalization, n.base_score, n.base_is_right, x.adapter_ids,
            x.gains, x.are_right, x.choice_scores, n.worker, n.chat_template
        FROM newest AS n
        JOIN (
            SELECT
                u.example_id,
                array_agg(u.adapter_id ORDER BY u.adapter_id) AS adapter_ids,
                array_agg(u.gain ORDER BY u.adapter_id) AS gains,
                array_agg(u.is_right ORDER BY u.adapter_id) AS are_right,
                jsonb_object_agg(u.adapter_id, u.scores) FILTER (WHERE u.scores IS NOT NULL) AS choice_scores
            FROM measured AS u GROUP BY u.example_id
        ) AS x ON x.example_id = n.example_id
        ON CONFLICT ON CONSTRAINT an_example_has_one_measurement_a_base_model DO UPDATE SET
            choice_normalization = excluded.choice_normalization,
            base_score = excluded.base_score,
            base_is_right = excluded.base_is_right,
            chat_template = excluded.chat_template,
            (adapter_ids, gains, are_right) = (
                -- Keep the earlier gains of adapters that were not measured again. If the scores are of another kind now, keep none.
                SELECT
                    array_agg(u.adapter_id ORDER BY u.adapter_id), array_agg(u.gain ORDER BY u.adapter_id),
                    array_agg(u.is_right ORDER BY u.adapter_id)
                FROM (
                    SELECT n.* FROM unnest(excluded.adapter_ids, excluded.gains, excluded.are_right)
                        AS n (adapter_id, gain, is_right)
                    UNION ALL
                    SELECT o.* FROM unnest(m.adapter_ids, m.gains, m.are_right) AS o (adapter_id, gain, is_right)
                    WHERE o.adapter_id <> ALL (excluded.adapter_ids)
                        AND m.choice_normalization = excluded.choice_normalization
                        AND m.chat_template = excluded.chat_template
                ) AS u
            ),
            choice_scores = CASE
                WHEN m.choice_normalization = excluded.choice_normalization AND m.chat_template = excluded.chat_template
                    THEN coalesce(m.choice_scores, '{}') || excluded.choice_scores
                ELSE excluded.choice_scores
            END,
            worker = excluded.worker,
            measured_at = now()
    )
    SELECT s.id
    FROM (SELECT array_agg(h.job_id) AS ids FROM held AS h) AS a
    CROSS JOIN LATERAL loracomp.succeed_jobs(a.ids) AS s (id);
END
$$;
COMMENT ON FUNCTION loracomp.record_measurements IS
'Writes the results of jobs of kind measure and ends the jobs, if the lease token is still valid; returns these ids.';

-- Reads at most 256 examples of a task, with at most 20 choices each, so that the fit takes less than a second. It reads only examples that
-- were measured with the same settings as the newest one, because other scores can't be compared with it. Tasks with an adapter are left
-- out, because routing reads evidence only for tasks without one.
CREATE FUNCTION loracomp.labelled_scores(job_ids bigint[])
RETURNS TABLE (
    task_id integer, base_model_id integer, choices text[], label text, choice_scores jsonb, read_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
SELECT t.task_id, t.base_model_id, m.choices, m.label, m.choice_scores, statement_timestamp()
FROM (
    SELECT DISTINCT e.task_id, b.id AS base_model_id
    FROM loracomp.job AS j
    JOIN loracomp.example AS e ON e.id = j.example_id
    JOIN loracomp.base_model AS b ON b.name = j.base_model
    WHERE j.id = ANY (labelled_scores.job_ids) AND j.kind = 'measure'
) AS t
CROSS JOIN LATERAL (
    SELECT o.example_id, e.choices, e.label, o.choice_scores
    FROM loracomp.measurement AS o
    JOIN loracomp.example AS e ON e.id = o.example_id AND e.split = 'train' AND cardinality(e.choices) <= 20
    WHERE (o.task_id, o.base_model_id) = (t.task_id, t.base_model_id) AND o.choice_scores IS NOT NULL
        AND (o.choice_normalization, o.chat_template) = (
            SELECT n.choice_normalization, n.chat_template FROM loracomp.measurement AS n
            WHERE (n.task_id, n.base_model_id) = (t.task_id, t.base_model_id) AND n.choice_scores IS NOT NULL
            ORDER BY n.measured_at DESC
            LIMIT 1
        )
    ORDER BY o.example_id
    LIMIT 256
) AS m
WHERE NOT EXISTS (
    SELECT FROM loracomp.adapter AS a
    WHERE (a.task_id, a.base_model_id, a.status) = (t.task_id, t.base_model_id, 'active')
)
ORDER BY t.task_id, t.base_model_id, m.example_id;
$$;
COMMENT ON FUNCTION loracomp.labelled_scores IS
'For each task without an adapter that one of these jobs has measured: choices, label and scores of its measured examples.';

-- If a submitter is deleting the task or its last examples, it waits one second and then gives up, because the next measurement brings new
-- evidence anyway. If two workers fit at the same time, the fit of the scores that were read later stays, whichever
-- worker writes first.
CREATE FUNCTION loracomp.record_evidence(
    task_id integer, base_model_id integer, choices text[], adapter_ids integer[], log_likelihoods double precision[],
    read_at timestamptz
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET lock_timeout = '1s'
AS $$
BEGIN
    INSERT INTO loracomp.task_evidence AS v (task_id, base_model_id, choices, adapter_ids, log_likelihoods, read_at)
    SELECT
        t.id, b.id, record_evidence.choices, record_evidence.adapter_ids, record_evidence.log_likelihoods,
        least(record_evidence.read_at, statement_timestamp())
    FROM loracomp.task AS t CROSS JOIN loracomp.base_model AS b
    WHERE t.id = record_evidence.task_id AND b.id = record_evidence.base_model_id
    ON CONFLICT ON CONSTRAINT a_task_has_evidence_once_a_base_model DO UPDATE SET
        choices = excluded.choices, adapter_ids = excluded.adapter_ids, log_likelihoods = excluded.log_likelihoods,
        read_at = excluded.read_at
    WHERE v.read_at <= excluded.read_at;
EXCEPTION WHEN lock_not_available THEN
    NULL;
END
$$;
COMMENT ON FUNCTION loracomp.record_evidence IS
'Writes how likely a task''s labelled examples are under each adapter, unless newer scores were fitted already.';

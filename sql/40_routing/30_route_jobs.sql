-- Routing of jobs: a worker calls route_jobs for each batch that it has claimed.
--   route_jobs                  compositions and traces for a batch of jobs and their vectors
--     check_encoder, checked_embedding
--     routing_inputs            what the route of each job depends on: its settings, and the tasks that it may use
--       in_chat_template        whether its prompt is put into the base model's chat template
--       usable_tasks, narrowed_tasks, active_adapters, search_exactly
--       generating_tasks        if the job asks for text: 20_registry/30_tasks.sql
--     route_query               nearest examples, and from them the weights of tasks, for one vector
--       nearest_examples
--       expected_gains          if the policy's weighting is 'measured'
--       calibration_examples    if the job's labelled_task, or else the nearest task, has no adapter
--       adapter_worths          what each adapter is worth on these examples
--       task_weights
--     compose_tasks             composition: adapters and weights
--     trace_tasks               trace: what it says of each task
--     fallback_reason           trace: why no adapter is composed
--     nearness, scaled          smaller weights of adapters, if choices are described
--   read_labelled               texts, labels and embeddings of calibration_examples
-- In this file a function comes before its callers, because Postgres checks the body of a SQL function when it is created.

-- Changes nothing. It looks up usable tasks once for each submitter and base model, and everything that follows from them once for jobs
-- that also name and exclude the same tasks.
CREATE FUNCTION loracomp.routing_inputs(job_ids bigint[])
RETURNS TABLE (
    job_id bigint,
    base_model text,
    choices_to_calibrate text[],
    is_described boolean,
    chat_template boolean,
    own_task integer,
    labelled_task integer,
    only_generating boolean,
    gives_weights boolean,
    given_tasks integer[],
    given_weights double precision[],
    settings loracomp.policy,
    policy_snapshot jsonb,
    eligible integer[],
    searched integer[],
    exact boolean,
    adapter_ids integer[],
    adapter_tasks integer[]
)
LANGUAGE sql STABLE ROWS 10
BEGIN ATOMIC
    WITH used AS MATERIALIZED (
        SELECT
            p.name, p AS settings, loracomp.uses_gains(p.weighting) AS uses_gains,
            to_jsonb(p) - '{description,created_at,updated_at}'::text[] AS policy_snapshot
        FROM loracomp.policy AS p
        WHERE p.name IN (SELECT j.policy FROM loracomp.job AS j WHERE j.id = ANY (routing_inputs.job_ids))
    ), given AS MATERIALIZED (
        SELECT
            j.id, j.base_model, j.submitted_by, j.exclude_tasks, coalesce(j.tasks, '{}') AS named_tasks, j.weights,
            u.settings, u.policy_snapshot, u.uses_gains,
            (SELECT t.id FROM loracomp.task AS t WHERE t.name = j.task) AS own_task, j.labelled_task,
            -- Adapters that have only learnt to choose write hardly anything usable. A job of kind route writes no text.
            j.kind = 'predict' AND j.choices IS NULL AND j.tasks IS NULL AND (u.settings).text_adapters = 'generating'
                AS only_generating,
            -- The id of a deleted task is null, which equals no task's id.
            ARRAY(
                SELECT t.id FROM unnest(j.tasks) WITH ORDINALITY AS n (name, ordinal)
                LEFT JOIN loracomp.task AS t ON t.name = n.name ORDER BY n.ordinal
            ) AS given_tasks,
            -- Jobs with a system text are not calibrated, because the labelled rows would have to be scored again under it.
            CASE WHEN (u.settings).router = 'retrieval' AND j.system_text IS NULL THEN j.choices END
                AS choices_to_calibrate,
            j.descriptions IS NOT NULL AS is_described,
            loracomp.in_chat_template(
                (u.settings).chat_template, b.has_chat_template, j.choices, j.chat_template, j.system_text
            ) AS chat_template
        FROM loracomp.job AS j
        JOIN used AS u ON u.name = j.policy
        JOIN loracomp.base_model AS b ON b.name = j.base_model
        WHERE j.id = ANY (routing_inputs.job_ids)
    ), usable AS MATERIALIZED (
        -- With weighting measured, the measured examples of tasks without an adapter show which adapters help, too.
        SELECT
            s.*,
            CASE WHEN s.only_generating THEN loracomp.generating_tasks(x.tasks) ELSE x.tasks END AS tasks,
            CASE WHEN s.only_generating THEN loracomp.generating_tasks(x.or_measured) ELSE x.or_measured END
                AS or_measured
        FROM (SELECT DISTINCT g.base_model, g.submitted_by, g.only_generating, g.uses_gains FROM given AS g) AS s
        CROSS JOIN LATERAL (
            SELECT
                loracomp.usable_tasks(s.base_model, s.submitted_by, FALSE) AS tasks,
                CASE WHEN s.uses_gains THEN loracomp.usable_tasks(s.base_model, s.submitted_by, TRUE) END AS or_measured
        ) AS x
    ), narrowed AS MATERIALIZED (
        SELECT
            s.*, loracomp.narrowed_tasks(u.tasks, s.exclude_tasks, s.named_tasks) AS eligible,
            CASE
                WHEN s.uses_gains THEN loracomp.narrowed_tasks(u.or_measured, s.exclude_tasks, s.named_tasks)
            END AS more
        FROM (
            SELECT DISTINCT
                g.base_model, g.submitted_by, g.only_generating, g.uses_gains, g.exclude_tasks, g.named_tasks
            FROM given AS g
        ) AS s
        JOIN usable AS u USING (base_model, submitted_by, only_generating, uses_gains)
    ), scope AS MATERIALIZED (
        SELECT
            n.*, x.searched, loracomp.search_exactly(x.searched) AS exact,
            coalesce(c.adapter_ids, '{}') AS adapter_ids, coalesce(c.adapter_tasks, '{}') AS adapter_tasks
        FROM narrowed AS n
        CROSS JOIN LATERAL (SELECT coalesce(n.more, n.eligible) AS searched) AS x
        LEFT JOIN LATERAL (
            SELECT a.* FROM loracomp.active_adapters(n.base_model, n.eligible) AS a WHERE n.uses_gains
            OFFSET 0 -- called only if it is needed
        ) AS c ON TRUE
    )
    SELECT
        g.id, g.base_model, g.choices_to_calibrate, g.is_described, g.chat_template, g.own_task,
        g.labelled_task, g.only_generating, g.weights IS NOT NULL, g.given_tasks, g.weights, g.settings,
        g.policy_snapshot, s.eligible, s.searched, s.exact, s.adapter_ids, s.adapter_tasks
    FROM given AS g
    JOIN scope AS s USING (base_model, submitted_by, only_generating, uses_gains, exclude_tasks, named_tasks);
END;
COMMENT ON FUNCTION loracomp.routing_inputs IS
'What the route of each of these jobs depends on: its policy''s settings, the tasks and weights that the job itself gives, the '
'choices that may be calibrated, and by whose labelled rows (null: the nearest task''s); whether it asks for text, for which only '
'generating_tasks are used; the tasks whose adapters it may compose (eligible), the tasks whose examples are searched, and whether by '
'an exact scan; and with weighting measured the active adapters of the eligible tasks.';

-- Changes nothing. Calls nearest_examples, expected_gains and task_weights for one vector.
CREATE FUNCTION loracomp.route_query(
    q public.halfvec,
    tasks integer[],
    exact boolean,
    settings loracomp.policy,
    usable_adapters integer[],
    adapter_tasks integer[],
    choices text[] DEFAULT NULL,
    labelled_task integer DEFAULT NULL
)
RETURNS TABLE (
    example_ids bigint[],
    example_tasks integer[],
    similarities double precision[],
    task_ids integer[],
    probabilities double precision[],
    in_nucleus boolean[],
    weights double precision[],
    gains double precision[],
    calibration_examples bigint[]
)
LANGUAGE sql STABLE ROWS 1
BEGIN ATOMIC
    SELECT
        n.ids,
        n.tasks,
        n.similarities,
        coalesce(w.tasks, '{}'),
        coalesce(w.probabilities, '{}'),
        coalesce(w.kept, '{}'),
        coalesce(w.weights, '{}'),
        coalesce(w.gains, '{}'),
        CASE WHEN g.tasks <> '{}' THEN c.examples END
    FROM (
        SELECT
            coalesce(array_agg(x.example_id ORDER BY x.similarity DESC, x.example_id), '{}') AS ids,
            coalesce(array_agg(x.task_id ORDER BY x.similarity DESC, x.example_id), '{}') AS tasks,
            coalesce(array_agg(x.similarity ORDER BY x.similarity DESC, x.example_id), '{}') AS similarities
        FROM loracomp.nearest_examples(q, tasks, (settings).k, exact) AS x
        -- The similarities of a zero vector are NaN, which Postgres orders above all numbers.
        WHERE x.similarity <> 'NaN'
    ) AS n
    CROSS JOIN LATERAL (
        -- CASE, so that jobs of tasks with an adapter do not pay for the call.
        SELECT CASE
            WHEN
                loracomp.uses_gains((settings).weighting) AND choices IS NOT NULL
                AND l.task_id = ANY (route_query.tasks) AND l.task_id <> ALL (adapter_tasks)
                THEN loracomp.calibration_examples(choices, l.task_id, n.similarities[1], usable_adapters, settings)
        END AS examples, l.task_id
        FROM (VALUES (coalesce(labelled_task, n.tasks[1]))) AS l (task_id)
        OFFSET 0 -- called once, and not wherever its result is used
    ) AS c
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(x.task_id), '{}') AS tasks, coalesce(array_agg(x.gain), '{}') AS gains
        FROM loracomp.expected_gains(
            -- If choices are calibrated, only gains on the calibration examples count, which are the same for each job.
            coalesce(c.examples, n.ids),
            CASE WHEN c.examples IS NULL THEN n.similarities ELSE array_fill(1.0, ARRAY[cardinality(c.examples)]) END,
            usable_adapters, adapter_tasks, settings
        ) AS x
        WHERE loracomp.uses_gains((settings).weighting)
    ) AS g
    CROSS JOIN LATERAL (
        -- array_agg keeps the order of task_weights; WITH ORDINALITY would prevent inlining of the function call.
        SELECT
            array_agg(t.task_id) AS tasks,
            array_agg(t.probability) AS probabilities,
            array_agg(t.in_nucleus) AS kept,
            array_agg(CASE WHEN n.similarities[1] < (settings).min_similarity THEN 0 ELSE t.weight END) AS weights,
            array_agg(t.expected_gain) AS gains
        FROM loracomp.task_weights(
            n.tasks, n.similarities, settings, g.tasks, g.gains,
            CASE WHEN c.examples IS NOT NULL THEN coalesce(
                loracomp.adapter_worths(c.task_id, choices, g.tasks, usable_adapters, adapter_tasks),
                array_fill(1.0, ARRAY[cardinality(g.tasks)])
            ) END
        ) AS t
    ) AS w;
END;
COMMENT ON FUNCTION loracomp.route_query IS
'The route of one vector: the retrieved examples, nearest first; the tasks, most probable first, with their weights and expected gains. '
'All weights are 0 if the nearest example is below min_similarity. A gain is null if it is unknown. The arrays are empty if nothing '
'was found. If the choices are to be calibrated, by examples of labelled_task or else of the nearest task, calibration_examples has the '
'ids of the examples; the tasks are then weighed by adapter_worths, or equally if nothing is known about the adapters.';

-- Changes nothing. One call for each batch, so that settings, eligible tasks, examples and adapters come from one snapshot.
CREATE FUNCTION loracomp.route_jobs(
    job_ids bigint[], embeddings public.vector[], encoder text DEFAULT NULL, input_version smallint DEFAULT NULL
)
RETURNS TABLE (
    job_id bigint,
    adapter_ids integer[],
    adapter_sha256 text[],
    adapter_weights double precision[],
    strategy text,
    density double precision,
    choice_normalization text,
    chat_template boolean,
    calibration_examples bigint[],
    description_weight double precision,
    trace loracomp.route_trace
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- The settings of a search: see nearest_examples.
SET enable_seqscan = off
SET jit = off
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.max_scan_tuples = 200000
SET hnsw.ef_search = 100
AS $$
    -- If an installer is at work, wait for it here, and not in a function below, which it will have replaced when it ends.
    SELECT FROM loracomp.job LIMIT 0;
    WITH routed AS MATERIALIZED (
        SELECT g.ordinal, g.embedding, a.*, r.*
        FROM (
            SELECT u.job_id, u.ordinal, loracomp.checked_embedding(u.embedding) AS embedding
            FROM unnest(route_jobs.job_ids, route_jobs.embeddings) WITH ORDINALITY AS u (job_id, embedding, ordinal)
            -- In a subquery, so that it is called once, and not for each job.
            WHERE (SELECT loracomp.check_encoder(route_jobs.encoder, route_jobs.input_version))
            OFFSET 0 -- each vector is converted once
        ) AS g
        JOIN loracomp.routing_inputs(route_jobs.job_ids) AS a USING (job_id)
        -- If the job gives weights for its tasks, nothing is retrieved.
        CROSS JOIN LATERAL loracomp.route_query(
            g.embedding, CASE WHEN a.gives_weights THEN '{}' ELSE a.searched END,
            a.exact OR a.gives_weights, a.settings, a.adapter_ids, a.adapter_tasks, a.choices_to_calibrate,
            a.labelled_task
        ) AS r
    )
    SELECT
        r.job_id, c.adapter_ids, c.adapter_sha256, c.adapter_weights, (r.settings).strategy, (r.settings).density,
        (r.settings).choice_normalization, r.chat_template, r.calibration_examples, 5 / n.near ^ 2,
        trace::loracomp.route_trace
    FROM routed AS r
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN r.is_described AND r.gives_weights THEN 1.0
            WHEN r.is_described THEN loracomp.nearness(r.similarities)
        END AS near
    ) AS n
    CROSS JOIN LATERAL loracomp.compose_tasks(
        r.base_model, CASE WHEN r.gives_weights THEN 'retrieval' ELSE (r.settings).router END,
        CASE WHEN NOT r.gives_weights THEN r.task_ids WHEN r.given_tasks <@ r.eligible THEN r.given_tasks END,
        coalesce(
            r.given_weights,
            CASE WHEN r.is_described AND r.calibration_examples IS NULL THEN loracomp.scaled(r.weights, n.near ^ 4) END,
            r.weights
        ),
        r.eligible, r.own_task
    ) AS c
    CROSS JOIN LATERAL loracomp.trace_tasks(r.task_ids, r.probabilities, r.gains, c.task_ids, c.adapter_weights) AS t
    CROSS JOIN LATERAL (
        -- The columns of loracomp.route_trace, in their order.
        SELECT
            r.example_ids,
            ARRAY(
                SELECT k.name FROM unnest(r.example_tasks) WITH ORDINALITY AS u (task_id, ordinal)
                JOIN loracomp.task AS k ON k.id = u.task_id ORDER BY u.ordinal
            ) AS example_tasks,
            r.similarities,
            t.tasks,
            t.probabilities,
            t.weights,
            c.names AS composed_tasks,
            c.adapter_ids,
            c.adapter_sha256,
            c.adapter_weights,
            r.policy_snapshot AS policy_settings,
            CASE WHEN c.names = '{}' THEN loracomp.fallback_reason(
                r.settings, r.only_generating, r.gives_weights, r.own_task, r.embedding, r.eligible, r.searched,
                r.similarities, r.gains
            ) END AS fallback,
            cardinality(r.searched) AS searched_task_count,
            CASE WHEN loracomp.uses_gains((r.settings).weighting) THEN t.expected_gains END AS expected_gains,
            r.chat_template,
            r.calibration_examples
    ) AS trace
    ORDER BY r.ordinal;
$$;
COMMENT ON FUNCTION loracomp.route_jobs IS
'Routes a batch of jobs by their unit vectors. The row of a job has the adapters to compose (none: the base model answers alone), how '
'to merge them, how to score choices, how much descriptions count (null: there are none), and the trace, which record_predictions takes '
'unchanged. A deleted job has no row. Raises an error if the vectors come from another encoder than the database''s, or if the examples are being embedded by another one.';

-- Reads only. A worker calls it for the calibration_examples of route_jobs.
CREATE FUNCTION loracomp.read_labelled(job_ids bigint[], tokens bigint[], example_ids bigint[])
RETURNS TABLE (example_id bigint, prompt text, label text, embedding public.halfvec)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT e.id, e.prompt, e.label, v.embedding
    FROM loracomp.example AS e
    JOIN loracomp.example_embedding AS v ON v.example_id = e.id
    JOIN loracomp.task AS t ON t.id = e.task_id
    WHERE e.id = ANY (read_labelled.example_ids) AND e.split = 'train' AND e.prompt IS NOT NULL AND e.label IS NOT NULL
        AND EXISTS (SELECT FROM loracomp.measurement AS m WHERE m.example_id = e.id)
        AND EXISTS (
            SELECT FROM unnest(read_labelled.job_ids, read_labelled.tokens) AS u (id, token)
            JOIN loracomp.job AS j ON j.id = u.id AND j.lease_token = u.token
            WHERE j.id = ANY (read_labelled.job_ids) AND j.choices @> e.choices AND j.choices <@ e.choices
                AND loracomp.may_read(j.submitted_by, t.reader_role)
        );
$$;
COMMENT ON FUNCTION loracomp.read_labelled IS
'Prompts, labels and embeddings of measured examples, on which a worker fits biases of choices and a classifier. It returns only '
'examples that have the choices of a job that the worker holds, and whose task the job''s submitter may read.';

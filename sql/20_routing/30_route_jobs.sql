-- Live routing: a worker calls route_jobs for each batch that it claimed.
--   route_jobs                  compositions and traces for a batch of jobs and their vectors
--     check_encoder_unchanged, checked_embedding
--     usable_tasks, narrowed_tasks, active_adapters, search_exactly
--     route_query               examples, probabilities, expected gains and weights for one vector
--       nearest_examples
--       expected_gains          if the policy's weighting is 'measured'
--       calibration_examples    for a task without an adapter
--       task_weights
--     in_chat_template          whether the prompt is put into the base model's chat template
--     pick_tasks                the tasks to compose, by the policy's router
--   read_labelled               text and answers of calibration_examples
-- In this file a function comes before its callers, because Postgres checks the body of a SQL function when it is created.

-- Changes nothing. Calls nearest_examples, expected_gains and task_weights for one vector.
CREATE FUNCTION loracomp.route_query(
    q halfvec,
    tasks integer[],
    exact boolean,
    settings loracomp.policy,
    usable_adapters integer[],
    adapter_tasks integer[],
    choices text[] DEFAULT NULL
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
            WHEN choices IS NOT NULL AND near.task_id <> ALL (adapter_tasks)
                THEN loracomp.calibration_examples(choices, near.task_id, n.similarities[1], usable_adapters, settings)
        END AS examples
        FROM (VALUES (n.tasks[1])) AS near (task_id)
        OFFSET 0 -- called once, and not wherever its result is used
    ) AS c
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(x.task_id), '{}') AS tasks, coalesce(array_agg(x.gain), '{}') AS gains
        FROM loracomp.expected_gains(
            -- With calibration, the gains on its examples alone, which are the same for each job.
            coalesce(c.examples, n.ids),
            CASE WHEN c.examples IS NULL THEN n.similarities ELSE array_fill(1.0, ARRAY[cardinality(c.examples)]) END,
            usable_adapters, adapter_tasks, settings
        ) AS x
        WHERE (settings).weighting = 'measured'
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
            n.tasks, n.similarities, settings, g.tasks, g.gains, c.examples IS NOT NULL
        ) AS t
    ) AS w;
END;
COMMENT ON FUNCTION loracomp.route_query IS
'The route of one vector: retrieved examples, nearest first; tasks, most probable first; weights, all 0 if the nearest example '
'is below min_similarity; expected gains, null if unknown. The arrays are empty if nothing was found. If the choices are to be '
'calibrated, on which examples; the weights are then equal.';

-- Changes nothing and reads no table. The router random draws by md5, which gives the same on every server and release.
CREATE FUNCTION loracomp.pick_tasks(
    router text,
    tasks integer[],
    weights double precision[],
    eligible integer[],
    own_task integer,
    seed integer,
    job_id bigint
) RETURNS TABLE (task_id integer, weight double precision)
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 4
BEGIN ATOMIC
    SELECT u.task_id, u.weight
    FROM unnest(tasks, weights) AS u (task_id, weight)
    WHERE router IN ('retrieval', 'random_parameters') AND u.weight > 0
    UNION ALL
    SELECT own_task, 1.0
    WHERE router = 'own_task' AND own_task = ANY (eligible)
    UNION ALL
    SELECT drawn.task_id, kept.weight
    FROM (
        SELECT u.weight, row_number() OVER (ORDER BY u.weight DESC, u.place) AS turn
        FROM unnest(weights) WITH ORDINALITY AS u (weight, place)
        WHERE u.weight > 0
    ) AS kept
    JOIN (
        SELECT u.task_id, row_number() OVER (ORDER BY md5(concat_ws('/', seed, job_id, u.task_id))) AS turn
        FROM unnest(eligible) AS u (task_id)
    ) AS drawn USING (turn)
    WHERE router = 'random';
END;
COMMENT ON FUNCTION loracomp.pick_tasks IS
'Tasks to compose, with weights, by router. retrieval and random_parameters: the tasks that routing kept. own_task: the job''s '
'own task. random: eligible tasks drawn by seed and job, with the number and weights of those that routing kept. base: none.';

-- Changes nothing and reads no table.
CREATE FUNCTION loracomp.in_chat_template(
    setting text, has_one boolean, choices text[], asked boolean DEFAULT NULL, system_text text DEFAULT NULL
)
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT coalesce(
        asked,
        system_text IS NOT NULL
        OR (has_one AND (setting = 'always' OR (setting = 'generation' AND choices IS NULL)))
    );
END;
COMMENT ON FUNCTION loracomp.in_chat_template IS
'Whether a job''s prompt is put into the base model''s chat template: as the job asks; always with a system text; otherwise as '
'the policy''s setting says, if the model has one.';

-- Changes nothing. One call for each batch, so that settings, eligible tasks, examples and adapters come from one snapshot.
CREATE FUNCTION loracomp.route_jobs(
    job_ids bigint[],
    embeddings vector[],
    encoder text DEFAULT NULL,
    input_version smallint DEFAULT NULL,
    calibrates boolean DEFAULT FALSE
)
RETURNS TABLE (
    job_id bigint,
    adapter_ids integer[],
    adapter_sha256 text[],
    adapter_weights double precision[],
    strategy text,
    density double precision,
    seed integer,
    random_parameters boolean,
    choice_normalization text,
    contrast double precision,
    chat_template boolean,
    calibration_examples bigint[],
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
    WITH asked AS MATERIALIZED (
        SELECT
            j.id AS job_id,
            a.place,
            loracomp.checked_embedding(a.embedding) AS embedding,
            j.base_model,
            j.submitted_by,
            j.exclude_tasks,
            coalesce(j.tasks, '{}') AS named_tasks,
            j.policy,
            j.choices,
            j.system_text,
            j.chat_template,
            -- If the job gives weights for its tasks, nothing is retrieved. For a deleted task this is null, which matches none.
            ARRAY(
                SELECT t.id FROM unnest(j.tasks) WITH ORDINALITY AS u (name, place)
                LEFT JOIN loracomp.task AS t ON t.name = u.name ORDER BY u.place
            ) AS pinned_tasks,
            j.weights AS pinned_weights,
            (SELECT t.id FROM loracomp.task AS t WHERE t.name = j.task) AS own_task
        FROM unnest(job_ids, embeddings) WITH ORDINALITY AS a (job_id, embedding, place)
        JOIN loracomp.job AS j ON j.id = a.job_id
        -- In a subquery, so that it is called once, and not for each job.
        WHERE (SELECT loracomp.check_encoder_unchanged(route_jobs.encoder, route_jobs.input_version))
            -- Again, so that no plan that was made for an empty queue reads all jobs.
            AND j.id = ANY (route_jobs.job_ids)
    ), used AS MATERIALIZED (
        SELECT p.name AS policy, p AS settings, to_jsonb(p) - '{description,created_at,updated_at}'::text[] AS stored
        FROM loracomp.policy AS p
        WHERE p.name IN (SELECT a.policy FROM asked AS a)
    ), wanted AS MATERIALIZED (
        SELECT
            a.*, u.settings, u.stored, (u.settings).weighting = 'measured' AS measured,
            loracomp.in_chat_template(
                (u.settings).chat_template, b.has_chat_template, a.choices, a.chat_template, a.system_text
            ) AS in_chat_template
        FROM asked AS a
        JOIN used AS u USING (policy)
        JOIN loracomp.base_model AS b ON b.name = a.base_model
    ), usable AS MATERIALIZED (
        -- With weighting measured, measured examples of tasks without an adapter also show which adapters help.
        SELECT
            s.*,
            loracomp.usable_tasks(s.base_model, s.submitted_by, FALSE) AS tasks,
            CASE WHEN s.measured THEN loracomp.usable_tasks(s.base_model, s.submitted_by, TRUE) END AS or_measured
        FROM (SELECT DISTINCT w.base_model, w.submitted_by, w.measured FROM wanted AS w) AS s
    ), scope AS MATERIALIZED (
        SELECT
            s.*,
            loracomp.narrowed_tasks(u.tasks, s.exclude_tasks, s.named_tasks) AS eligible,
            CASE WHEN s.measured THEN loracomp.narrowed_tasks(u.or_measured, s.exclude_tasks, s.named_tasks) END AS or_measured
        FROM (
            SELECT DISTINCT w.base_model, w.submitted_by, w.exclude_tasks, w.named_tasks, w.measured FROM wanted AS w
        ) AS s
        JOIN usable AS u USING (base_model, submitted_by, measured)
    ), search AS MATERIALIZED (
        SELECT s.*, x.searched, a.adapter_ids, a.adapter_tasks, loracomp.search_exactly(x.searched) AS exact
        FROM scope AS s
        CROSS JOIN LATERAL (SELECT coalesce(s.or_measured, s.eligible) AS searched) AS x
        LEFT JOIN LATERAL (
            SELECT c.* FROM loracomp.active_adapters(s.base_model, s.eligible) AS c WHERE s.measured
            OFFSET 0 -- called only if it is needed
        ) AS a ON TRUE
    ), routed AS MATERIALIZED (
        SELECT w.*, s.eligible, s.searched, r.*
        FROM wanted AS w
        JOIN search AS s USING (base_model, submitted_by, exclude_tasks, named_tasks, measured)
        CROSS JOIN LATERAL loracomp.route_query(
            w.embedding,
            CASE WHEN w.pinned_weights IS NULL THEN s.searched ELSE '{}' END,
            s.exact OR w.pinned_weights IS NOT NULL,
            w.settings,
            s.adapter_ids,
            s.adapter_tasks,
            -- A worker of an earlier release fits no biases. A system text of its own would make each job score the rows again.
            CASE
                WHEN route_jobs.calibrates AND (w.settings).router = 'retrieval' AND w.system_text IS NULL THEN w.choices
            END
        ) AS r
    )
    SELECT
        r.job_id,
        composed.adapter_ids,
        composed.sha256,
        composed.weights,
        (r.settings).strategy,
        (r.settings).density,
        (r.settings).seed,
        (r.settings).router = 'random_parameters',
        (r.settings).choice_normalization,
        (r.settings).contrast,
        r.in_chat_template,
        r.calibration_examples,
        -- The order of loracomp.route_trace's attributes; the worker passes the value to record_predictions unread.
        ROW(
            r.embedding,
            r.example_ids,
            ARRAY(
                SELECT t.name FROM unnest(r.example_tasks) WITH ORDINALITY AS u (task_id, place)
                JOIN loracomp.task AS t ON t.id = u.task_id ORDER BY u.place
            ),
            r.similarities,
            traced.tasks,
            traced.probabilities,
            traced.weights,
            composed.tasks,
            composed.adapter_ids,
            composed.sha256,
            composed.weights,
            r.stored,
            CASE
                WHEN composed.tasks <> '{}' THEN NULL
                WHEN r.pinned_weights IS NOT NULL THEN 'a given task has no active adapter, or may not be used'
                WHEN (r.settings).router = 'base' THEN 'router is base'
                WHEN r.searched = '{}' THEN 'no eligible task'
                WHEN (r.settings).router = 'own_task' AND r.own_task IS NULL THEN 'job names no task'
                WHEN (r.settings).router = 'own_task' THEN 'own task is not eligible'
                WHEN 0 = ALL (r.embedding::real[]) THEN 'embedding is zero'
                WHEN r.example_ids = '{}' THEN 'no example of an eligible task'
                WHEN r.similarities[1] < (r.settings).min_similarity THEN 'below min_similarity'
                WHEN r.eligible = '{}' THEN 'no eligible task has an adapter'
                WHEN array_remove(r.gains, NULL) = '{}' THEN 'no retrieved example is measured'
                ELSE 'no adapter is expected to help'
            END,
            cardinality(r.searched), -- eligible_task_count
            traced.expected_gains,
            r.in_chat_template,
            r.calibration_examples
        )::loracomp.route_trace
    FROM routed AS r
    CROSS JOIN LATERAL (
        SELECT
            array_agg(p.task_id ORDER BY p.weight DESC, p.task_id) AS task_ids,
            coalesce(array_agg(t.name ORDER BY p.weight DESC, p.task_id), '{}') AS tasks,
            coalesce(array_agg(a.id ORDER BY p.weight DESC, p.task_id), '{}') AS adapter_ids,
            coalesce(array_agg(a.sha256 ORDER BY p.weight DESC, p.task_id), '{}') AS sha256,
            coalesce(array_agg(p.weight ORDER BY p.weight DESC, p.task_id), '{}') AS weights
        FROM loracomp.pick_tasks(
            CASE WHEN r.pinned_weights IS NULL THEN (r.settings).router ELSE 'retrieval' END,
            CASE
                WHEN r.pinned_weights IS NULL THEN r.task_ids
                WHEN r.pinned_tasks <@ r.eligible THEN r.pinned_tasks
            END,
            coalesce(r.pinned_weights, r.weights),
            r.eligible, r.own_task, (r.settings).seed, r.job_id
        ) AS p
        JOIN loracomp.task AS t ON t.id = p.task_id
        JOIN loracomp.base_model AS b ON b.name = r.base_model
        JOIN loracomp.adapter AS a ON a.task_id = p.task_id AND a.base_model_id = b.id AND a.status = 'active'
    ) AS composed
    CROSS JOIN LATERAL (
        -- A control may compose a task that retrieval did not find; its probability is 0.
        SELECT
            coalesce(array_agg(t.name ORDER BY u.place, c.place), '{}') AS tasks,
            coalesce(array_agg(coalesce(u.probability, 0) ORDER BY u.place, c.place), '{}') AS probabilities,
            coalesce(array_agg(coalesce(c.weight, 0) ORDER BY u.place, c.place), '{}') AS weights,
            CASE WHEN r.measured THEN array_agg(u.gain ORDER BY u.place, c.place) END AS expected_gains
        FROM unnest(r.task_ids, r.probabilities, r.gains) WITH ORDINALITY AS u (task_id, probability, gain, place)
        FULL JOIN unnest(composed.task_ids, composed.weights) WITH ORDINALITY AS c (task_id, weight, place)
            USING (task_id)
        JOIN loracomp.task AS t ON t.id = task_id
    ) AS traced
    ORDER BY r.place;
$$;
COMMENT ON FUNCTION loracomp.route_jobs IS
'Routes a batch of jobs by their unit vectors: for each job a row with the adapters to compose (none: the base model alone), '
'how to merge them, how to score choices (calibration_examples: the examples on which to fit biases; null: none), and its '
'trace, which record_predictions takes unchanged. For every router, the trace has the examples and probabilities of retrieval. '
'calibrates: the worker fits biases. A deleted job has no row. encoder and input_version are those that made the vectors; '
'raises if the database has another encoder. encoder is null if no encoder made them.';

-- Reads only. A worker calls it for the calibration_examples of route_jobs.
CREATE FUNCTION loracomp.read_labelled(job_ids bigint[], tokens bigint[], example_ids bigint[])
RETURNS TABLE (example_id bigint, prompt text, answer text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT e.id, e.prompt, e.answer
    FROM loracomp.example AS e
    JOIN loracomp.task AS t ON t.id = e.task_id
    WHERE e.id = ANY (read_labelled.example_ids) AND e.split = 'train' AND e.prompt IS NOT NULL AND e.answer IS NOT NULL
        AND EXISTS (SELECT FROM loracomp.measurement AS m WHERE m.example_id = e.id)
        AND EXISTS (
            SELECT FROM unnest(read_labelled.job_ids, read_labelled.tokens) AS u (id, token)
            JOIN loracomp.job AS j ON j.id = u.id AND j.lease_token = u.token
            WHERE j.choices @> e.choices AND j.choices <@ e.choices
                AND loracomp.may_read(j.submitted_by, t.reader_role)
        );
$$;
COMMENT ON FUNCTION loracomp.read_labelled IS
'Prompts and right answers of measured examples, on which a worker fits biases of choices; only of those that have the choices of '
'a job that the worker holds, and whose task the job''s submitter may know.';

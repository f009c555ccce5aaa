-- drop: DROP FUNCTION IF EXISTS loracomp.route_jobs(bigint[], vector[], text, smallint)
-- Changes nothing. One call a batch: settings, scope, retrieval and adapters come from one snapshot.
-- Without enable_seqscan = off the planner prefers to read a table of 4,000 to some 10,000 examples whole, ten times slower.
-- hnsw.ef_search is what tune_routing sets by the size of the table.
CREATE FUNCTION loracomp.route_jobs(
    job_ids bigint[], embeddings vector[], encoder text DEFAULT NULL, input_version smallint DEFAULT NULL
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
    rescale boolean,
    choice_normalization text,
    contrast double precision,
    trace loracomp.route_trace
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET hnsw.iterative_scan = 'relaxed_order'
-- The default of 20,000 gives up among neighbours that are not eligible.
SET hnsw.max_scan_tuples = 200000
SET hnsw.ef_search = 100
AS $$
    WITH asked AS MATERIALIZED (
        SELECT
            j.id AS job_id,
            a.place,
            a.embedding,
            j.base_model,
            j.submitted_by,
            j.exclude_tasks,
            j.policy,
            (SELECT t.id FROM loracomp.task AS t WHERE t.name = j.task) AS own_task
        FROM unnest(job_ids, embeddings) WITH ORDINALITY AS a (job_id, embedding, place)
        JOIN loracomp.job AS j ON j.id = a.job_id
        WHERE loracomp.check_encoder_unchanged(route_jobs.encoder, route_jobs.input_version)
            AND loracomp.check_embedding(a.embedding)
    ), used AS MATERIALIZED (
        SELECT p.name AS policy, p AS settings, to_jsonb(p) - '{description,created_at,updated_at}'::text[] AS stored
        FROM loracomp.policy AS p
        WHERE p.name IN (SELECT a.policy FROM asked AS a)
    ), scope AS MATERIALIZED (
        SELECT s.*, loracomp.eligible_tasks(s.base_model, s.submitted_by, s.exclude_tasks) AS eligible
        FROM (SELECT DISTINCT a.base_model, a.submitted_by, a.exclude_tasks FROM asked AS a) AS s
    ), search AS MATERIALIZED (
        SELECT s.*, loracomp.search_exactly(s.eligible) AS exact FROM scope AS s
    ), routed AS MATERIALIZED (
        SELECT a.*, u.settings, u.stored, s.eligible, r.*
        FROM asked AS a
        JOIN used AS u USING (policy)
        JOIN search AS s USING (base_model, submitted_by, exclude_tasks)
        CROSS JOIN LATERAL loracomp.route_query(a.embedding, s.eligible, s.exact, u.settings) AS r
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
        (r.settings).rescale,
        (r.settings).choice_normalization,
        (r.settings).contrast,
        -- In the order of loracomp.route_trace: nothing between here and record_predictions looks inside.
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
                WHEN (r.settings).router = 'base' THEN 'router is base'
                WHEN r.eligible = '{}' THEN 'no eligible task'
                WHEN (r.settings).router = 'own_task' AND r.own_task IS NULL THEN 'job names no task'
                WHEN (r.settings).router = 'own_task' THEN 'own task is not eligible'
                WHEN 0 = ALL (r.embedding::real[]) THEN 'embedding is zero'
                WHEN r.example_ids = '{}' THEN 'no example of an eligible task'
                ELSE 'below min_similarity'
            END,
            cardinality(r.eligible) -- eligible_task_count
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
            (r.settings).router, r.task_ids, r.weights, r.eligible, r.own_task, (r.settings).seed, r.job_id
        ) AS p
        JOIN loracomp.task AS t ON t.id = p.task_id
        JOIN loracomp.base_model AS b ON b.name = r.base_model
        JOIN loracomp.adapter AS a ON a.task_id = p.task_id AND a.base_model_id = b.id AND a.status = 'active'
    ) AS composed
    CROSS JOIN LATERAL (
        -- A control may compose a task that retrieval did not find: probability 0.
        SELECT
            coalesce(array_agg(t.name ORDER BY u.place, c.place), '{}') AS tasks,
            coalesce(array_agg(coalesce(u.probability, 0) ORDER BY u.place, c.place), '{}') AS probabilities,
            coalesce(array_agg(coalesce(c.weight, 0) ORDER BY u.place, c.place), '{}') AS weights
        FROM unnest(r.task_ids, r.probabilities) WITH ORDINALITY AS u (task_id, probability, place)
        FULL JOIN unnest(composed.task_ids, composed.weights) WITH ORDINALITY AS c (task_id, weight, place)
            USING (task_id)
        JOIN loracomp.task AS t ON t.id = task_id
    ) AS traced
    ORDER BY r.place;
$$;
COMMENT ON FUNCTION loracomp.route_jobs IS
'Routes a batch of jobs by their unit vectors: a row a job with the adapters to compose (none: the base model alone), how to '
'merge them, how to read choices, and its trace, which record_predictions takes as it is. Whatever the router, the examples '
'and probabilities of the trace are those of retrieval. A job that no longer exists has no row. encoder is the fingerprint '
'of the one that made the vectors, shown input_version: an error where the database has another; null where none made them.';

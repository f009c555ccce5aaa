-- drop: DROP FUNCTION IF EXISTS loracomp.route_jobs(bigint[], vector[], text, smallint)
-- Changes nothing. One call a batch: settings, scope, retrieval and adapters come from one snapshot.
-- Without enable_seqscan = off the planner prefers to read a table of 4,000 to some 10,000 examples whole, ten times slower.
-- hnsw.ef_search is what tune_routing sets by the size of the table.
CREATE FUNCTION loracomp.route_jobs(
    job_ids bigint[], embeddings vector[], encoder text DEFAULT NULL, input_version smallint DEFAULT NULL
)
RETURNS TABLE (
    job_id bigint,
    policy jsonb,
    example_ids bigint[],
    example_tasks text[],
    similarities double precision[],
    tasks text[],
    probabilities double precision[],
    weights double precision[],
    composed_tasks text[],
    adapter_ids integer[],
    adapter_sha256 text[],
    adapter_weights double precision[],
    fallback text
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
            (SELECT t.id FROM loracomp.task AS t WHERE t.name = j.task) AS own_task,
            to_jsonb(p) - '{description,created_at,updated_at}'::text[] AS settings,
            p.*
        FROM unnest(job_ids, embeddings) WITH ORDINALITY AS a (job_id, embedding, place)
        JOIN loracomp.job AS j ON j.id = a.job_id
        JOIN loracomp.policy AS p ON p.name = j.policy
        WHERE loracomp.check_encoder_unchanged(route_jobs.encoder, route_jobs.input_version)
            AND loracomp.check_embedding(a.embedding)
    ), scope AS MATERIALIZED (
        SELECT s.*, loracomp.eligible_tasks(s.base_model, s.submitted_by, s.exclude_tasks) AS eligible
        FROM (SELECT DISTINCT a.base_model, a.submitted_by, a.exclude_tasks FROM asked AS a) AS s
    ), search AS MATERIALIZED (
        SELECT s.*, loracomp.search_exactly(s.eligible) AS exact FROM scope AS s
    ), routed AS MATERIALIZED (
        SELECT a.*, s.eligible, r.*
        FROM asked AS a
        JOIN search AS s USING (base_model, submitted_by, exclude_tasks)
        CROSS JOIN LATERAL loracomp.route_query(
            a.embedding, s.eligible, s.exact,
            a.k, a.temperature, a.aggregation, a.nucleus, a.top_p, a.max_adapters, a.weighting, a.min_similarity
        ) AS r
    )
    SELECT
        r.job_id,
        r.settings,
        r.example_ids,
        ARRAY(
            SELECT t.name FROM unnest(r.example_tasks) WITH ORDINALITY AS u (task_id, place)
            JOIN loracomp.task AS t ON t.id = u.task_id ORDER BY u.place
        ),
        r.similarities,
        coalesce(traced.tasks, '{}'),
        coalesce(traced.probabilities, '{}'),
        coalesce(traced.weights, '{}'),
        coalesce(composed.tasks, '{}'),
        coalesce(composed.adapter_ids, '{}'),
        coalesce(composed.sha256, '{}'),
        coalesce(composed.weights, '{}'),
        CASE
            WHEN composed.tasks IS NOT NULL THEN NULL
            WHEN r.router = 'base' THEN 'router is base'
            WHEN r.eligible = '{}' THEN 'no eligible task'
            WHEN r.router = 'own_task' AND r.own_task IS NULL THEN 'job names no task'
            WHEN r.router = 'own_task' THEN 'own task is not eligible'
            WHEN 0 = ALL (r.embedding::real[]) THEN 'embedding is zero'
            WHEN r.example_ids = '{}' THEN 'no example of an eligible task'
            ELSE 'below min_similarity'
        END
    FROM routed AS r
    CROSS JOIN LATERAL (
        SELECT
            array_agg(p.task_id ORDER BY p.weight DESC, p.task_id) AS task_ids,
            array_agg(t.name ORDER BY p.weight DESC, p.task_id) AS tasks,
            array_agg(a.id ORDER BY p.weight DESC, p.task_id) AS adapter_ids,
            array_agg(a.sha256 ORDER BY p.weight DESC, p.task_id) AS sha256,
            array_agg(p.weight ORDER BY p.weight DESC, p.task_id) AS weights
        FROM loracomp.pick_tasks(r.router, r.task_ids, r.weights, r.eligible, r.own_task, r.seed, r.job_id) AS p
        JOIN loracomp.task AS t ON t.id = p.task_id
        JOIN loracomp.base_model AS b ON b.name = r.base_model
        JOIN loracomp.adapter AS a ON a.task_id = p.task_id AND a.base_model_id = b.id AND a.status = 'active'
    ) AS composed
    CROSS JOIN LATERAL (
        -- A control may compose a task that retrieval did not find: probability 0.
        SELECT
            array_agg(t.name ORDER BY u.place, c.place) AS tasks,
            array_agg(coalesce(u.probability, 0) ORDER BY u.place, c.place) AS probabilities,
            array_agg(coalesce(c.weight, 0) ORDER BY u.place, c.place) AS weights
        FROM unnest(r.task_ids, r.probabilities) WITH ORDINALITY AS u (task_id, probability, place)
        FULL JOIN unnest(composed.task_ids, composed.weights) WITH ORDINALITY AS c (task_id, weight, place)
            USING (task_id)
        JOIN loracomp.task AS t ON t.id = task_id
    ) AS traced
    ORDER BY r.place;
$$;
COMMENT ON FUNCTION loracomp.route_jobs IS
'Routes a batch of jobs by their unit vectors: a row a job with the retrieved examples, tasks by falling probability (weight '
'0: not composed), the adapters to compose, and where there are none the reason. Whatever the router, the examples and '
'probabilities are those of retrieval. A job that no longer exists has no row. encoder is the fingerprint of the one that '
'made the vectors, shown input_version: an error where the database has another; null where none made them.';

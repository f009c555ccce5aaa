-- Changes nothing. Evaluated examples have no stored embedding, so it uses the vectors with which the evaluation's jobs were
-- routed. For each it reads the 20 nearest train examples of all tasks, which takes some milliseconds.
CREATE FUNCTION loracomp.near_duplicates(task text DEFAULT NULL, threshold double precision DEFAULT 0.95)
RETURNS TABLE (
    own_task text,
    example_id bigint,
    source_ref text,
    train_task text,
    train_example_id bigint,
    train_source_ref text,
    similarity double precision
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
    SELECT loracomp.check_task_exists(near_duplicates.task);
    SELECT loracomp.check_range('threshold', near_duplicates.threshold, -1, 1);
    WITH evaluated AS MATERIALIZED (
        SELECT DISTINCT ON (j.example_id) j.example_id, j.task, p.query_embedding AS query
        FROM loracomp.job AS j
        JOIN loracomp.prediction AS p ON p.job_id = j.id
        JOIN loracomp.encoder AS c ON p.encoder = format('%s/%s', c.name, c.input_version)
        WHERE j.evaluation IS NOT NULL AND j.example_id IS NOT NULL AND p.query_embedding IS NOT NULL
            AND j.task = coalesce(near_duplicates.task, j.task)
        ORDER BY j.example_id, j.id DESC
    ), scope AS MATERIALIZED (
        SELECT a.tasks, loracomp.search_exactly(a.tasks) AS exact
        FROM (SELECT array_agg(t.id ORDER BY t.id) AS tasks FROM loracomp.task AS t) AS a
    )
    SELECT v.task, v.example_id, e.source_ref, t.name, n.example_id, x.source_ref, n.similarity
    FROM evaluated AS v
    CROSS JOIN scope AS s
    CROSS JOIN LATERAL loracomp.nearest_examples(v.query, s.tasks, 20, s.exact) AS n
    JOIN loracomp.task AS t ON t.id = n.task_id
    JOIN loracomp.example AS x ON x.id = n.example_id
    LEFT JOIN loracomp.example AS e ON e.id = v.example_id
    WHERE n.similarity BETWEEN near_duplicates.threshold AND 2 AND n.example_id <> v.example_id
    ORDER BY v.task, n.similarity DESC, v.example_id, n.example_id;
$$;
COMMENT ON FUNCTION loracomp.near_duplicates IS
'Pairs of an evaluated example and a train example of any task whose cosine similarity is at least the threshold; for one '
'evaluated task, or all (null). An evaluation of kind route is enough.';

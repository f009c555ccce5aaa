-- Changes nothing. Evaluated examples have no embedding of their own: the vectors are those that jobs of evaluations were
-- routed with. It looks at the 20 nearest train examples of each, whatever the task; some milliseconds an example.
-- Without enable_seqscan = off the planner prefers to read a table of 4,000 to some 10,000 examples whole, ten times slower.
-- hnsw.ef_search is what tune_routing sets by the size of the table.
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
SET enable_seqscan = off
SET hnsw.iterative_scan = 'relaxed_order'
-- The default of 20,000 gives up among neighbours that are not eligible.
SET hnsw.max_scan_tuples = 200000
SET hnsw.ef_search = 100
AS $$
    WITH evaluated AS MATERIALIZED (
        SELECT DISTINCT ON (j.example_id) j.example_id, j.task, loracomp.stored_vector(p.query_embedding) AS query
        FROM loracomp.job AS j
        JOIN loracomp.prediction AS p ON p.job_id = j.id
        JOIN loracomp.encoder AS c ON p.encoder = format('%s/%s', c.name, c.input_version)
        WHERE j.evaluation IS NOT NULL AND j.example_id IS NOT NULL AND p.query_embedding IS NOT NULL
            AND j.task = coalesce(near_duplicates.task, j.task)
        ORDER BY j.example_id, j.id DESC
    ), scope AS MATERIALIZED (
        SELECT a.tasks, loracomp.search_exactly(a.tasks) AS exact
        FROM (SELECT array_agg(t.id) AS tasks FROM loracomp.task AS t) AS a
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
'Pairs of an example that an evaluation has asked and a train example of any task whose cosine similarity is at least the '
'threshold; of one task, or of all tasks (null). It is enough that an evaluation of kind route has asked the example.';

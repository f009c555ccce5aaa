-- Changes nothing. It reads examples with its owner's rights, but only of tasks that the caller may read.
CREATE FUNCTION loracomp.route(
    embedding public.vector,
    policy text DEFAULT 'default',
    settings jsonb DEFAULT '{}',
    exclude_tasks text[] DEFAULT '{}',
    base_model text DEFAULT NULL,
    choices text[] DEFAULT NULL
) RETURNS TABLE (
    task text,
    probability double precision,
    weight double precision,
    in_nucleus boolean,
    examples bigint,
    nearest double precision,
    expected_gain double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- The settings of a search: see nearest_examples.
SET enable_seqscan = off
SET jit = off
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.max_scan_tuples = 200000
SET hnsw.ef_search = 100
AS $$
#variable_conflict use_column
DECLARE
    used CONSTANT loracomp.policy := loracomp.policy_with(route.policy, route.settings);
    model CONSTANT text := (loracomp.find_base_model(route.base_model)).name;
    eligible integer[];
    searched integer[];
BEGIN
    PERFORM loracomp.check_encoder(NULL, NULL);
    PERFORM loracomp.check_tasks_exist('exclude_tasks', route.exclude_tasks);
    eligible := loracomp.narrowed_tasks(loracomp.usable_tasks(model, loracomp.caller(), FALSE), exclude_tasks, '{}');
    searched := loracomp.narrowed_tasks(
        loracomp.usable_tasks(model, loracomp.caller(), loracomp.uses_gains(used.weighting)), exclude_tasks, '{}'
    );
    RETURN QUERY
    SELECT t.name, u.probability, u.weight, u.in_nucleus, count(x.task_id), max(x.similarity), u.gain
    FROM loracomp.checked_embedding(embedding) AS q
    CROSS JOIN loracomp.active_adapters(model, eligible) AS a
    CROSS JOIN LATERAL loracomp.route_query(
        q, searched, loracomp.search_exactly(searched), used, a.adapter_ids, a.adapter_tasks,
        CASE WHEN used.router = 'retrieval' THEN choices END
    ) AS r
    CROSS JOIN LATERAL unnest(r.task_ids, r.probabilities, r.weights, r.in_nucleus, r.gains)
        WITH ORDINALITY AS u (task_id, probability, weight, in_nucleus, gain, ordinal)
    INNER JOIN loracomp.task AS t ON t.id = u.task_id
    LEFT JOIN LATERAL unnest(r.example_tasks, r.similarities) AS x (task_id, similarity) ON x.task_id = u.task_id
    GROUP BY u.ordinal, t.name, u.probability, u.weight, u.in_nucleus, u.gain
    ORDER BY u.ordinal;
END
$$;
COMMENT ON FUNCTION loracomp.route IS
'Routes one unit vector with the caller''s rights: for each task a row with its probability, weight (all 0: the base model '
'alone), number of retrieved examples, similarity of the nearest one and, with weighting measured, expected gain. settings '
'replace settings of the policy, such as {"routing_top_p": 0.9}; base_model null: the default; choices are '
'the choices of the job that would be routed so, if it has any: on a task without an adapter they may be calibrated.';

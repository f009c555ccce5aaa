-- drop: DROP FUNCTION IF EXISTS loracomp.route_query(vector, integer[], boolean, loracomp.policy)
-- Changes nothing: nearest_examples and task_weights for one vector.
CREATE FUNCTION loracomp.route_query(q vector, tasks integer[], exact boolean, settings loracomp.policy)
RETURNS TABLE (
    example_ids bigint[],
    example_tasks integer[],
    similarities double precision[],
    task_ids integer[],
    probabilities double precision[],
    in_nucleus boolean[],
    weights double precision[]
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
        coalesce(w.weights, '{}')
    FROM (
        SELECT
            coalesce(array_agg(x.example_id ORDER BY x.similarity DESC, x.example_id), '{}') AS ids,
            coalesce(array_agg(x.task_id ORDER BY x.similarity DESC, x.example_id), '{}') AS tasks,
            coalesce(array_agg(x.similarity ORDER BY x.similarity DESC, x.example_id), '{}') AS similarities
        FROM loracomp.nearest_examples(q, tasks, (settings).k, exact) AS x
        -- A zero vector has no direction: its similarities are NaN, which Postgres counts as the largest number.
        WHERE x.similarity <> 'NaN'
    ) AS n
    CROSS JOIN LATERAL (
        -- In the order of task_weights, which array_agg keeps; WITH ORDINALITY would keep the call from being inlined.
        SELECT
            array_agg(t.task_id) AS tasks,
            array_agg(t.probability) AS probabilities,
            array_agg(t.in_nucleus) AS kept,
            array_agg(CASE WHEN n.similarities[1] < (settings).min_similarity THEN 0 ELSE t.weight END) AS weights
        FROM loracomp.task_weights(n.tasks, n.similarities, settings) AS t
    ) AS w;
END;
COMMENT ON FUNCTION loracomp.route_query IS
'One vector''s route: retrieved examples, best first; tasks by falling probability; weights, all 0 where the nearest '
'example is below min_similarity. Empty arrays where nothing was found.';

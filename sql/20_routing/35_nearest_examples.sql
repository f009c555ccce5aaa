-- drop: DROP FUNCTION IF EXISTS loracomp.nearest_examples(vector, integer[], integer, boolean)
-- Changes nothing. Its shape keeps the plan independent of statistics and parameters, as a test holds:
-- task_id + 0 hides the btree from the HNSW branch; distance + 0 hides HNSW from the exact branch; the constant LIMIT (the
-- largest k of a policy) keeps the planner from costing a variable one at a tenth of the table. The HNSW scan is lazy, so
-- only k rows are read. Sort after the limit: a relaxed scan may return rows slightly out of order.
CREATE FUNCTION loracomp.nearest_examples(q vector, tasks integer[], k integer, exact boolean)
RETURNS TABLE (example_id bigint, task_id integer, similarity double precision)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 20
BEGIN ATOMIC
    (
        SELECT h.example_id, h.task_id, h.similarity
        FROM (
            SELECT e.example_id, e.task_id, 1 - (e.embedding <=> q) AS similarity
            FROM loracomp.example_embedding AS e
            WHERE NOT exact AND (e.task_id + 0) = ANY (tasks)
            ORDER BY e.embedding <=> q
            LIMIT 200
        ) AS h
        LIMIT k
    )
    UNION ALL
    (
        SELECT e.example_id, e.task_id, 1 - (e.embedding <=> q)
        FROM loracomp.example_embedding AS e
        WHERE exact AND e.task_id = ANY (tasks)
        ORDER BY (e.embedding <=> q) + 0, e.example_id
        LIMIT k
    );
END;
COMMENT ON FUNCTION loracomp.nearest_examples IS
'The k (at most 200) train examples of these tasks that are nearest to q by cosine similarity, in no particular order: '
'exactly, or by the HNSW index.';

-- drop: DROP FUNCTION IF EXISTS loracomp.search_exactly(integer[])
-- Changes nothing; reads at most 4,001 entries of an index.
CREATE FUNCTION loracomp.search_exactly(tasks integer[]) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    -- So few are scanned in some 2 ms; HNSW would have to discard the rows of other tasks, and miss some.
    SELECT NOT EXISTS (SELECT FROM loracomp.example_embedding AS e WHERE e.task_id = ANY (tasks) LIMIT 1 OFFSET 4000);
END;
COMMENT ON FUNCTION loracomp.search_exactly IS
'Whether these tasks have so few examples (4,000 at most) that an exact scan is the better search.';

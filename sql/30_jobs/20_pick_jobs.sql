-- drop: DROP FUNCTION IF EXISTS loracomp.pick_jobs(text, integer)
-- Locks the due jobs that a claim takes and changes nothing: the first of first_in_turn that nobody else has locked.
-- `leads` marks a submitter's first job: with it, its turn is taken.
-- Where none is due, jobs of evaluations, which are due 1000 minutes later than others: people don't wait behind them.
-- A job whose lease once ran out is taken alone: what kills its worker takes no other job with it.
CREATE FUNCTION loracomp.pick_jobs(base_model text, batch_size integer)
RETURNS TABLE (id bigint, submitted_by name, leads boolean)
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
-- The same plan, made once, whatever the statistics say, which lag behind a queue: index scans that stop early.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
-- In the order of the queue's own index, where another would do beside a sort: that of idempotency keys holds all jobs.
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH candidates AS MATERIALIZED (
        -- More than are needed: other workers, at the same moment, lock the same first ones.
        SELECT f.* FROM loracomp.first_in_turn(pick_jobs.base_model, 4 * pick_jobs.batch_size) AS f
    ),
    everyday AS MATERIALIZED (
        SELECT c.id, c.submitted_by, c.turn, c.place, l.suspect
        FROM candidates AS c
        CROSS JOIN LATERAL (
            SELECT j.expired_leases > 0 AS suspect FROM loracomp.job AS j
            WHERE j.id = c.id AND j.status = 'queued'
            FOR UPDATE SKIP LOCKED
        ) AS l
        LIMIT pick_jobs.batch_size
    ),
    evaluated AS MATERIALIZED (
        SELECT j.id, j.submitted_by, 2 AS turn, 1 AS place, j.due, j.expired_leases > 0 AS suspect
        FROM loracomp.job AS j
        WHERE j.status = 'queued' AND j.evaluation IS NOT NULL AND j.base_model = pick_jobs.base_model
            AND NOT j.scheduled AND j.due > now()
        ORDER BY j.due, j.id
        LIMIT CASE WHEN EXISTS (SELECT FROM everyday) THEN 0 ELSE pick_jobs.batch_size END
        FOR UPDATE SKIP LOCKED
    ),
    locked AS (
        SELECT e.id, e.submitted_by, e.turn, e.place, NULL AS due, e.suspect FROM everyday AS e
        UNION ALL
        SELECT e.* FROM evaluated AS e
    ),
    ranked AS (
        SELECT l.*, row_number() OVER w AS number, first_value(l.suspect) OVER w AS suspect_first
        FROM locked AS l
        WINDOW w AS (ORDER BY l.place, l.due, l.id)
    )
    SELECT r.id, r.submitted_by, r.turn = 1 FROM ranked AS r
    WHERE CASE WHEN r.suspect_first THEN r.number = 1 ELSE NOT r.suspect END
    ORDER BY r.number;
END
$$;
COMMENT ON FUNCTION loracomp.pick_jobs IS
'Locks up to batch_size due jobs of a base model, fairly among submitters. For claim_jobs.';

-- drop: DROP FUNCTION IF EXISTS loracomp.pick_jobs(text, integer)
-- Locks the due jobs that a claim takes and changes nothing. A submitter's own jobs go by due, and submitters take turns:
-- a job's wait counts from when its submitter was last served, so that a million rows of one keep nobody else waiting;
-- a step of priority is worth a minute of that wait. `leads` marks a submitter's first job: with it, its turn is taken.
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
    WITH RECURSIVE waiting (submitted_by) AS (
        -- Jumps through the index from one submitter to the next.
        (
            SELECT j.submitted_by FROM loracomp.job AS j
            WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = pick_jobs.base_model
            ORDER BY j.submitted_by, j.due LIMIT 1
        )
        UNION ALL
        SELECT (
            SELECT j.submitted_by FROM loracomp.job AS j
            WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = pick_jobs.base_model
                AND j.submitted_by > w.submitted_by
            ORDER BY j.submitted_by, j.due LIMIT 1
        )
        FROM waiting AS w WHERE w.submitted_by IS NOT NULL
    ),
    heads AS (
        SELECT
            w.submitted_by, h.id, h.due, h.run_at,
            row_number() OVER (PARTITION BY w.submitted_by ORDER BY h.due, h.id) AS turn
        FROM waiting AS w
        CROSS JOIN LATERAL (
            -- Jobs of evaluations are due later than others.
            SELECT j.id, j.due, j.run_at FROM loracomp.job AS j
            WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = pick_jobs.base_model
                AND j.submitted_by = w.submitted_by AND j.due <= now()
            ORDER BY j.due, j.id LIMIT 4 * pick_jobs.batch_size
        ) AS h
    ),
    placed AS (
        -- Later jobs of a submitter are served at this claim's turn at the earliest. The maximum keeps their order.
        SELECT h.*, max(
            h.due + greatest(interval '0', CASE h.turn WHEN 1 THEN t.served_at ELSE now() END - h.run_at)
        ) OVER (PARTITION BY h.submitted_by ORDER BY h.turn) AS place
        FROM heads AS h
        LEFT JOIN loracomp.turn AS t ON t.base_model = pick_jobs.base_model AND t.submitted_by = h.submitted_by
    ),
    candidates AS MATERIALIZED (
        -- More than are needed: other workers, at the same moment, lock the same first ones.
        SELECT p.* FROM placed AS p ORDER BY p.place, p.turn, p.due, p.id LIMIT 4 * pick_jobs.batch_size
    ),
    everyday AS MATERIALIZED (
        SELECT c.id, c.submitted_by, c.turn, c.place, c.due, l.suspect
        FROM candidates AS c
        CROSS JOIN LATERAL (
            SELECT j.expired_leases > 0 AS suspect FROM loracomp.job AS j
            WHERE j.id = c.id AND j.status = 'queued'
            FOR UPDATE SKIP LOCKED
        ) AS l
        LIMIT pick_jobs.batch_size
    ),
    evaluated AS MATERIALIZED (
        SELECT j.id, j.submitted_by, 2 AS turn, j.due AS place, j.due, j.expired_leases > 0 AS suspect
        FROM loracomp.job AS j
        WHERE j.status = 'queued' AND j.evaluation IS NOT NULL AND j.base_model = pick_jobs.base_model
            AND NOT j.scheduled AND j.due > now()
        ORDER BY j.due, j.id
        LIMIT CASE WHEN EXISTS (SELECT FROM everyday) THEN 0 ELSE pick_jobs.batch_size END
        FOR UPDATE SKIP LOCKED
    ),
    locked AS (
        SELECT e.* FROM everyday AS e
        UNION ALL
        SELECT e.* FROM evaluated AS e
    ),
    ranked AS (
        SELECT l.*, row_number() OVER w AS number, first_value(l.suspect) OVER w AS suspect_first
        FROM locked AS l
        WINDOW w AS (ORDER BY l.place, l.turn, l.due, l.id)
    )
    SELECT r.id, r.submitted_by, r.turn = 1 FROM ranked AS r
    WHERE CASE WHEN r.suspect_first THEN r.number = 1 ELSE NOT r.suspect END
    ORDER BY r.number;
END
$$;
COMMENT ON FUNCTION loracomp.pick_jobs IS
'Locks up to batch_size due jobs of a base model, fairly among submitters. For claim_jobs.';

-- drop: DROP FUNCTION IF EXISTS loracomp.claim_jobs(text, text, integer, interval)
-- queued -> running for up to batch_size due jobs, oldest due first; counts the attempt and sets lease and fence token.
-- Where none is due, jobs of evaluations, which are due 1000 minutes later than others: people don't wait behind them.
-- A job whose lease once ran out is claimed alone: what kills its worker takes no other job with it.
CREATE FUNCTION loracomp.claim_jobs(worker text, base_model text, batch_size integer, lease interval)
RETURNS TABLE (
    id bigint,
    lease_token bigint,
    kind text,
    prompt text,
    choices text[],
    max_new_tokens integer,
    stop text[],
    attempts integer,
    timeout_s integer,
    temperature double precision,
    top_p double precision,
    seed bigint
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM loracomp.rescue_jobs();
    RETURN QUERY
    WITH everyday AS MATERIALIZED (
        -- run_at <= now() implies due <= now(), which the index knows: jobs for later are not walked through.
        SELECT j.id, j.due, j.expired_leases > 0 AS suspect
        FROM loracomp.job AS j
        WHERE j.status = 'queued' AND j.base_model = claim_jobs.base_model AND j.due <= now() AND j.run_at <= now()
        ORDER BY j.due, j.id LIMIT claim_jobs.batch_size
        FOR UPDATE SKIP LOCKED
    ),
    evaluated AS MATERIALIZED (
        SELECT j.id, j.due, j.expired_leases > 0 AS suspect
        FROM loracomp.job AS j
        WHERE j.status = 'queued' AND j.evaluation IS NOT NULL AND j.base_model = claim_jobs.base_model
            AND j.due > now() AND j.run_at <= now()
        ORDER BY j.due, j.id
        LIMIT CASE WHEN EXISTS (SELECT FROM everyday) THEN 0 ELSE claim_jobs.batch_size END
        FOR UPDATE SKIP LOCKED
    ),
    locked AS (
        SELECT e.* FROM everyday AS e
        UNION ALL
        SELECT e.* FROM evaluated AS e
    ),
    ranked AS (
        SELECT l.id, l.suspect, row_number() OVER w AS place, first_value(l.suspect) OVER w AS suspect_first
        FROM locked AS l
        WINDOW w AS (ORDER BY l.due, l.id)
    ),
    chosen AS MATERIALIZED (
        SELECT r.id FROM ranked AS r WHERE CASE WHEN r.suspect_first THEN r.place = 1 ELSE NOT r.suspect END
    ),
    claimed AS (
        UPDATE loracomp.job AS j SET
            status = 'running',
            attempts = j.attempts + 1,
            worker = claim_jobs.worker,
            claimed_together = (SELECT count(*) FROM chosen),
            claimed_at = now(),
            lease_expires_at = now() + least(claim_jobs.lease, make_interval(secs => j.timeout_s)),
            -- One token for the claim: a subquery of its own is evaluated once.
            lease_token = (SELECT nextval('loracomp.lease_token'))
        -- An array, not a join: a plan made before batch_size is known expects a tenth of the table.
        WHERE j.id = ANY (ARRAY(SELECT c.id FROM chosen AS c))
        RETURNING j.*
    )
    SELECT
        c.id, c.lease_token, c.kind, c.prompt, c.choices, c.max_new_tokens, c.stop, c.attempts, c.timeout_s,
        c.temperature, c.top_p, c.seed
    FROM claimed AS c
    ORDER BY c.due, c.id;
END
$$;
COMMENT ON FUNCTION loracomp.claim_jobs IS
'Leases due jobs of a base model to a worker. Every later write must show the lease_token that it returns.';

-- drop: DROP FUNCTION IF EXISTS loracomp.rescue_jobs()
-- running -> queued where the lease ran out, and each is claimed alone from then on. The attempt is given back, unless
-- the job was alone: then it counts, and the last one -> failed. claim_jobs does this first.
CREATE FUNCTION loracomp.rescue_jobs() RETURNS integer
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
AS $$
    WITH expired AS MATERIALIZED (
        SELECT j.id, j.claimed_together = 1 AS alone, j.claimed_together = 1 AND j.attempts >= j.max_attempts AS spent
        FROM loracomp.job AS j
        WHERE j.status = 'running' AND j.lease_expires_at < now()
        ORDER BY j.lease_expires_at LIMIT 1000
        FOR UPDATE SKIP LOCKED
    ),
    rescued AS (
        UPDATE loracomp.job AS j SET
            status = CASE WHEN e.spent THEN 'failed' ELSE 'queued' END,
            finished_at = CASE WHEN e.spent THEN now() END,
            attempts = j.attempts - CASE WHEN e.alone THEN 0 ELSE 1 END,
            expired_leases = j.expired_leases + 1,
            run_at = CASE WHEN e.alone AND NOT e.spent THEN now() + loracomp.retry_delay(j.attempts) ELSE j.run_at END,
            lease_token = NULL,
            lease_expires_at = NULL,
            error_code = 'lease_expired',
            error = format(
                'its lease ran out: worker %s stopped or hung while it worked on %s',
                j.worker, CASE WHEN e.alone THEN 'this job alone' ELSE 'a batch with this job in it' END
            )
        FROM expired AS e
        WHERE j.id = e.id AND j.id = ANY (ARRAY(SELECT e.id FROM expired AS e))
        RETURNING nextval('loracomp.rescued_jobs')
    )
    SELECT count(*)::integer FROM rescued;
$$;
COMMENT ON FUNCTION loracomp.rescue_jobs IS
'Takes back jobs whose lease ran out and returns their number. Workers do it with each claim.';

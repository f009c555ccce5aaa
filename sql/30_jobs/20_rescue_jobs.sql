-- drop: DROP FUNCTION IF EXISTS loracomp.rescue_jobs()
-- running -> queued where the lease ran out, and each is claimed alone from then on. The attempt is given back, unless
-- the job was alone: then it counts, and the last one -> failed. claim_jobs does this first.
CREATE FUNCTION loracomp.rescue_jobs() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    expired CONSTANT bigint[] := ARRAY(
        SELECT j.id FROM loracomp.job AS j
        WHERE j.status = 'running' AND j.lease_expires_at < now()
        ORDER BY j.lease_expires_at LIMIT 1000
        FOR UPDATE SKIP LOCKED
    );
BEGIN
    -- An UPDATE of no rows would cost each claim the audit's trigger.
    IF expired = '{}' THEN
        RETURN 0;
    END IF;
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
    FROM (
        SELECT
            r.id, r.claimed_together = 1 AS alone, r.claimed_together = 1 AND r.attempts >= r.max_attempts AS spent
        FROM loracomp.job AS r WHERE r.id = ANY (expired)
    ) AS e
    WHERE j.id = e.id AND j.id = ANY (expired);
    PERFORM nextval('loracomp.rescued_jobs') FROM unnest(expired);
    RETURN cardinality(expired);
END
$$;
COMMENT ON FUNCTION loracomp.rescue_jobs IS
'Takes back jobs whose lease ran out and returns their number. Workers do it with each claim.';

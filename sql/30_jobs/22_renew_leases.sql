-- drop: DROP FUNCTION IF EXISTS loracomp.renew_leases(bigint[], bigint[], interval)
-- Moves the end of leases whose token still holds, never beyond the job's timeout counted from its claim.
CREATE FUNCTION loracomp.renew_leases(ids bigint[], tokens bigint[], lease interval) RETURNS SETOF bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- Here and below a worker's session keeps the plan that it made when the queue was empty, and reading that whole looked
-- cheap: without seqscan, and with = ANY beside each join, any plan reads the jobs that it is called for and no others.
SET enable_seqscan = off
BEGIN ATOMIC
    -- Here and below rows are locked in the order of their ids, or a heartbeat and a write would deadlock.
    WITH held AS MATERIALIZED (
        SELECT j.id, j.claimed_at + make_interval(secs => j.timeout_s) AS latest
        FROM unnest(renew_leases.ids, renew_leases.tokens) AS i (id, token)
        JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
        WHERE j.id = ANY (renew_leases.ids)
        ORDER BY j.id
        FOR UPDATE OF j
    )
    UPDATE loracomp.job AS j SET lease_expires_at = least(now() + least(renew_leases.lease, '1 day'), h.latest)
    FROM held AS h
    WHERE j.id = h.id AND j.id = ANY (renew_leases.ids) AND now() < h.latest
    RETURNING j.id;
END;
COMMENT ON FUNCTION loracomp.renew_leases IS
'Renews leases up to each job''s timeout and returns the ids that still hold; the others are lost to the worker.';

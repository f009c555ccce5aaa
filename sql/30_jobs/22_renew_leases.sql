-- drop: DROP FUNCTION IF EXISTS loracomp.renew_leases(bigint[], bigint[], interval)
-- Moves the end of leases whose token still holds, never beyond the job's timeout counted from its claim. It waits for nobody:
-- what another has locked, such as a submitter who cancels it and leaves the transaction open, holds as long as its token
-- does, and is renewed by the next heartbeat.
CREATE FUNCTION loracomp.renew_leases(ids bigint[], tokens bigint[], lease interval) RETURNS SETOF bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- Here and below a worker's session keeps the plan that it made when the queue was empty, and reading that whole looked
-- cheap: without seqscan, and with = ANY beside each join, any plan reads the jobs that it is called for and no others.
SET enable_seqscan = off
BEGIN ATOMIC
    WITH held AS MATERIALIZED (
        SELECT j.id, j.claimed_at + make_interval(secs => j.timeout_s) AS latest
        FROM unnest(renew_leases.ids, renew_leases.tokens) AS i (id, token)
        JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
        WHERE j.id = ANY (renew_leases.ids)
    ),
    free AS MATERIALIZED (
        SELECT j.id, h.latest
        FROM held AS h
        JOIN unnest(renew_leases.ids, renew_leases.tokens) AS i (id, token) ON i.id = h.id
        JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
        WHERE j.id = ANY (renew_leases.ids) AND now() < h.latest
        FOR UPDATE OF j SKIP LOCKED
    ),
    renewed AS (
        UPDATE loracomp.job AS j SET lease_expires_at = least(now() + least(renew_leases.lease, '1 day'), f.latest)
        FROM free AS f
        WHERE j.id = f.id AND j.id = ANY (renew_leases.ids)
    )
    SELECT h.id FROM held AS h WHERE now() < h.latest;
END;
COMMENT ON FUNCTION loracomp.renew_leases IS
'Renews leases up to each job''s timeout and returns the ids that still hold; the others are lost to the worker.';

-- What a worker does about jobs that it holds and can't answer now. A write counts only where the lease token still holds.
--   renew_leases                the heartbeat
--   release_jobs                it stops: back into the queue, uncharged
--     give_reason, wait_for_jobs
--   fail_jobs                   an attempt failed: again later, or failed
--     retry_delay, wait_for_jobs

-- Moves the end of leases whose token still holds, never beyond the job's timeout counted from its claim. It waits for nobody:
-- what another has locked, such as a submitter who cancels it and leaves the transaction open, holds as long as its token
-- does, and is renewed by the next heartbeat.
CREATE FUNCTION loracomp.renew_leases(ids bigint[], tokens bigint[], lease interval) RETURNS SETOF bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- Here and below: a worker's session keeps the plan that it made when the queue was empty and a sequential scan looked cheap.
-- With enable_seqscan off and an additional = ANY for each join, every plan reads only the jobs that were asked for.
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

-- running -> queued with the attempt given back and the place in the queue kept, where the token still holds.
CREATE FUNCTION loracomp.release_jobs(ids bigint[], tokens bigint[]) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    before CONSTANT text := loracomp.give_reason('released');
    written bigint;
    missing bigint := cardinality(release_jobs.ids);
BEGIN
    FOR attempt IN 1..2 LOOP
        RETURN QUERY
        WITH held AS MATERIALIZED (
            SELECT j.id
            FROM unnest(release_jobs.ids, release_jobs.tokens) AS i (id, token)
            JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
            WHERE j.id = ANY (release_jobs.ids)
            ORDER BY j.id
            FOR UPDATE OF j SKIP LOCKED
        )
        UPDATE loracomp.job AS j SET
            status = 'queued',
            attempts = j.attempts - 1,
            lease_token = NULL,
            lease_expires_at = NULL
        FROM held AS h
        WHERE j.id = h.id AND j.id = ANY (release_jobs.ids)
        RETURNING j.id;
        GET DIAGNOSTICS written = ROW_COUNT;
        missing := missing - written;
        EXIT WHEN missing = 0 OR NOT loracomp.wait_for_jobs(release_jobs.ids, release_jobs.tokens);
    END LOOP;
    PERFORM loracomp.give_reason(before);
END
$$;
COMMENT ON FUNCTION loracomp.release_jobs IS
'Puts jobs that a stopping worker can''t finish back into the queue and gives their attempt back; returns the ids whose '
'lease token was still valid.';

-- running -> queued, later, where trying again may help and attempts are left; else -> failed. Only where tokens hold.
CREATE FUNCTION loracomp.fail_jobs(
    ids bigint[], tokens bigint[], codes text[], messages text[], retries boolean[]
) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    written bigint;
    missing bigint := cardinality(fail_jobs.ids);
BEGIN
    FOR attempt IN 1..2 LOOP
        RETURN QUERY
        WITH held AS MATERIALIZED (
            SELECT j.id, i.code, i.message, i.retry AND j.attempts < j.max_attempts AS again
            FROM unnest(fail_jobs.ids, fail_jobs.tokens, fail_jobs.codes, fail_jobs.messages, fail_jobs.retries)
                AS i (id, token, code, message, retry)
            JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
            WHERE j.id = ANY (fail_jobs.ids)
            ORDER BY j.id
            FOR UPDATE OF j SKIP LOCKED
        )
        UPDATE loracomp.job AS j SET
            status = CASE WHEN h.again THEN 'queued' ELSE 'failed' END,
            finished_at = CASE WHEN NOT h.again THEN now() END,
            run_at = CASE WHEN h.again THEN now() + loracomp.retry_delay(j.attempts) ELSE j.run_at END,
            lease_token = NULL,
            lease_expires_at = NULL,
            error_code = h.code,
            error = h.message
        FROM held AS h
        WHERE j.id = h.id AND j.id = ANY (fail_jobs.ids)
        RETURNING j.id;
        GET DIAGNOSTICS written = ROW_COUNT;
        missing := missing - written;
        EXIT WHEN missing = 0 OR NOT loracomp.wait_for_jobs(fail_jobs.ids, fail_jobs.tokens);
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.fail_jobs IS
'Ends jobs as failed, or queues them for another attempt, where the lease token still holds; returns those ids.';

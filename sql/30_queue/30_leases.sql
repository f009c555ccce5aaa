-- Renews leases, and returns jobs that a worker can't answer. A write has effect only if the lease token is still valid.
--   renew_leases                called by the worker's heartbeat
--   release_jobs                the worker can't begin or finish: queues the jobs again without counting the attempt
--     give_reason
--   release_claim               the worker got no reply to a claim: releases the jobs that it may have got
--   fail_jobs                   an attempt failed: queues the job for a retry, or ends it as failed
--     retry_delay
--   hold_jobs                   called by release_jobs, fail_jobs and functions that record: locks the jobs whose token is still valid

-- Extends leases whose token is still valid. A job is renewed until its timeout_s is over, counted from its claim, and the last renewal may
-- reach beyond that by the length of a lease, but never beyond twice timeout_s. It does not wait for locks: a job that another session has
-- locked (for example a submitter who is cancelling it) is reported as still held if its token is valid, and is renewed by the next
-- heartbeat.
CREATE FUNCTION loracomp.renew_leases(ids bigint[], tokens bigint[], lease interval) RETURNS SETOF bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- Here and below: a worker's session could keep a plan made when the queue was empty and a sequential scan was cheap.
-- With enable_seqscan off and an additional = ANY for each join, every plan reads only the given jobs.
SET enable_seqscan = off
SET jit = off
BEGIN ATOMIC
    WITH held AS MATERIALIZED (
        SELECT
            j.id, j.claimed_at + make_interval(secs => j.timeout_s) AS latest,
            j.claimed_at + make_interval(secs => 2 * j.timeout_s) AS longest -- as in claim_jobs
        FROM unnest(renew_leases.ids, renew_leases.tokens) AS i (id, token)
        JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
        WHERE j.id = ANY (renew_leases.ids)
    ),
    free AS MATERIALIZED (
        SELECT j.id, h.longest
        FROM held AS h
        JOIN unnest(renew_leases.ids, renew_leases.tokens) AS i (id, token) ON i.id = h.id
        JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
        WHERE j.id = ANY (renew_leases.ids) AND now() < h.latest
        FOR UPDATE OF j SKIP LOCKED
    ),
    renewed AS (
        UPDATE loracomp.job AS j SET lease_expires_at = least(now() + least(renew_leases.lease, '1 day'), f.longest)
        FROM free AS f
        WHERE j.id = f.id AND j.id = ANY (renew_leases.ids)
    )
    SELECT h.id FROM held AS h WHERE now() < h.latest;
END;
COMMENT ON FUNCTION loracomp.renew_leases IS
'Renews the leases of jobs whose timeout_s is not over, and returns the ids of the jobs that the worker still holds; it has lost the '
'other jobs. A renewed lease may last longer than timeout_s, but at most twice as long, counted from the claim.';

-- running -> queued if the token is still valid; the attempt is given back, and the job keeps its place in the queue.
CREATE FUNCTION loracomp.release_jobs(ids bigint[], tokens bigint[]) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    held CONSTANT bigint[] := loracomp.hold_jobs(release_jobs.ids, release_jobs.tokens);
    before CONSTANT text := loracomp.give_reason('released');
BEGIN
    RETURN QUERY
    UPDATE loracomp.job AS j SET
        status = 'queued',
        attempts = greatest(j.attempts - 1, 0), -- as in rescue_jobs
        lease_token = NULL,
        lease_expires_at = NULL
    WHERE j.id = ANY (held)
    RETURNING j.id;
    PERFORM loracomp.give_reason(before);
END
$$;
COMMENT ON FUNCTION loracomp.release_jobs IS
'Queues jobs again that a worker can''t begin or finish, and gives their attempt back; returns the ids whose lease token was '
'still valid.';

-- Otherwise these jobs would wait until their leases expire, and then run one by one as suspects.
CREATE FUNCTION loracomp.release_claim(token bigint) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    ids CONSTANT bigint[] := ARRAY(
        SELECT j.id FROM loracomp.job AS j WHERE j.status = 'running' AND j.lease_token = release_claim.token
    );
BEGIN
    RETURN QUERY SELECT r.id FROM loracomp.release_jobs(ids, array_fill(token, ARRAY[cardinality(ids)])) AS r (id);
END
$$;
COMMENT ON FUNCTION loracomp.release_claim IS 'Releases the jobs of a claim to which the worker got no reply; returns their ids.';

-- running -> queued for a later retry, if a retry may help and attempts are left; otherwise -> failed. Only with valid tokens.
CREATE FUNCTION loracomp.fail_jobs(
    ids bigint[], tokens bigint[], codes text[], messages text[], retries boolean[]
) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    held CONSTANT bigint[] := loracomp.hold_jobs(fail_jobs.ids, fail_jobs.tokens);
BEGIN
    RETURN QUERY
    UPDATE loracomp.job AS j SET
        status = CASE WHEN a.again THEN 'queued' ELSE 'failed' END,
        finished_at = CASE WHEN NOT a.again THEN now() END,
        run_at = CASE WHEN a.again THEN now() + loracomp.retry_delay(j.attempts) ELSE j.run_at END,
        scheduled = a.again, -- wake_jobs gives it another place
        place = CASE WHEN NOT a.again THEN j.place END,
        lease_token = NULL,
        lease_expires_at = NULL,
        error_code = i.code,
        error = i.message
    FROM unnest(fail_jobs.ids, fail_jobs.tokens, fail_jobs.codes, fail_jobs.messages, fail_jobs.retries)
        AS i (id, token, code, message, retry)
    JOIN loracomp.job AS o ON o.id = i.id AND o.lease_token = i.token
    CROSS JOIN LATERAL (SELECT i.retry AND o.attempts < o.max_attempts AS again) AS a
    WHERE j.id = i.id AND j.id = ANY (held) AND o.id = ANY (held)
    RETURNING j.id;
END
$$;
COMMENT ON FUNCTION loracomp.fail_jobs IS
'Ends jobs as failed, or queues them for another attempt, if the lease token is still valid; returns these ids.';

-- Locks the jobs whose token is still valid, and returns their ids. Other sessions may have locked some of them: a heartbeat for a moment,
-- but a submitter who cancels a job and leaves the transaction open for long. So this function tries for two seconds, however many sessions
-- have locked jobs. Jobs that are still locked then keep their status until their leases expire. Otherwise one submitter could stop every
-- worker.
CREATE FUNCTION loracomp.hold_jobs(ids bigint[], tokens bigint[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    give_up_at CONSTANT timestamptz := clock_timestamp() + interval '2 seconds';
    held bigint[];
BEGIN
    LOOP
        held := ARRAY(
            SELECT j.id
            FROM unnest(hold_jobs.ids, hold_jobs.tokens) AS i (id, token)
            JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
            WHERE j.id = ANY (hold_jobs.ids)
            ORDER BY j.id
            FOR UPDATE OF j SKIP LOCKED
        );
        EXIT WHEN cardinality(held) = cardinality(hold_jobs.ids) OR clock_timestamp() > give_up_at OR NOT EXISTS (
            SELECT FROM unnest(hold_jobs.ids, hold_jobs.tokens) AS i (id, token)
            JOIN loracomp.job AS j ON (j.id, j.lease_token) = (i.id, i.token)
            WHERE j.id = ANY (hold_jobs.ids) AND j.id <> ALL (held)
        );
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN held;
END
$$;
COMMENT ON FUNCTION loracomp.hold_jobs IS
'Locks the jobs whose lease token is valid, unless other sessions keep them locked for two seconds; returns their ids. For workers'' writes.';

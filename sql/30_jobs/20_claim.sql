-- The claim: due jobs become running, leased to one worker.
--   claim_jobs                  called by workers
--     ask_rows                  makes jobs of rows of tables that have declarations: 47_answers/40_ask.sql
--     take_late_answers         answers that could not be shown when they were recorded: 47_answers/50_outcome.sql
--     rescue_jobs               queues or fails jobs whose lease has expired
--       retry_delay             how long they wait before the next attempt (fail_jobs calls it too)
--     wake_jobs                 makes scheduled jobs due whose run_at has come
--     pick_jobs                 locks the first jobs of the queue: 18_places.sql
--
-- A claimed job leaves a dead entry in the queue's index. Vacuum removes it, but not while any session holds an old snapshot. So a
-- claim reads on from the last claimed place, where new jobs are. What is put before it (by its priority, released or rescued, or
-- committed late) is found by a look from the start (from_start). That reads all dead entries, so after one a worker makes no other for
-- twenty times as long as it took, and for a minute at most.

-- queued -> running for up to batch_size due jobs; counts the attempt and sets lease and fence token. The worker may already hold
-- jobs (held_ids): then no job that must run alone is claimed, and none is claimed while such a job runs. What it says counts, and
-- not which leases it still has: if they have expired, its model may be at work on these jobs, or they have killed it since it asked.
-- A job that must run alone holds back what stands behind it, unless the worker may overtake it (pick_jobs says how).
CREATE FUNCTION loracomp.claim_jobs(
    worker text, base_model text, batch_size integer, lease interval,
    held_ids bigint[] DEFAULT '{}', from_start boolean DEFAULT TRUE, overtake boolean DEFAULT FALSE
)
RETURNS TABLE (
    id bigint, lease_token bigint, kind text, prompt text, choices text[], max_new_tokens integer, stop text[],
    attempts integer, timeout_s integer, temperature double precision, top_p double precision, seed bigint,
    system_text text
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- Here and in all that it calls, statements are planned once a session, for index scans that stop early: statistics lag behind a
-- queue and would mislead the planner.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    picked bigint[];
BEGIN
    PERFORM loracomp.check_range('batch_size', claim_jobs.batch_size, 0, 100000);
    PERFORM loracomp.check_range('lease', extract(EPOCH FROM claim_jobs.lease), 0, 86400);
    -- Wait here for an installer, and not in a function that is called below, which the installer would have replaced.
    LOCK TABLE loracomp.job IN ROW EXCLUSIVE MODE;
    PERFORM loracomp.ask_rows(), loracomp.take_late_answers();
    IF claim_jobs.from_start THEN
        PERFORM loracomp.rescue_jobs(), loracomp.wake_jobs();
    END IF;
    IF NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = ANY (held_ids) AND j.expired_leases > 0) THEN
        picked := loracomp.pick_jobs(
            claim_jobs.base_model, FALSE, claim_jobs.batch_size, held_ids = '{}', claim_jobs.from_start, claim_jobs.overtake
        );
        IF picked IS NULL THEN
            picked := loracomp.pick_jobs(
                claim_jobs.base_model, TRUE, claim_jobs.batch_size, held_ids = '{}', claim_jobs.from_start, claim_jobs.overtake
            );
        END IF;
    END IF;
    RETURN QUERY
    WITH claimed AS (
        UPDATE loracomp.job AS j SET
            status = 'running',
            attempts = j.attempts + 1,
            worker = claim_jobs.worker,
            claimed_at = now(),
            -- Longer than timeout_s, so that the worker can still say that the job took longer.
            lease_expires_at = now() + least(claim_jobs.lease, make_interval(secs => 2 * j.timeout_s)),
            -- One token for the whole claim, because an uncorrelated subquery is evaluated once. It is random, so that no
            -- worker can guess another worker's token and answer its jobs.
            lease_token = (SELECT hashtextextended(gen_random_uuid()::text, 0))
        WHERE j.id = ANY (picked)
        RETURNING j.*
    )
    SELECT
        c.id, c.lease_token, c.kind, c.prompt, c.choices, c.max_new_tokens, c.stop, c.attempts, c.timeout_s,
        c.temperature, c.top_p, c.seed, c.system_text
    FROM claimed AS c
    ORDER BY c.place, c.id;
END
$$;
COMMENT ON FUNCTION loracomp.claim_jobs IS
'Claims due jobs of a base model: leases them to a worker. Every later write must show the returned lease_token. from_start: look from '
'the start of the queue, and not only from where the last claim ended. overtake: also jobs behind one that must run alone.';

-- scheduled -> due, for at most 1,000 jobs whose run_at has come, and background -> everyday for as many that have waited there for
-- 1,000 minutes. The UPDATE fires prepare_job, which sees that they are due or old, and gives them their places. Scheduled jobs are in
-- another index, so that claims need not read past them.
CREATE FUNCTION loracomp.wake_jobs() RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    woken CONSTANT bigint[] := ARRAY(
        SELECT d.id FROM loracomp.job AS d WHERE d.status = 'queued' AND d.scheduled AND d.run_at <= now()
        ORDER BY d.run_at LIMIT 1000
        FOR UPDATE SKIP LOCKED
    ) || ARRAY(
        SELECT d.id FROM loracomp.job AS d
        WHERE d.status = 'queued' AND NOT d.scheduled AND d.background AND d.run_at < now() - interval '1000 minutes'
        ORDER BY d.run_at LIMIT 1000
        FOR UPDATE SKIP LOCKED
    );
BEGIN
    -- Check first, because an UPDATE of no rows would still run the triggers of the audit and of declarations.
    IF woken <> '{}' THEN
        UPDATE loracomp.job AS j SET scheduled = FALSE WHERE j.id = ANY (woken);
    END IF;
    RETURN cardinality(woken);
END
$$;
COMMENT ON FUNCTION loracomp.wake_jobs IS
'Makes jobs whose run_at has come available to claims, and returns their number. For claim_jobs.';

-- running -> queued for at most 1,000 jobs whose lease has expired; from then on each is claimed alone. Its first expiry gives the
-- attempt back; any other counts, because the job ran alone, and after the last attempt the job is failed.
-- A worker whose model goes on ends a job at its timeout_s itself (fail_jobs). If it did not, it died or hangs, and nobody knows
-- which of its jobs that is due to.
CREATE FUNCTION loracomp.rescue_jobs() RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    expired CONSTANT bigint[] := ARRAY(
        SELECT j.id FROM loracomp.job AS j
        WHERE j.status = 'running' AND j.lease_expires_at < now()
        ORDER BY j.lease_expires_at LIMIT 1000
        FOR UPDATE SKIP LOCKED
    );
BEGIN
    -- Check first, because an UPDATE of no rows would still run the triggers of the audit and of declarations.
    IF expired = '{}' THEN
        RETURN 0;
    END IF;
    UPDATE loracomp.job AS j SET
        status = CASE WHEN e.spent THEN 'failed' ELSE 'queued' END,
        finished_at = CASE WHEN e.spent THEN now() END,
        attempts = CASE WHEN e.alone THEN j.attempts ELSE greatest(j.attempts - 1, 0) END, -- somebody may have set it to 0 meanwhile
        expired_leases = j.expired_leases + 1,
        run_at = CASE WHEN e.alone AND NOT e.spent THEN now() + loracomp.retry_delay(j.attempts) ELSE j.run_at END,
        lease_token = NULL,
        lease_expires_at = NULL,
        error_code = CASE WHEN e.timed_out THEN 'timed_out' ELSE 'lease_expired' END,
        error = format(
            '%s: worker %s stopped or hung while it worked on %s',
            CASE WHEN e.timed_out THEN format('it took longer than its timeout_s of %s s', j.timeout_s) ELSE 'its lease ran out' END,
            j.worker, CASE WHEN e.alone THEN 'this job alone' ELSE 'this job and maybe others' END
        )
    FROM (
        SELECT
            r.id, r.expired_leases > 0 AS alone, r.expired_leases > 0 AND r.attempts >= r.max_attempts AS spent,
            r.lease_expires_at >= r.claimed_at + make_interval(secs => r.timeout_s) AS timed_out
        FROM loracomp.job AS r WHERE r.id = ANY (expired)
    ) AS e
    WHERE j.id = e.id AND j.id = ANY (expired);
    PERFORM nextval('loracomp.rescued_jobs') FROM unnest(expired);
    RETURN cardinality(expired);
END
$$;
COMMENT ON FUNCTION loracomp.rescue_jobs IS
'Queues jobs whose lease has expired again (or fails them), and returns their number. For claim_jobs.';

-- Reads only. The delay doubles with each attempt, up to ten minutes, and varies randomly by half, so that retries are spread.
CREATE FUNCTION loracomp.retry_delay(attempts integer) RETURNS interval
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT make_interval(secs => least(2.0 ^ attempts, 600) * (0.5 + random()));
END;
COMMENT ON FUNCTION loracomp.retry_delay IS 'How long a job waits before its next attempt, after this many attempts.';

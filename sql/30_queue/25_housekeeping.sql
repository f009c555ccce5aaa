-- Steps of the keeper that keep the queue in order. One worker at a time keeps house: it calls each step again and again, in a
-- transaction of its own (worker/keeper.py). A step begins nothing more after 0.2 s, and the keeper cancels it after STEP_S
-- (worker/steps.py). A step returns how many jobs it handled; if there were any, it is called again.
--   wake_jobs                   makes scheduled jobs due whose run_at has come
--   rescue_jobs                 queues or fails jobs whose lease has expired
--     retry_delay               how long a job waits before its next attempt (fail_jobs calls it too)
--   make_partitions             partitions for the next jobs: 68_ranges.sql
-- The keeper's other steps are ask_rows and take_answers (60_declarations/40_ask.sql and 50_outcome.sql) and measure_corrections
-- (60_declarations/70_learn.sql).

-- scheduled -> due for jobs whose run_at has come, and background -> everyday for those that have waited there for 1,000 minutes: gives
-- these jobs their places. Submitters take turns, twenty jobs each and then a hundred, so that nobody waits for another submitter's
-- schedule of a million jobs. The index leads from one submitter's first job to the next one's, so that the jobs between them are not read. Of each
-- submitter only the first 200 jobs are looked at: somebody who is cancelling a million of them may keep them locked.
CREATE FUNCTION loracomp.wake_jobs() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- As in claim_jobs, statements are planned once a session, for index scans that stop early.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    deadline CONSTANT timestamptz := clock_timestamp() + interval '0.2 seconds';
    of_age CONSTANT timestamptz := now() - interval '1000 minutes';
    waiting record;
    woken bigint[];
    before integer;
    handled integer := 0;
BEGIN
    LOCK TABLE loracomp.job IN ROW EXCLUSIVE MODE; -- as in claim_jobs
    LOOP
        before := handled;
        FOR waiting IN
            WITH RECURSIVE first AS (
                (
                    SELECT j.scheduled, j.background, j.submitted_by, j.run_at FROM loracomp.job AS j
                    WHERE j.status = 'queued' AND (j.scheduled, j.background) > (FALSE, FALSE)
                    ORDER BY j.scheduled, j.background, j.submitted_by, j.run_at LIMIT 1
                )
                UNION ALL
                SELECT n.* FROM first AS f CROSS JOIN LATERAL (
                    SELECT j.scheduled, j.background, j.submitted_by, j.run_at FROM loracomp.job AS j
                    WHERE j.status = 'queued'
                        AND (j.scheduled, j.background, j.submitted_by) > (f.scheduled, f.background, f.submitted_by)
                    ORDER BY j.scheduled, j.background, j.submitted_by, j.run_at LIMIT 1
                ) AS n
            )
            SELECT f.* FROM first AS f WHERE f.run_at <= CASE WHEN f.scheduled THEN now() ELSE of_age END
            ORDER BY random() -- if there are too many for one call
        LOOP
            woken := ARRAY(
                SELECT j.id FROM loracomp.job AS j
                WHERE j.id = ANY (ARRAY(
                    SELECT o.id FROM loracomp.job AS o
                    WHERE o.status = 'queued' AND o.scheduled = waiting.scheduled AND o.background = waiting.background
                        AND o.submitted_by = waiting.submitted_by
                        AND o.run_at <= CASE WHEN waiting.scheduled THEN now() ELSE of_age END
                    ORDER BY o.run_at LIMIT 200
                ))
                    -- Whether it is still queued. With the status, a plan could read all waiting jobs.
                    AND num_nulls(j.finished_at, j.lease_token) = 2
                    AND j.scheduled = waiting.scheduled AND j.background = waiting.background
                ORDER BY j.run_at LIMIT CASE WHEN handled = 0 THEN 20 ELSE 100 END
                FOR UPDATE SKIP LOCKED
            );
            -- Check first, because an UPDATE of no rows would still run the triggers of the audit and of declarations.
            IF woken <> '{}' THEN
                -- Materialized, because take_place uses up places each time it is called, and a join may read a subquery again for each row.
                WITH p AS MATERIALIZED (
                    SELECT d.id, b.background, loracomp.take_place(d, d.priority, b.background) AS place
                    FROM loracomp.job AS d
                    CROSS JOIN LATERAL (SELECT d.background AND d.run_at > of_age AS background) AS b
                    WHERE d.id = ANY (woken)
                    ORDER BY d.run_at, d.id
                )
                UPDATE loracomp.job AS j SET scheduled = FALSE, background = p.background, place = p.place
                FROM p WHERE j.id = p.id AND j.id = ANY (woken);
            END IF;
            handled := handled + cardinality(woken);
            EXIT WHEN clock_timestamp() > deadline;
        END LOOP;
        EXIT WHEN handled = before OR clock_timestamp() > deadline;
    END LOOP;
    IF handled > 0 THEN
        PERFORM loracomp.notify('loracomp_job', '');
    END IF;
    RETURN handled;
END
$$;
COMMENT ON FUNCTION loracomp.wake_jobs IS
'Makes jobs whose run_at has come available to claims, and returns their number. For the keeper.';

-- running -> queued for jobs whose lease has expired; from then on each of them is claimed alone. A worker whose model
-- still works ends a job itself when its timeout_s is over (fail_jobs). If the lease has expired, the worker has therefore
-- died or hangs, and nobody knows which of its jobs caused that. The first time this happens to a job, the attempt does
-- not count. Later it counts, because the job ran alone, and after the last attempt the job fails.
-- After an outage (keep_house), jobs whose leases ended meanwhile stay as they are until the workers have had time to
-- renew these leases.
CREATE FUNCTION loracomp.rescue_jobs() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- As in claim_jobs, statements are planned once a session, for index scans that stop early.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    deadline CONSTANT timestamptz := clock_timestamp() + interval '0.2 seconds';
    expired_before CONSTANT timestamptz := coalesce(
        (SELECT k.unattended_since FROM loracomp.keeper AS k WHERE k.grace_until > now()), now()
    );
    expired bigint[];
    handled integer := 0;
BEGIN
    LOCK TABLE loracomp.job IN ROW EXCLUSIVE MODE; -- as in claim_jobs
    LOOP
        expired := ARRAY(
            SELECT j.id FROM loracomp.job AS j
            WHERE j.status = 'running' AND j.lease_expires_at < expired_before
            ORDER BY j.lease_expires_at LIMIT 100
            FOR UPDATE SKIP LOCKED
        );
        EXIT WHEN expired = '{}';
        UPDATE loracomp.job AS j SET
            status = CASE WHEN e.spent THEN 'failed' ELSE 'queued' END,
            finished_at = CASE WHEN e.spent THEN now() END,
            attempts = CASE WHEN e.alone THEN j.attempts ELSE greatest(j.attempts - 1, 0) END, -- somebody may have set it to 0 meanwhile
            expired_leases = j.expired_leases + 1,
            run_at = CASE WHEN e.alone AND NOT e.spent THEN now() + loracomp.retry_delay(j.attempts) ELSE j.run_at END,
            scheduled = NOT e.spent, -- wake_jobs gives it a place
            place = NULL,
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
        handled := handled + cardinality(expired);
        EXIT WHEN clock_timestamp() > deadline;
    END LOOP;
    PERFORM nextval('loracomp.rescued_jobs') FROM generate_series(1, handled);
    RETURN handled;
END
$$;
COMMENT ON FUNCTION loracomp.rescue_jobs IS
'Queues jobs whose lease has expired again (or fails them), and returns their number. For the keeper.';

-- Reads only. The delay doubles with each attempt, up to ten minutes, and varies randomly by half, so that retries are spread.
CREATE FUNCTION loracomp.retry_delay(attempts integer) RETURNS interval
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT make_interval(secs => least(2.0 ^ attempts, 600) * (0.5 + random()));
END;
COMMENT ON FUNCTION loracomp.retry_delay IS 'How long a job waits before its next attempt, after this many attempts.';

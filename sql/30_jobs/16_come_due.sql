-- What each claim does first: it makes scheduled jobs due, and rescues jobs whose lease has expired.
--   look_at_times               called by claim_jobs
--     times_read                how many index entries it has read
--     wake_jobs                 makes scheduled jobs due whose run_at has come
--     rescue_jobs               queues or fails jobs whose lease has expired
--       retry_delay             how long they wait before the next attempt (fail_jobs calls it too)

-- Calls wake_jobs and rescue_jobs for the times since the session's last look. That is enough for times that were in the future
-- when they were committed. Other times (a change by hand, a commit that took longer than its lease) are found by reading the
-- indexes from the beginning. Each claim does so while there is little to read; otherwise it is repeated only after 20
-- microseconds for each entry that was read, for example after 0.2 s for 10,000 entries, so that it takes one or two percent of the
-- time.
CREATE FUNCTION loracomp.look_at_times() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET datestyle = 'ISO'
AS $$
DECLARE
    -- The time of the last look, and the time from which on the next look reads from the beginning.
    looked CONSTANT timestamptz[] := nullif(current_setting('loracomp.looked', true), '');
    whole CONSTANT boolean := (now() >= looked[1] AND now() < looked[2]) IS NOT TRUE;
    since CONSTANT timestamptz := CASE WHEN whole THEN '-infinity' ELSE looked[1] END;
    read bigint := -loracomp.times_read();
    found integer;
BEGIN
    found := loracomp.rescue_jobs(since) + loracomp.wake_jobs(since);
    read := read + loracomp.times_read();
    PERFORM set_config('loracomp.looked', ARRAY[now(), CASE
        WHEN found > 0 THEN now() -- There may be more jobs than one call handles.
        WHEN whole THEN now() + read * interval '20 microseconds'
        ELSE looked[2]
    END]::text, false);
END
$$;
COMMENT ON FUNCTION loracomp.look_at_times IS
'Makes jobs due whose run_at has come and rescues jobs whose lease has expired since the last look. For claim_jobs.';

-- Reads only: how many entries of the indexes of leases and of scheduled jobs this session has read, as Postgres counts them.
CREATE FUNCTION loracomp.times_read() RETURNS bigint
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN pg_stat_get_xact_tuples_returned('loracomp.job_leases'::regclass)
        + pg_stat_get_xact_tuples_returned('loracomp.job_scheduled'::regclass);
END
$$;
COMMENT ON FUNCTION loracomp.times_read IS
'Entries of the indexes of leases and of scheduled jobs that this session has read. For look_at_times.';

-- scheduled -> due, for jobs whose run_at has come, and was not before `since`. Scheduled jobs are in another index, so that claims
-- need not read past them.
CREATE FUNCTION loracomp.wake_jobs(since timestamptz DEFAULT '-infinity') RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    woken CONSTANT bigint[] := ARRAY(
        SELECT d.id FROM loracomp.job AS d
        WHERE d.status = 'queued' AND d.scheduled AND d.run_at BETWEEN wake_jobs.since AND now()
        ORDER BY d.run_at LIMIT 1000
        FOR UPDATE SKIP LOCKED
    );
BEGIN
    -- Check first, because an UPDATE of no rows would still run the audit's trigger in each claim.
    IF woken <> '{}' THEN
        UPDATE loracomp.job AS j SET scheduled = FALSE WHERE j.id = ANY (woken);
    END IF;
    RETURN cardinality(woken);
END
$$;
COMMENT ON FUNCTION loracomp.wake_jobs IS
'Makes jobs whose run_at has come available to claims, and returns their number. For look_at_times.';

-- running -> queued for jobs whose lease has expired, and not before `since`; from then on each is claimed alone. The attempt is
-- given back, unless the job was claimed alone: then the attempt counts, and after the last one the job is failed.
CREATE FUNCTION loracomp.rescue_jobs(since timestamptz DEFAULT '-infinity') RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    expired CONSTANT bigint[] := ARRAY(
        SELECT j.id FROM loracomp.job AS j
        WHERE j.status = 'running' AND j.lease_expires_at >= rescue_jobs.since AND j.lease_expires_at < now()
        ORDER BY j.lease_expires_at LIMIT 1000
        FOR UPDATE SKIP LOCKED
    );
BEGIN
    -- Check first, because an UPDATE of no rows would still run the audit's trigger in each claim.
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
'Queues jobs whose lease has expired again (or fails them), and returns their number. Each claim calls it.';

-- Reads only. The delay doubles with each attempt, up to ten minutes, and varies randomly by half, so that retries are spread.
CREATE FUNCTION loracomp.retry_delay(attempts integer) RETURNS interval
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT make_interval(secs => least(2.0 ^ attempts, 600) * (0.5 + random()));
END;
COMMENT ON FUNCTION loracomp.retry_delay IS 'How long a job waits before its next attempt, after this many attempts.';

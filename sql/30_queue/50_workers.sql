-- Reports of workers.
--   report_worker               called every few seconds: the worker is alive, and what it is doing
--     check_worker_name         refuses the name of another login's worker
--   oldest_worker               the oldest release whose workers this schema serves
--   queue_is_empty, retry_waits, rows_run       whether a worker started with --drain may end

-- Reads only. Without this check, a login could hide that another login's worker is gone, or report it as gone.
CREATE FUNCTION loracomp.check_worker_name(name text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    other CONSTANT name := (
        SELECT w.login FROM loracomp.worker AS w
        WHERE w.name = check_worker_name.name AND w.login <> session_user AND w.status <> 'stopped'
            AND w.seen_at > now() - make_interval(secs => w.silent_after_s)
    );
BEGIN
    IF other IS NOT NULL THEN
        RAISE EXCEPTION 'a worker of the name %, of login %, is running', left(check_worker_name.name, 100), other
            USING ERRCODE = 'insufficient_privilege', HINT = 'give this worker another name (LORACOMP_WORKER)';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_worker_name IS 'Raises if a worker of this name is running under another login. For report_worker.';

-- Stores a worker's report in place of its previous one, and deletes workers without a report for a day.
-- Times are given as ages in seconds, because a worker's clock may be wrong: looked_s since it asked for jobs, running_s since it
-- started.
CREATE FUNCTION loracomp.report_worker(
    name text,
    status text,
    host text,
    pid integer,
    code_version text,
    base_model text,
    device text,
    running_s double precision,
    looked_s double precision,
    silent_after_s double precision,
    claimed bigint,
    succeeded bigint,
    failed bigint,
    released bigint,
    dropped bigint
) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT loracomp.check_range('running_s', report_worker.running_s, 0, 1e9),
        loracomp.check_range('looked_s', coalesce(report_worker.looked_s, 0), 0, 1e9),
        loracomp.check_range('silent_after_s', report_worker.silent_after_s, 0, 86400);
    DELETE FROM loracomp.worker AS w
    WHERE w.name IN (
        SELECT s.name FROM loracomp.worker AS s WHERE s.seen_at < now() - interval '1 day' FOR UPDATE SKIP LOCKED
    );
    SELECT loracomp.check_worker_name(report_worker.name);
    WITH before AS (
        DELETE FROM loracomp.worker AS w WHERE w.name = report_worker.name RETURNING w.started_at
    )
    INSERT INTO loracomp.worker (
        name, status, host, pid, code_version, base_model, device, started_at, looked_at, silent_after_s,
        claimed, succeeded, failed, released, dropped
    )
    SELECT
        report_worker.name, report_worker.status, report_worker.host, report_worker.pid, report_worker.code_version,
        report_worker.base_model, report_worker.device,
        -- The start of a process is the same in each report, except for the duration of the call.
        coalesce((SELECT b.started_at FROM before AS b WHERE b.started_at > s.at - interval '5 seconds'), s.at),
        now() - make_interval(secs => report_worker.looked_s), report_worker.silent_after_s,
        report_worker.claimed, report_worker.succeeded, report_worker.failed, report_worker.released,
        report_worker.dropped
    FROM (SELECT date_trunc('second', now() - make_interval(secs => report_worker.running_s)) AS at) AS s;
$$;
COMMENT ON FUNCTION loracomp.report_worker IS
'Stores that a worker is alive, its status and its counts; workers call it every few seconds.';

-- Reads only. Jobs that wait for a retry count, and jobs that the keeper has to wake or to rescue. Other scheduled jobs, and jobs that other
-- workers run, don't count.
CREATE FUNCTION loracomp.queue_is_empty(base_model text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
    SELECT NOT EXISTS (
        SELECT FROM loracomp.job AS j
        WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = queue_is_empty.base_model
    ) AND NOT EXISTS (
        SELECT FROM loracomp.job AS j
        WHERE j.status = 'queued' AND j.scheduled AND j.base_model = queue_is_empty.base_model AND (j.run_at <= now() OR j.attempts > 0)
    ) AND NOT EXISTS (
        SELECT FROM loracomp.job AS j
        WHERE j.status = 'running' AND j.base_model = queue_is_empty.base_model AND j.lease_expires_at < now()
    );
$$;
COMMENT ON FUNCTION loracomp.queue_is_empty IS
'Returns whether no job of a base model is due or waits for a retry. A worker that was started with --drain then ends.';

-- Reads only.
CREATE FUNCTION loracomp.retry_waits(base_model text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
    SELECT EXISTS (
        SELECT FROM loracomp.job AS j
        WHERE j.status = 'queued' AND j.scheduled AND j.base_model = retry_waits.base_model AND j.run_at > now() AND j.attempts > 0
    );
$$;
COMMENT ON FUNCTION loracomp.retry_waits IS 'Whether a job of a base model waits for the time of its next attempt.';

-- Reads only.
CREATE FUNCTION loracomp.rows_run(base_model text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
    SELECT EXISTS (
        SELECT FROM loracomp.job AS j
        WHERE j.status = 'running' AND j.base_model = rows_run.base_model AND j.lease_expires_at >= now()
            AND (j.watched OR j.kind = 'measure')
    );
$$;
COMMENT ON FUNCTION loracomp.rows_run IS
'Whether a worker is answering rows of declarations, or measuring, under a valid lease. A worker that was started with --drain waits for it.';

-- Each minor version raises this to the minor version before its own, and keeps the functions that workers of that version call.
CREATE FUNCTION loracomp.oldest_worker() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '1.0';
COMMENT ON FUNCTION loracomp.oldest_worker IS
'The oldest minor version whose workers this schema serves. Workers ask for it if they do not know this schema''s version.';

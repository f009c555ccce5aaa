-- The number of workers that the queue needs, for autoscaling.
--   worker_demand
--     compute_seconds           seconds that a job takes, from the timings of answers
--     rows_wait, rows_without_job    rows of declared tables that have no job yet: 60_declarations/80_rows_wait.sql

-- Reads only. It counts all open jobs, so call it at most every ten seconds. It runs with its owner's rights, so that an autoscaler's role
-- needs no other privilege.
--
-- Rows of declared tables become jobs of the default base model once a worker keeps house. Rows that were written already count as open jobs, and
-- rows that a scan will find count as background jobs. If anything else has to be done for declarations, one worker is needed. The keeper tries
-- again every ten seconds to ask a declaration's rows, and every minute to measure its corrections. A declaration at which it fails must not keep a
-- worker running for ever, so it counts again only an hour after the next try was due.
CREATE FUNCTION loracomp.worker_demand(target_wait_s double precision DEFAULT 30, base_model text DEFAULT NULL)
RETURNS TABLE (
    workers integer,
    open_jobs bigint,
    arrived_jobs bigint,
    background_jobs bigint,
    seconds_per_job double precision
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET jit = off
AS $$
    SELECT loracomp.check_range('target_wait_s', worker_demand.target_wait_s, 1, 86400);
    WITH asked AS MATERIALIZED (
        SELECT b.name, b.is_default, now() - w.wait AS since, now() + w.wait AS until
        FROM loracomp.base_model AS b
        CROSS JOIN (SELECT make_interval(secs => worker_demand.target_wait_s) AS wait) AS w
        WHERE CASE
            WHEN worker_demand.base_model IS NULL THEN b.is_default ELSE b.name = worker_demand.base_model
        END
    ),
    -- Each branch of the UNION uses its own index.
    jobs AS (
        SELECT j.* FROM loracomp.job AS j WHERE j.status = 'queued' AND NOT j.scheduled
        UNION ALL
        SELECT j.* FROM loracomp.job AS j
        WHERE j.status = 'queued' AND j.scheduled AND j.run_at <= (SELECT a.until FROM asked AS a)
        UNION ALL
        SELECT j.* FROM loracomp.job AS j WHERE j.status = 'running'
        UNION ALL
        SELECT j.* FROM loracomp.job AS j WHERE j.finished_at > (SELECT a.since FROM asked AS a)
    ),
    counted AS (
        SELECT
            count(j.id) FILTER (WHERE j.finished_at IS NULL AND NOT j.background) AS open_jobs,
            count(j.id) FILTER (
                WHERE greatest(j.created_at, j.run_at) > a.since AND j.status <> 'cancelled' AND NOT j.background
            ) AS arrived_jobs,
            count(j.id) FILTER (WHERE j.finished_at IS NULL AND j.background) AS background_jobs
        FROM asked AS a
        LEFT JOIN jobs AS j ON j.base_model = a.name
        GROUP BY a.name
    ),
    rows_waiting AS (
        SELECT coalesce(sum(r.written), 0)::bigint AS written, coalesce(sum(r.to_scan), 0)::bigint AS to_scan
        FROM asked AS a CROSS JOIN LATERAL loracomp.rows_without_job() AS r WHERE a.is_default AND NOT r.is_in_trouble
    ),
    wanted AS (
        SELECT c.open_jobs + r.written AS open_jobs, c.arrived_jobs, c.background_jobs + r.to_scan AS background_jobs
        FROM counted AS c CROSS JOIN rows_waiting AS r
    ),
    -- The inner LIMIT bounds the search if the base model has not been used for a long time.
    answers AS (
        SELECT r.timings, r.batch_size
        FROM (
            SELECT p.job_id, p.base_model, p.timings, p.batch_size
            FROM loracomp.prediction AS p
            ORDER BY p.job_id DESC
            LIMIT 20000
        ) AS r
        JOIN asked AS a ON r.base_model = a.name
        ORDER BY r.job_id DESC
        LIMIT 1000
    ),
    timed AS (
        SELECT
            loracomp.compute_seconds(a.timings) AS seconds,
            2 * a.batch_size >= max(a.batch_size) OVER () AS is_full
        FROM answers AS a
    ),
    -- Use only full batches if there are enough of them, because a queue that waits fills batches, in which a job takes less time. A few
    -- full batches may contain unusual jobs.
    measured AS (
        SELECT
            CASE
                WHEN 10 * count(t.seconds) FILTER (WHERE t.is_full) < count(t.seconds) THEN avg(t.seconds)
                ELSE avg(t.seconds) FILTER (WHERE t.is_full)
            END AS seconds
        FROM timed AS t
    )
    SELECT
        greatest(
            (c.open_jobs + c.background_jobs > 0 OR a.is_default AND loracomp.rows_wait(interval '-1 hour'))::integer,
            least(
                c.open_jobs + c.arrived_jobs,
                ceil((c.open_jobs + c.arrived_jobs) * coalesce(m.seconds, 0) / worker_demand.target_wait_s)
            )
        )::integer,
        c.open_jobs, c.arrived_jobs, c.background_jobs, m.seconds
    FROM asked AS a CROSS JOIN wanted AS c CROSS JOIN measured AS m
$$;
COMMENT ON FUNCTION loracomp.worker_demand IS
'Number of workers that a base model (null: the default) needs to answer jobs within target_wait_s seconds: the open jobs plus the jobs '
'that arrived in the last target_wait_s seconds, times the seconds that a job takes, divided by target_wait_s. At least one if there are '
'open jobs, or something is to be done for declarations, whose jobs are of the default base model. No row if there is no such base model.';

-- Reads only. It runs with its owner's rights and shows everybody the numbers of the whole queue, because submitters can't see from their
-- own jobs alone how long they will have to wait. Each branch of `recent` uses its own index.
CREATE VIEW loracomp.queue_health AS
WITH recent AS (
    SELECT j.* FROM loracomp.job AS j WHERE j.status = 'queued' AND NOT j.scheduled
    UNION ALL
    SELECT j.* FROM loracomp.job AS j WHERE j.status = 'queued' AND j.scheduled
    UNION ALL
    SELECT j.* FROM loracomp.job AS j WHERE j.status = 'running'
    UNION ALL
    SELECT j.* FROM loracomp.job AS j WHERE j.finished_at > now() - interval '1 hour'
)

SELECT
    b.name AS base_model,
    count(*) FILTER (WHERE r.status = 'queued') AS queued,
    count(*) FILTER (WHERE r.status = 'queued' AND r.run_at <= now()) AS due,
    count(*) FILTER (WHERE r.status = 'queued' AND r.attempts > 0) AS retrying,
    coalesce(
        loracomp.seconds_between(
            min(greatest(r.run_at, r.created_at)) FILTER (WHERE r.status = 'queued' AND r.run_at <= now()), now()
        ), 0
    ) AS oldest_due_s,
    count(*) FILTER (WHERE r.status = 'running') AS running,
    count(DISTINCT r.worker) FILTER (WHERE r.status = 'running') AS busy_workers,
    count(*) FILTER (WHERE r.status = 'running' AND r.lease_expires_at < now()) AS expired_leases,
    count(*) FILTER (WHERE r.status = 'running' AND r.expired_leases > 0) AS alone,
    count(*) FILTER (WHERE r.status = 'succeeded') AS succeeded_last_hour,
    count(*) FILTER (WHERE r.status = 'failed') AS failed_last_hour,
    count(*) FILTER (WHERE r.status = 'cancelled') AS cancelled_last_hour,
    percentile_cont(0.5) WITHIN GROUP (
        ORDER BY loracomp.seconds_between(greatest(r.created_at, r.run_at), r.finished_at)
    ) FILTER (WHERE r.status = 'succeeded') AS median_latency_s,
    max(r.finished_at) FILTER (WHERE r.status = 'succeeded') AS last_succeeded_at,
    CASE
        WHEN count(*) FILTER (WHERE r.finished_at > now() - interval '1 minute') >= 10
            THEN count(*) FILTER (WHERE r.finished_at > now() - interval '1 minute')
        ELSE count(*) FILTER (WHERE r.finished_at > now() - interval '5 minutes') / 5.0
    END::double precision AS per_minute,
    (
        SELECT count(*) FROM loracomp.worker AS w
        WHERE w.base_model = b.name AND w.status IN ('idle', 'busy')
            AND w.seen_at >= now() - make_interval(secs => w.silent_after_s)
    ) AS live_workers,
    CASE WHEN bool_or(b.is_default) THEN loracomp.count_rows_waiting() ELSE 0 END AS rows_waiting,
    count(*) FILTER (WHERE r.kind = 'measure' AND r.finished_at IS NULL) AS measuring
FROM loracomp.base_model AS b
LEFT JOIN recent AS r ON b.name = r.base_model
GROUP BY b.name;
COMMENT ON VIEW loracomp.queue_health IS 'The queue of each base model now, and how many of its jobs ended in the last hour.';
COMMENT ON COLUMN loracomp.queue_health.base_model IS 'Base model of the jobs in this queue.';
COMMENT ON COLUMN loracomp.queue_health.queued IS 'Number of jobs that wait for a worker, or for their run_at.';
COMMENT ON COLUMN loracomp.queue_health.due IS
'Number of jobs that a worker could claim now. worker_demand says how many workers they need.';
COMMENT ON COLUMN loracomp.queue_health.retrying IS 'Number of waiting jobs that have had an attempt before.';
COMMENT ON COLUMN loracomp.queue_health.oldest_due_s IS 'Seconds that the longest-waiting due job has waited; 0 if none.';
COMMENT ON COLUMN loracomp.queue_health.running IS 'Number of jobs that workers are running.';
COMMENT ON COLUMN loracomp.queue_health.busy_workers IS 'Number of workers that are running jobs.';
COMMENT ON COLUMN loracomp.queue_health.expired_leases IS
'Number of running jobs whose lease expired, because their worker died or hangs. The keeper queues them again.';
COMMENT ON COLUMN loracomp.queue_health.alone IS
'Number of running jobs whose lease expired before; until such a job has ended, its worker claims no other job.';
COMMENT ON COLUMN loracomp.queue_health.succeeded_last_hour IS 'Jobs that succeeded within the last hour.';
COMMENT ON COLUMN loracomp.queue_health.failed_last_hour IS 'Jobs that ended failed within the last hour.';
COMMENT ON COLUMN loracomp.queue_health.cancelled_last_hour IS 'Jobs that were cancelled within the last hour.';
COMMENT ON COLUMN loracomp.queue_health.median_latency_s IS
'Median seconds from the time when a job could start to its answer, for jobs that succeeded within the last hour.';
COMMENT ON COLUMN loracomp.queue_health.last_succeeded_at IS 'When the last job succeeded.';
COMMENT ON COLUMN loracomp.queue_health.per_minute IS 'Jobs that ended in the last minute; the average of the last five minutes if these were fewer than ten.';
COMMENT ON COLUMN loracomp.queue_health.live_workers IS 'Number of workers that are alive, whether busy or idle.';
COMMENT ON COLUMN loracomp.queue_health.rows_waiting IS
'Number of rows of declared tables for which the keeper has not inserted a job yet. It is an estimate during a full scan of a table.';
COMMENT ON COLUMN loracomp.queue_health.measuring IS
'Number of queued and running jobs that measure adapters; they are among the jobs of the other columns.';

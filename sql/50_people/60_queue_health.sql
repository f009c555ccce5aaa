-- Reads only. Numbers of the whole queue whoever asks, so it runs with its owner's rights: a submitter's share of a
-- queue says nothing about waiting. Each arm has an index of its own.
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
    count(*) FILTER (WHERE r.status = 'succeeded') AS succeeded_last_hour,
    count(*) FILTER (WHERE r.status = 'failed') AS failed_last_hour,
    count(*) FILTER (WHERE r.status = 'cancelled') AS cancelled_last_hour,
    percentile_cont(0.5) WITHIN GROUP (
        ORDER BY loracomp.seconds_between(greatest(r.created_at, r.run_at), r.finished_at)
    ) FILTER (WHERE r.status = 'succeeded') AS median_latency_s,
    max(r.finished_at) FILTER (WHERE r.status = 'succeeded') AS last_succeeded_at
FROM loracomp.base_model AS b
LEFT JOIN recent AS r ON b.name = r.base_model
GROUP BY b.name;
COMMENT ON VIEW loracomp.queue_health IS 'The queue of each base model now, and what came out of it in the last hour.';
COMMENT ON COLUMN loracomp.queue_health.base_model IS 'The base model.';
COMMENT ON COLUMN loracomp.queue_health.queued IS 'Jobs that wait, for a worker or for their run_at.';
COMMENT ON COLUMN loracomp.queue_health.due IS 'Jobs that a worker could take now. worker_demand says how many workers that is.';
COMMENT ON COLUMN loracomp.queue_health.retrying IS 'Waiting jobs that were attempted before.';
COMMENT ON COLUMN loracomp.queue_health.oldest_due_s IS 'Seconds that the longest-waiting due job has waited; 0 if none.';
COMMENT ON COLUMN loracomp.queue_health.running IS 'Jobs that workers hold.';
COMMENT ON COLUMN loracomp.queue_health.busy_workers IS 'Workers that hold jobs.';
COMMENT ON COLUMN loracomp.queue_health.expired_leases IS
'Held jobs whose lease ran out: their worker died or hangs. The next claim takes them back.';
COMMENT ON COLUMN loracomp.queue_health.succeeded_last_hour IS 'Jobs that succeeded within the last hour.';
COMMENT ON COLUMN loracomp.queue_health.failed_last_hour IS 'Jobs that ended failed within the last hour.';
COMMENT ON COLUMN loracomp.queue_health.cancelled_last_hour IS 'Jobs that were cancelled within the last hour.';
COMMENT ON COLUMN loracomp.queue_health.median_latency_s IS
'Median seconds from when a job could start to its answer, of those that succeeded within the last hour.';
COMMENT ON COLUMN loracomp.queue_health.last_succeeded_at IS 'When the last of them succeeded.';

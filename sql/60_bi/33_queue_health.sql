-- drop: DROP VIEW IF EXISTS bi.queue_health
-- Reads only: loracomp.queue_health, for readers of bi alone.
CREATE VIEW bi.queue_health AS
SELECT
    h.base_model,
    h.queued,
    h.due,
    h.retrying,
    h.oldest_due_s,
    h.running,
    h.busy_workers,
    h.expired_leases,
    h.succeeded_last_hour,
    h.failed_last_hour,
    h.cancelled_last_hour,
    h.median_latency_s,
    h.last_succeeded_at
FROM loracomp.queue_health AS h;
COMMENT ON VIEW bi.queue_health IS 'The queue of each base model now, and what came out of it in the last hour.';
COMMENT ON COLUMN bi.queue_health.base_model IS 'Frozen language model that the jobs ask for.';
COMMENT ON COLUMN bi.queue_health.queued IS 'Jobs that wait, for a worker or for their time.';
COMMENT ON COLUMN bi.queue_health.due IS 'Jobs that a worker could take now. Scale workers on this.';
COMMENT ON COLUMN bi.queue_health.retrying IS 'Waiting jobs that were attempted before.';
COMMENT ON COLUMN bi.queue_health.oldest_due_s IS 'Seconds that the longest-waiting due job has waited; 0 if none.';
COMMENT ON COLUMN bi.queue_health.running IS 'Jobs that workers hold.';
COMMENT ON COLUMN bi.queue_health.busy_workers IS 'Workers that hold jobs.';
COMMENT ON COLUMN bi.queue_health.expired_leases IS 'Held jobs whose lease ran out: their worker died or hangs.';
COMMENT ON COLUMN bi.queue_health.succeeded_last_hour IS 'Jobs that succeeded within the last hour.';
COMMENT ON COLUMN bi.queue_health.failed_last_hour IS 'Jobs that ended failed within the last hour.';
COMMENT ON COLUMN bi.queue_health.cancelled_last_hour IS 'Jobs that were cancelled within the last hour.';
COMMENT ON COLUMN bi.queue_health.median_latency_s IS
'Median seconds from when a job could start to its answer, of those that succeeded within the last hour.';
COMMENT ON COLUMN bi.queue_health.last_succeeded_at IS 'When the last of them succeeded.';

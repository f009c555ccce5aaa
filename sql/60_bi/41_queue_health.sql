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
    h.last_succeeded_at,
    now() AS as_of
FROM loracomp.queue_health AS h;
COMMENT ON VIEW bi.queue_health IS 'The queue of each base model now, and what came out of it in the last hour.';
COMMENT ON COLUMN bi.queue_health.base_model IS 'Frozen language model that the jobs ask for.';
COMMENT ON COLUMN bi.queue_health.as_of IS 'Up to when it counts: now, for it is live.';

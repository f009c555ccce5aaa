-- Reads only: the same as loracomp.queue_health, for roles that may read only schema bi.
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
    h.alone,
    h.succeeded_last_hour,
    h.failed_last_hour,
    h.cancelled_last_hour,
    h.median_latency_s,
    h.last_succeeded_at,
    now() AS as_of
FROM loracomp.queue_health AS h;
COMMENT ON VIEW bi.queue_health IS 'The queue of each base model now, and how many of its jobs ended in the last hour.';
COMMENT ON COLUMN bi.queue_health.as_of IS 'Time of the data: the time of the query, because the view is live.';
SELECT loracomp.copy_comments('bi.queue_health', 'loracomp.queue_health');

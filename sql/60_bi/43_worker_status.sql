-- Reads only, with its owner's rights: loracomp.worker_status, for readers of bi alone.
CREATE VIEW bi.worker_status AS
SELECT
    w.worker,
    w.status,
    w.base_model,
    w.device,
    w.running,
    w.oldest_claim_s,
    w.claimed,
    w.succeeded,
    w.failed,
    w.released,
    w.dropped,
    w.looked_s,
    w.seen_s,
    w.started_at,
    w.seen_at,
    w.host,
    w.pid,
    w.code_version,
    now() AS as_of
FROM loracomp.worker_status AS w;
COMMENT ON VIEW bi.worker_status IS 'Workers that were heard of within a day: who is alive, doing what.';
COMMENT ON COLUMN bi.worker_status.worker IS 'Name of the process. Facts join it by worker.';
COMMENT ON COLUMN bi.worker_status.as_of IS 'Up to when it counts: now, for it is live.';

-- Reads only, with its owner's rights: the same as loracomp.worker_status, for roles that may read only schema bi.
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
COMMENT ON VIEW bi.worker_status IS 'Workers that reported within the last day: which are alive, and what each is doing.';
COMMENT ON COLUMN bi.worker_status.worker IS 'Name of the worker process. Facts join it by worker.';
COMMENT ON COLUMN bi.worker_status.as_of IS 'Time of the data: the time of the query, because the view is live.';
SELECT loracomp.copy_comments('bi.worker_status', 'loracomp.worker_status');

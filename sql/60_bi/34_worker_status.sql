-- drop: DROP VIEW IF EXISTS bi.worker_status
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
    w.code_version
FROM loracomp.worker_status AS w;
COMMENT ON VIEW bi.worker_status IS 'Workers that were heard of within a day: who is alive, doing what.';
COMMENT ON COLUMN bi.worker_status.worker IS 'Name of the process. Facts join it by worker.';
COMMENT ON COLUMN bi.worker_status.status IS
'idle, busy (it holds jobs), stopping, stopped; gone: not heard of for a lease, without having said that it stops.';
COMMENT ON COLUMN bi.worker_status.base_model IS 'Frozen language model that it serves.';
COMMENT ON COLUMN bi.worker_status.device IS 'Device and number type, such as cpu/bfloat16.';
COMMENT ON COLUMN bi.worker_status.running IS 'Jobs that it holds.';
COMMENT ON COLUMN bi.worker_status.oldest_claim_s IS 'Seconds since it took the first of them; null where none.';
COMMENT ON COLUMN bi.worker_status.claimed IS 'Jobs that it has claimed since it began.';
COMMENT ON COLUMN bi.worker_status.succeeded IS 'Jobs that it has answered.';
COMMENT ON COLUMN bi.worker_status.failed IS 'Failures that it has written, those that are tried again included.';
COMMENT ON COLUMN bi.worker_status.released IS 'Jobs that it has given back uncharged.';
COMMENT ON COLUMN bi.worker_status.dropped IS 'Results that came after their lease was lost.';
COMMENT ON COLUMN bi.worker_status.looked_s IS 'Seconds since it asked for jobs; null where it never did.';
COMMENT ON COLUMN bi.worker_status.seen_s IS 'Seconds since it reported.';
COMMENT ON COLUMN bi.worker_status.started_at IS 'When it began.';
COMMENT ON COLUMN bi.worker_status.seen_at IS 'When it last reported.';
COMMENT ON COLUMN bi.worker_status.host IS 'Machine that it runs on.';
COMMENT ON COLUMN bi.worker_status.pid IS 'Its process there.';
COMMENT ON COLUMN bi.worker_status.code_version IS 'Version of loracomp that it runs.';

-- Reads only. What workers said last, and who has not been heard of since; what they hold is what the queue says. It runs
-- with its owner's rights, for bi shows it too.
CREATE VIEW loracomp.worker_status AS
SELECT
    w.name AS worker,
    CASE
        WHEN w.seen_at >= now() - make_interval(secs => w.silent_after_s) OR w.status = 'stopped' THEN w.status
        -- A worker that is killed at the end of its grace time cannot report that it stopped.
        WHEN w.status = 'stopping' THEN 'stopped'
        ELSE 'gone'
    END AS status,
    w.base_model,
    w.device,
    coalesce(h.jobs, 0) AS running,
    loracomp.seconds_between(h.claimed_at, now()) AS oldest_claim_s,
    w.claimed,
    w.succeeded,
    w.failed,
    w.released,
    w.dropped,
    loracomp.seconds_between(w.looked_at, now()) AS looked_s,
    loracomp.seconds_between(w.seen_at, now()) AS seen_s,
    w.started_at,
    w.seen_at,
    w.host,
    w.pid,
    w.code_version,
    w.login::text AS login
FROM loracomp.worker AS w
LEFT JOIN (
    SELECT j.worker, count(*) AS jobs, min(j.claimed_at) AS claimed_at
    FROM loracomp.job AS j WHERE j.status = 'running' GROUP BY j.worker
) AS h ON w.name = h.worker;
COMMENT ON VIEW loracomp.worker_status IS 'Workers that were heard of within a day: who is alive, doing what.';
COMMENT ON COLUMN loracomp.worker_status.worker IS 'Name that leases and predictions carry.';
COMMENT ON COLUMN loracomp.worker_status.status IS
'idle, busy (it holds jobs), stopping, stopped; gone: not heard of for a lease, without having said that it stops.';
COMMENT ON COLUMN loracomp.worker_status.running IS 'Jobs that it holds, as the queue knows.';
COMMENT ON COLUMN loracomp.worker_status.oldest_claim_s IS 'Seconds since it took the first of them; null where none.';
COMMENT ON COLUMN loracomp.worker_status.looked_s IS 'Seconds since it asked for jobs; null where it never did.';
COMMENT ON COLUMN loracomp.worker_status.seen_s IS 'Seconds since it reported.';
COMMENT ON COLUMN loracomp.worker_status.login IS 'Role that it logged in as.';

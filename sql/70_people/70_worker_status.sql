-- Reads only. It shows what workers last reported, and which workers have stopped reporting. The number of running jobs comes from the
-- queue. The view runs with its owner's rights, because bi.worker_status shows it to roles that may read only schema bi.
CREATE VIEW loracomp.worker_status AS
SELECT
    w.name AS worker,
    CASE
        WHEN w.seen_at >= now() - make_interval(secs => w.silent_after_s) OR w.status = 'stopped'
            THEN CASE WHEN w.status = 'idle' AND h.latest > w.seen_at THEN 'busy' ELSE w.status END -- it has claimed jobs since its report
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
    loracomp.seconds_between(greatest(w.looked_at, h.latest), now()) AS looked_s, -- the last claim may be newer than the report
    loracomp.seconds_between(w.seen_at, now()) AS seen_s,
    w.started_at,
    w.seen_at,
    w.host,
    w.pid,
    w.code_version,
    w.login::text AS login
FROM loracomp.worker AS w
LEFT JOIN (
    SELECT j.worker, count(*) AS jobs, min(j.claimed_at) AS claimed_at, max(j.claimed_at) AS latest
    FROM loracomp.job AS j WHERE j.status = 'running' GROUP BY j.worker
) AS h ON w.name = h.worker;
COMMENT ON VIEW loracomp.worker_status IS 'Workers that reported within the last day: which are alive, and what each is doing.';
COMMENT ON COLUMN loracomp.worker_status.worker IS 'Name of the worker, as in job.worker and prediction.worker.';
COMMENT ON COLUMN loracomp.worker_status.status IS
'idle, busy (it runs jobs), stopping, stopped, or gone (it has sent no report for the length of a lease, and did not say that it stopped).';
COMMENT ON COLUMN loracomp.worker_status.running IS 'Number of jobs that the worker is running, counted in the queue.';
COMMENT ON COLUMN loracomp.worker_status.oldest_claim_s IS
'Seconds since the worker claimed the oldest of its running jobs; null if it runs none.';
COMMENT ON COLUMN loracomp.worker_status.looked_s IS
'Seconds since the worker last asked the database for jobs, according to its last report or a newer claim; null if it has not asked yet.';
COMMENT ON COLUMN loracomp.worker_status.seen_s IS 'Seconds since the worker''s last report.';
COMMENT ON COLUMN loracomp.worker_status.login IS 'Database role that the worker logged in as.';
SELECT loracomp.copy_comments('loracomp.worker_status', 'loracomp.worker');

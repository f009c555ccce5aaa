-- Reads only, with its owner's rights. Of the jobs that are there, and of the workers that were heard of within a day.
CREATE VIEW bi.dim_worker AS
SELECT
    coalesce(a.worker, w.worker) AS worker,
    coalesce(p.device, w.device) AS device,
    coalesce(p.code_version, w.code_version) AS code_version,
    a.first_at,
    a.last_at,
    coalesce(a.answered, 0) AS answered,
    w.host,
    w.base_model,
    coalesce(w.status, 'gone') AS status,
    w.started_at,
    w.seen_at
FROM (
    SELECT
        j.worker,
        min(j.claimed_at) AS first_at,
        max(j.claimed_at) AS last_at,
        count(*) FILTER (WHERE j.status = 'succeeded') AS answered,
        max(j.id) FILTER (WHERE j.status = 'succeeded') AS latest
    FROM loracomp.job AS j
    WHERE j.worker IS NOT NULL
    GROUP BY j.worker
) AS a
LEFT JOIN loracomp.prediction AS p ON a.latest = p.job_id
FULL JOIN loracomp.worker_status AS w ON a.worker = w.worker;
COMMENT ON VIEW bi.dim_worker IS
'Dimension: a row for every worker process that jobs name or that is alive. Facts join it by worker.';
COMMENT ON COLUMN bi.dim_worker.worker IS
'Name of the process: host, process number and a random part, unless it was given one. Key.';
COMMENT ON COLUMN bi.dim_worker.device IS 'Device and number type of its latest job, such as cpu/bfloat16.';
COMMENT ON COLUMN bi.dim_worker.code_version IS 'Version of loracomp that answered its latest job.';
COMMENT ON COLUMN bi.dim_worker.first_at IS 'When it took the first of the jobs.';
COMMENT ON COLUMN bi.dim_worker.last_at IS 'When it took the last of them.';
COMMENT ON COLUMN bi.dim_worker.answered IS 'Jobs that it answered.';
COMMENT ON COLUMN bi.dim_worker.host IS 'Machine that it runs on; null where it was not heard of within a day.';
COMMENT ON COLUMN bi.dim_worker.base_model IS 'Frozen language model that it serves; null where it was not heard of within a day.';
COMMENT ON COLUMN bi.dim_worker.status IS 'idle, busy, stopping, stopped, or gone: it has not been heard of for a lease.';

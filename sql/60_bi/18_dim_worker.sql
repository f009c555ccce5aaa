-- Reads only, with its owner's rights: jobs that still exist, and workers that reported within the last day.
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
'Dimension: a row for every worker process that is named in a job or is alive. Facts join it by worker.';
COMMENT ON COLUMN bi.dim_worker.worker IS
'Key: name of the worker process; by default host, process id and a random part.';
COMMENT ON COLUMN bi.dim_worker.device IS 'Device and number type for the worker''s latest job, such as cpu/bfloat16.';
COMMENT ON COLUMN bi.dim_worker.code_version IS 'Version of loracomp that the worker''s latest job was answered with.';
COMMENT ON COLUMN bi.dim_worker.first_at IS 'When the worker took the first of its jobs.';
COMMENT ON COLUMN bi.dim_worker.last_at IS 'When the worker took the last of its jobs.';
COMMENT ON COLUMN bi.dim_worker.answered IS 'Number of jobs that the worker answered.';
COMMENT ON COLUMN bi.dim_worker.host IS 'Machine that the worker runs on; null if it has not reported within a day.';
COMMENT ON COLUMN bi.dim_worker.base_model IS 'Base model that the worker serves; null if the worker has not reported within a day.';
COMMENT ON COLUMN bi.dim_worker.status IS 'idle, busy, stopping, stopped, or gone (no report for the length of a lease).';

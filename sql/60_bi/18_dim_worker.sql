-- drop: DROP VIEW IF EXISTS bi.dim_worker
-- Reads only, with its owner's rights. Of the jobs that are there, and of the workers that were heard of within a day.
CREATE VIEW bi.dim_worker AS
SELECT
    coalesce(a.worker, w.worker) AS worker,
    coalesce(a.device, w.device) AS device,
    coalesce(a.code_version, w.code_version) AS code_version,
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
        coalesce(p.worker, j.worker) AS worker,
        max(p.device) AS device,
        max(p.code_version) AS code_version,
        min(j.claimed_at) AS first_at,
        max(j.claimed_at) AS last_at,
        count(p.job_id) AS answered
    FROM loracomp.job AS j
    LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id
    WHERE coalesce(p.worker, j.worker) IS NOT NULL
    GROUP BY coalesce(p.worker, j.worker)
) AS a
FULL JOIN loracomp.worker_status AS w ON a.worker = w.worker;
COMMENT ON VIEW bi.dim_worker IS
'Dimension: a row for every worker process that jobs name or that is alive. Facts join it by worker.';
COMMENT ON COLUMN bi.dim_worker.worker IS
'Name of the process: host, process number and a random part, unless it was given one. Key.';
COMMENT ON COLUMN bi.dim_worker.device IS 'Device and number type that it answers on, such as cpu/bfloat16.';
COMMENT ON COLUMN bi.dim_worker.code_version IS 'Version of loracomp that it answered with, the newest by name.';
COMMENT ON COLUMN bi.dim_worker.first_at IS 'When it took the first of the jobs.';
COMMENT ON COLUMN bi.dim_worker.last_at IS 'When it took the last of them.';
COMMENT ON COLUMN bi.dim_worker.answered IS 'Jobs that it answered.';
COMMENT ON COLUMN bi.dim_worker.host IS 'Machine that it runs on; null where it was not heard of within a day.';
COMMENT ON COLUMN bi.dim_worker.base_model IS 'Frozen language model that it serves; null where it was not heard of within a day.';
COMMENT ON COLUMN bi.dim_worker.status IS 'idle, busy, stopping, stopped, or gone: it has not been heard of for a lease.';
COMMENT ON COLUMN bi.dim_worker.started_at IS 'When it began.';
COMMENT ON COLUMN bi.dim_worker.seen_at IS 'When it was last heard of.';

-- Reads only, with its owner's rights. It reads the indexes of queued jobs, so that ended jobs cost no time.
CREATE VIEW bi.queue_age AS
SELECT
    q.base_model,
    q.priority,
    q.is_evaluation,
    q.jobs,
    q.oldest_s,
    q.quantiles[1] AS median_s,
    q.quantiles[2] AS p95_s,
    now() AS as_of
FROM (
    SELECT
        j.base_model,
        j.priority,
        j.background AS is_evaluation,
        count(*) AS jobs,
        max(w.seconds) AS oldest_s,
        percentile_cont('{0.5, 0.95}'::double precision[]) WITHIN GROUP (ORDER BY w.seconds) AS quantiles
    FROM loracomp.job AS j
    CROSS JOIN LATERAL (SELECT loracomp.seconds_between(greatest(j.run_at, j.created_at), now())) AS w (seconds)
    -- One branch for each case, so that each can use its index.
    WHERE j.status = 'queued' AND (j.scheduled OR NOT j.scheduled) AND j.run_at <= now()
    GROUP BY j.base_model, j.priority, j.background
) AS q;
COMMENT ON VIEW bi.queue_age IS 'How long the jobs that a worker could take now have waited.';
COMMENT ON COLUMN bi.queue_age.base_model IS 'Base model that the waiting jobs ask for.';
COMMENT ON COLUMN bi.queue_age.is_evaluation IS 'Whether these jobs are in the background, as those of evaluations are: only taken if no other job is due.';
COMMENT ON COLUMN bi.queue_age.jobs IS 'Number of waiting jobs.';
COMMENT ON COLUMN bi.queue_age.oldest_s IS 'Seconds that the longest-waiting job has waited.';
COMMENT ON COLUMN bi.queue_age.median_s IS 'Median of the seconds that these jobs have waited.';
COMMENT ON COLUMN bi.queue_age.p95_s IS '95th percentile of the seconds that these jobs have waited.';
SELECT loracomp.copy_comments('bi.queue_age', 'bi.prediction');

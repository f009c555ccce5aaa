-- Reads only, with its owner's rights. Reads the queue's own indexes: what ended costs it nothing.
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
        (j.evaluation IS NOT NULL OR j.kind = 'measure') AS is_evaluation,
        count(*) AS jobs,
        max(w.seconds) AS oldest_s,
        percentile_cont('{0.5, 0.95}'::double precision[]) WITHIN GROUP (ORDER BY w.seconds) AS quantiles
    FROM loracomp.job AS j
    CROSS JOIN LATERAL (SELECT loracomp.seconds_between(greatest(j.run_at, j.created_at), now())) AS w (seconds)
    -- Either way, so that each has its index.
    WHERE j.status = 'queued' AND (j.scheduled OR NOT j.scheduled) AND j.run_at <= now()
    GROUP BY j.base_model, j.priority, (j.evaluation IS NOT NULL OR j.kind = 'measure')
) AS q;
COMMENT ON VIEW bi.queue_age IS 'How long the jobs that a worker could take now have waited.';
COMMENT ON COLUMN bi.queue_age.base_model IS 'Frozen language model that they ask for.';
COMMENT ON COLUMN bi.queue_age.is_evaluation IS 'Whether they evaluate or measure, and so wait until nothing else is due.';
COMMENT ON COLUMN bi.queue_age.jobs IS 'Jobs that wait.';
COMMENT ON COLUMN bi.queue_age.oldest_s IS 'Seconds that the first of them has waited.';
COMMENT ON COLUMN bi.queue_age.median_s IS 'Half of them have waited at least this long.';
COMMENT ON COLUMN bi.queue_age.p95_s IS 'One in twenty has waited at least this long.';
COMMENT ON COLUMN bi.queue_age.as_of IS 'Up to when it counts: now, for it is live.';

-- How often answers were right.
--   bi.accuracy_by_day
--     wilson_interval, task_mask
--     loracomp.accuracy_by_day  a table with the names of hidden tasks, which the view masks
--   accuracy_by_day_on          computes a day of it

-- Reads only.
CREATE FUNCTION loracomp.accuracy_by_day_on(day date) RETURNS SETOF loracomp.accuracy_by_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    accuracy_by_day_on.day,
    j.task AS own_task,
    j.policy,
    j.base_model,
    count(*) AS asked,
    count(*) FILTER (WHERE j.status = 'succeeded') AS n,
    count(*) FILTER (WHERE j.is_correct) AS correct
FROM loracomp.jobs_on(accuracy_by_day_on.day) AS j
WHERE j.expected IS NOT NULL AND j.kind = 'predict'
GROUP BY j.task, j.policy, j.base_model;
END;
COMMENT ON FUNCTION loracomp.accuracy_by_day_on IS 'Rows of loracomp.accuracy_by_day for a day, computed from its jobs.';

-- Reads only, with its owner's rights. A failed job counts in asked but not in n, so that failures stay visible.
CREATE VIEW bi.accuracy_by_day AS
SELECT
    d.day,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> d.own_task, d.own_task) AS own_task,
    d.policy,
    d.base_model,
    d.asked,
    d.n,
    d.correct,
    d.correct::double precision / nullif(d.n, 0) AS accuracy,
    i.low AS accuracy_low,
    i.high AS accuracy_high,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'accuracy_by_day') AS as_of
FROM loracomp.accuracy_by_day AS d
CROSS JOIN LATERAL bi.wilson_interval(d.correct, d.n) AS i;
COMMENT ON VIEW bi.accuracy_by_day IS
'How often answers were right, by task, policy and day. Purged jobs count. Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.accuracy_by_day.accuracy IS 'correct / n, 0 to 1; null if n is 0.';
COMMENT ON COLUMN bi.accuracy_by_day.accuracy_low IS 'Lower end of the 95 % confidence interval of accuracy (Wilson).';
COMMENT ON COLUMN bi.accuracy_by_day.accuracy_high IS 'Upper end of the 95 % confidence interval of accuracy.';
COMMENT ON COLUMN bi.accuracy_by_day.as_of IS 'When these numbers were computed last; later answers are not counted yet.';
SELECT loracomp.copy_comments('bi.accuracy_by_day', 'loracomp.accuracy_by_day');

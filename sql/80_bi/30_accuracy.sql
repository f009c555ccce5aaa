-- How often answers were right.
--   bi.accuracy_by_day
--     task_mask
--     loracomp.accuracy_by_day  a table with the names of hidden tasks, which the view masks
--   accuracy_by_day_on          computes a day of it

-- Reads only. Jobs that failed are not counted.
CREATE FUNCTION loracomp.accuracy_by_day_on(day date) RETURNS SETOF loracomp.accuracy_by_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    accuracy_by_day_on.day,
    j.task AS own_task,
    j.policy,
    j.base_model,
    count(*) AS n,
    count(*) FILTER (WHERE j.is_correct) AS correct
FROM loracomp.jobs_on(accuracy_by_day_on.day) AS j
WHERE j.is_correct IS NOT NULL AND j.kind = 'predict'
GROUP BY j.task, j.policy, j.base_model;
END;
COMMENT ON FUNCTION loracomp.accuracy_by_day_on IS 'Rows of loracomp.accuracy_by_day for a day, computed from its jobs.';

-- Reads only, with its owner's rights.
CREATE VIEW bi.accuracy_by_day AS
SELECT
    d.day,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> d.own_task, d.own_task) AS own_task,
    d.policy,
    d.base_model,
    d.n,
    d.correct,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r) AS as_of
FROM loracomp.accuracy_by_day AS d;
COMMENT ON VIEW bi.accuracy_by_day IS
'How often answers were right, by task, policy and day, for jobs whose right answer was known. Includes purged jobs. Refreshed by '
'refresh_reports, not live.';
COMMENT ON COLUMN bi.accuracy_by_day.as_of IS 'When these numbers were last computed; later answers are not counted yet.';
SELECT loracomp.copy_comments('bi.accuracy_by_day', 'loracomp.accuracy_by_day');

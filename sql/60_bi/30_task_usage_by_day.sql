-- drop: DROP VIEW IF EXISTS bi.task_usage_by_day
-- Reads only, with its owner's rights.
CREATE VIEW bi.task_usage_by_day AS
SELECT
    (c.finished_at AT TIME ZONE 'UTC')::date AS day,
    c.task,
    count(*) AS jobs,
    avg(c.weight) AS mean_weight,
    sum(c.weight) / sum(sum(c.weight)) OVER (PARTITION BY (c.finished_at AT TIME ZONE 'UTC')::date) AS share
FROM bi.composed_adapter AS c
GROUP BY (c.finished_at AT TIME ZONE 'UTC')::date, c.task;
COMMENT ON VIEW bi.task_usage_by_day IS 'How much each task''s adapters took part in the answers of each day.';
COMMENT ON COLUMN bi.task_usage_by_day.day IS 'Day of the answers, in UTC.';
COMMENT ON COLUMN bi.task_usage_by_day.task IS 'Task whose adapter was composed.';
COMMENT ON COLUMN bi.task_usage_by_day.jobs IS 'Answers that it took part in.';
COMMENT ON COLUMN bi.task_usage_by_day.mean_weight IS 'Its mean weight in those, 0 to 1.';
COMMENT ON COLUMN bi.task_usage_by_day.share IS
'Its part of all weight composed that day; the shares of a day sum to 1.';

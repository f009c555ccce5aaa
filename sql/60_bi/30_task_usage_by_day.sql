-- drop: DROP VIEW IF EXISTS bi.task_usage_by_day
-- Reads only, with its owner's rights. Live, and cheap where reports are refreshed: days that were over when
-- adapter_usage_by_day was worked out come from it, the days since from the predictions.
CREATE VIEW bi.task_usage_by_day AS
WITH report AS (
    SELECT (r.refreshed_at AT TIME ZONE 'UTC')::date AS day
    FROM loracomp.report_refresh AS r
    WHERE r.report = 'adapter_usage_by_day'
),

usage AS (
    SELECT
        u.day,
        u.task,
        u.jobs,
        u.weight
    FROM loracomp.adapter_usage_by_day AS u
    WHERE u.day < (SELECT r.day FROM report AS r)
    UNION ALL
    SELECT
        (j.finished_at AT TIME ZONE 'UTC')::date,
        x.task,
        count(*),
        sum(x.weight)
    FROM loracomp.job AS j
    INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
    CROSS JOIN LATERAL unnest(p.composed_tasks, p.adapter_weights) AS x (task, weight)
    -- With an end, though there is none: the planner takes a third of the jobs for those after an unknown time, and few for
    -- those between two.
    WHERE j.finished_at >= (SELECT r.day::timestamp AT TIME ZONE 'UTC' FROM report AS r)
        AND j.finished_at < 'infinity'
    GROUP BY (j.finished_at AT TIME ZONE 'UTC')::date, x.task
)

SELECT
    s.day,
    coalesce(m.labels ->> s.task, s.task) AS task,
    sum(s.jobs)::bigint AS jobs,
    sum(s.weight) / sum(s.jobs)::double precision AS mean_weight,
    sum(s.weight) / sum(sum(s.weight)) OVER (PARTITION BY s.day) AS share
FROM usage AS s
CROSS JOIN loracomp.task_mask AS m
GROUP BY s.day, coalesce(m.labels ->> s.task, s.task);
COMMENT ON VIEW bi.task_usage_by_day IS 'How much each task''s adapters took part in the answers of each day.';
COMMENT ON COLUMN bi.task_usage_by_day.day IS 'Day of the answers, in UTC.';
COMMENT ON COLUMN bi.task_usage_by_day.task IS 'Task whose adapter was composed.';
COMMENT ON COLUMN bi.task_usage_by_day.jobs IS 'Answers that it took part in.';
COMMENT ON COLUMN bi.task_usage_by_day.mean_weight IS 'Its mean weight in those, 0 to 1.';
COMMENT ON COLUMN bi.task_usage_by_day.share IS
'Its part of all weight composed that day; the shares of a day sum to 1.';

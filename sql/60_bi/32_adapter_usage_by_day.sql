-- How much adapters took part in answers, by day.
--   bi.adapter_usage_by_day     by adapter
--   bi.task_usage_by_day        by task, with the days since the last refresh
--     loracomp.adapter_usage_by_day   what both rest on; refresh_reports() works it out

-- Refreshed by refresh_reports(). It holds the names of hidden tasks, so analysts read
-- bi.adapter_usage_by_day, which masks them.
CREATE MATERIALIZED VIEW loracomp.adapter_usage_by_day AS
SELECT
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    j.policy,
    p.base_model,
    j.evaluation IS NOT NULL AS is_evaluation,
    x.adapter_id,
    max(x.task) AS task,
    count(*) AS jobs,
    count(*) FILTER (WHERE x.place = 1) AS jobs_first,
    sum(x.weight) AS weight
FROM loracomp.prediction AS p
INNER JOIN loracomp.job AS j ON p.job_id = j.id
CROSS JOIN LATERAL unnest(p.adapter_ids, p.composed_tasks, p.adapter_weights)
WITH ORDINALITY AS x (adapter_id, task, weight, place)
GROUP BY (p.created_at AT TIME ZONE 'UTC')::date, j.policy, p.base_model, j.evaluation IS NOT NULL, x.adapter_id;
COMMENT ON MATERIALIZED VIEW loracomp.adapter_usage_by_day IS
'How much each adapter took part in each day''s answers: sums that views of bi divide.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.day IS 'Day of the answers, in UTC.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.adapter_id IS 'The adapter.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.task IS 'Task that it was trained for, as the traces name it.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.jobs IS 'Answers that it took part in.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.jobs_first IS
'Answers that name it first; over all adapters: the answers that were composed.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.weight IS 'Sum of its weights.';
CREATE UNIQUE INDEX adapter_usage_by_day_key ON loracomp.adapter_usage_by_day (
    day, policy, base_model, is_evaluation, adapter_id
);

-- Reads only, with its owner's rights.
CREATE VIEW bi.adapter_usage_by_day AS
SELECT
    u.day,
    u.policy,
    u.base_model,
    u.is_evaluation,
    u.adapter_id,
    CASE WHEN m.labels ? u.task THEN 'hidden adapter ' || u.adapter_id ELSE a.name || '@' || a.version END AS adapter,
    coalesce(m.labels ->> u.task, u.task) AS task,
    t.family,
    u.jobs,
    u.jobs / sum(u.jobs_first) OVER w::double precision AS share_of_jobs,
    u.weight / u.jobs AS mean_weight,
    u.weight / sum(u.weight) OVER w AS share,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'adapter_usage_by_day') AS as_of
FROM loracomp.adapter_usage_by_day AS u
CROSS JOIN loracomp.task_mask AS m
LEFT JOIN loracomp.adapter AS a ON u.adapter_id = a.id
LEFT JOIN loracomp.task AS t ON u.task = t.name
WINDOW w AS (PARTITION BY u.day, u.policy, u.base_model, u.is_evaluation);
COMMENT ON VIEW bi.adapter_usage_by_day IS
'How much each adapter took part in the answers of each day. Refreshed, not live.';
COMMENT ON COLUMN bi.adapter_usage_by_day.adapter_id IS
'Number of this version of the adapter; joins with bi.dim_adapter.';
COMMENT ON COLUMN bi.adapter_usage_by_day.adapter IS
'Its name and version, such as rte@2; null where it was removed since.';
COMMENT ON COLUMN bi.adapter_usage_by_day.task IS 'Task that it was trained for.';
COMMENT ON COLUMN bi.adapter_usage_by_day.family IS 'Kind of that task; null where the task was removed since.';
COMMENT ON COLUMN bi.adapter_usage_by_day.share_of_jobs IS 'Their share of the day''s composed answers, 0 to 1.';
COMMENT ON COLUMN bi.adapter_usage_by_day.mean_weight IS 'Its mean weight in those, 0 to 1.';
COMMENT ON COLUMN bi.adapter_usage_by_day.share IS
'Its part of all weight composed that day; the adapters of a day sum to 1.';
COMMENT ON COLUMN bi.adapter_usage_by_day.as_of IS 'When these numbers were computed last; later answers are not counted yet.';

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
    sum(s.weight) / sum(sum(s.weight)) OVER (PARTITION BY s.day) AS share,
    now() AS as_of
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
COMMENT ON COLUMN bi.task_usage_by_day.as_of IS 'Up to when it counts: now, for it is live.';

-- How often adapters were used, by day.
--   bi.adapter_usage_by_day     by adapter
--   bi.task_usage_by_day        by task, including the days since the last refresh
--     loracomp.adapter_usage_by_day   both read it; refresh_reports() computes it

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
'Sums over the answers of a day in which an adapter was used, from which views of bi compute shares.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.day IS 'Day in UTC on which the jobs were answered.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.adapter_id IS 'Id of the adapter.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.task IS 'Task that the adapter was trained for, under the name that it had when the jobs were answered.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.jobs IS 'Number of answers in which the adapter was used.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.jobs_first IS
'Number of answers in which the adapter comes first; summed over adapters: the number of answers with adapters.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.weight IS 'Sum of the adapter''s weights over the answers.';
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
    CASE
        WHEN (SELECT m.labels FROM loracomp.task_mask AS m) ? u.task THEN 'hidden adapter ' || u.adapter_id ELSE
            a.name || '@' || a.version
    END AS adapter,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> u.task, u.task) AS task,
    t.family,
    u.jobs,
    u.jobs / sum(u.jobs_first) OVER w::double precision AS share_of_jobs,
    u.weight / u.jobs AS mean_weight,
    u.weight / sum(u.weight) OVER w AS share,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'adapter_usage_by_day') AS as_of
FROM loracomp.adapter_usage_by_day AS u
LEFT JOIN loracomp.adapter AS a ON u.adapter_id = a.id
LEFT JOIN loracomp.task AS t ON u.task = t.name
WINDOW w AS (PARTITION BY u.day, u.policy, u.base_model, u.is_evaluation);
COMMENT ON VIEW bi.adapter_usage_by_day IS
'How often, and with what weight, each adapter was used on each day. Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.adapter_usage_by_day.adapter_id IS
'Id of this version of the adapter; joins with bi.dim_adapter.';
COMMENT ON COLUMN bi.adapter_usage_by_day.adapter IS
'Name and version of the adapter, such as rte@2; null if it was deleted.';
COMMENT ON COLUMN bi.adapter_usage_by_day.task IS 'Task that the adapter was trained for.';
COMMENT ON COLUMN bi.adapter_usage_by_day.family IS 'Family of the task, such as nli; null if the task was deleted.';
COMMENT ON COLUMN bi.adapter_usage_by_day.share_of_jobs IS 'Share of the day''s answers with adapters in which this adapter was used, 0 to 1.';
COMMENT ON COLUMN bi.adapter_usage_by_day.mean_weight IS 'Mean weight of the adapter in the answers in which it was used, 0 to 1.';
COMMENT ON COLUMN bi.adapter_usage_by_day.share IS
'The adapter''s share of all weights of the day; the adapters of a day sum to 1.';
COMMENT ON COLUMN bi.adapter_usage_by_day.as_of IS 'When these numbers were computed last; later answers are not counted yet.';

-- Reads only, with its owner's rights. It is live, and cheap if reports are refreshed: days before the last refresh of
-- adapter_usage_by_day come from that view, later days from the predictions.
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
    -- With an upper bound, although none is needed: for a condition with only a lower bound of unknown value the planner
    -- expects a third of all jobs, and with both bounds few.
    WHERE j.finished_at >= (SELECT r.day::timestamp AT TIME ZONE 'UTC' FROM report AS r)
        AND j.finished_at < 'infinity'
    GROUP BY (j.finished_at AT TIME ZONE 'UTC')::date, x.task
)

SELECT
    s.day,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> s.task, s.task) AS task,
    sum(s.jobs)::bigint AS jobs,
    sum(s.weight) / sum(s.jobs)::double precision AS mean_weight,
    sum(s.weight) / sum(sum(s.weight)) OVER (PARTITION BY s.day) AS share,
    now() AS as_of
FROM usage AS s
GROUP BY s.day, coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> s.task, s.task);
COMMENT ON VIEW bi.task_usage_by_day IS 'How often, and with what weight, each task''s adapters were used on each day.';
COMMENT ON COLUMN bi.task_usage_by_day.day IS 'Day in UTC on which the jobs were answered.';
COMMENT ON COLUMN bi.task_usage_by_day.task IS 'Task whose adapter was used.';
COMMENT ON COLUMN bi.task_usage_by_day.jobs IS 'Number of answers in which the adapter was used.';
COMMENT ON COLUMN bi.task_usage_by_day.mean_weight IS 'Mean weight of the adapter in the answers in which it was used, 0 to 1.';
COMMENT ON COLUMN bi.task_usage_by_day.share IS
'The task''s share of all weights of the day; the shares of a day sum to 1.';
COMMENT ON COLUMN bi.task_usage_by_day.as_of IS 'Time of the data: the time of the query, because the view is live.';

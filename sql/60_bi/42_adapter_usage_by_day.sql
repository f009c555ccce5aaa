-- drop: DROP VIEW IF EXISTS bi.adapter_usage_by_day
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
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'adapter_usage_by_day') AS refreshed_at
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
COMMENT ON COLUMN bi.adapter_usage_by_day.refreshed_at IS
'Up to when it counts: when its numbers were last worked out.';

-- How often adapters were used, by day.
--   bi.adapter_usage_by_day
--     loracomp.adapter_usage_by_day   a table with the names of hidden tasks, which the view masks
--   adapter_usage_by_day_on     computes a day of it

-- Reads only. Jobs whose right answer was known are left out, and so are weights close to 0, for the same reasons as in routing_by_day_on.
CREATE FUNCTION loracomp.adapter_usage_by_day_on(day date) RETURNS SETOF loracomp.adapter_usage_by_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    adapter_usage_by_day_on.day,
    j.policy,
    j.base_model,
    x.adapter_id,
    max(x.task) AS task,
    count(*) AS jobs,
    coalesce(sum(x.weight) FILTER (WHERE x.weight > 1e-200), 0) AS weight
FROM loracomp.jobs_on(adapter_usage_by_day_on.day) AS j
INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
CROSS JOIN LATERAL unnest(p.adapter_ids, p.composed_tasks, p.adapter_weights) AS x (adapter_id, task, weight)
WHERE x.adapter_id IS NOT NULL AND j.expected IS NULL
GROUP BY j.policy, j.base_model, x.adapter_id;
END;
COMMENT ON FUNCTION loracomp.adapter_usage_by_day_on IS 'Rows of loracomp.adapter_usage_by_day for a day, computed from its jobs.';

-- Reads only, with its owner's rights.
CREATE VIEW bi.adapter_usage_by_day AS
SELECT
    u.day,
    u.policy,
    u.base_model,
    u.adapter_id,
    loracomp.masked_adapter(
        a.name || '@' || a.version,
        coalesce(t.name, u.task),
        u.adapter_id,
        (SELECT m.labels FROM loracomp.task_mask AS m)
    ) AS adapter,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> coalesce(t.name, u.task), t.name, u.task) AS task,
    t.family,
    u.jobs,
    u.weight,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r) AS as_of
FROM loracomp.adapter_usage_by_day AS u
LEFT JOIN loracomp.adapter AS a ON u.adapter_id = a.id
LEFT JOIN loracomp.task AS t ON a.task_id = t.id;
COMMENT ON VIEW bi.adapter_usage_by_day IS
'How often, and with what weight, each adapter was used on each day. Leaves out jobs whose right answer was known. Refreshed by '
'refresh_reports, not live.';
COMMENT ON COLUMN bi.adapter_usage_by_day.adapter IS
'Name and version of the adapter, such as rte@2; null if it was deleted.';
COMMENT ON COLUMN bi.adapter_usage_by_day.task IS
'Task that the adapter was trained for; if the adapter was deleted, under the name that the task had when the jobs were answered.';
COMMENT ON COLUMN bi.adapter_usage_by_day.family IS 'Family of the task, such as nli; null if the adapter was deleted.';
SELECT loracomp.copy_comments('bi.adapter_usage_by_day', 'loracomp.adapter_usage_by_day', 'bi.accuracy_by_day');

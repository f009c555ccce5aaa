-- How often adapters were used, by day.
--   bi.adapter_usage_by_day
--     loracomp.adapter_usage_by_day   a table with the names of hidden tasks, which the view masks
--   adapter_usage_by_day_on     computes a day of it

-- Reads only. It leaves out weights next to 0, as routing_by_day_on does with probabilities.
CREATE FUNCTION loracomp.adapter_usage_by_day_on(day date) RETURNS SETOF loracomp.adapter_usage_by_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    adapter_usage_by_day_on.day,
    j.policy,
    p.base_model,
    j.expected IS NOT NULL AS has_expected,
    x.adapter_id,
    max(x.task) AS task,
    count(*) AS jobs,
    count(*) FILTER (WHERE x.place = 1) AS jobs_first,
    coalesce(sum(x.weight) FILTER (WHERE x.weight > 1e-200), 0) AS weight
FROM loracomp.jobs_on(adapter_usage_by_day_on.day) AS j
INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
CROSS JOIN LATERAL unnest(p.adapter_ids, p.composed_tasks, p.adapter_weights)
WITH ORDINALITY AS x (adapter_id, task, weight, place)
WHERE x.adapter_id IS NOT NULL
GROUP BY j.policy, p.base_model, j.expected IS NOT NULL, x.adapter_id;
END;
COMMENT ON FUNCTION loracomp.adapter_usage_by_day_on IS 'Rows of loracomp.adapter_usage_by_day for a day, computed from its jobs.';

-- Reads only, with its owner's rights.
CREATE VIEW bi.adapter_usage_by_day AS
SELECT
    u.day,
    u.policy,
    u.base_model,
    u.has_expected,
    u.adapter_id,
    loracomp.masked_adapter(
        a.name || '@' || a.version, u.task, u.adapter_id, (SELECT m.labels FROM loracomp.task_mask AS m)
    ) AS adapter,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> u.task, u.task) AS task,
    t.family,
    u.jobs,
    u.jobs / sum(u.jobs_first) OVER w::double precision AS share_of_jobs,
    u.weight / u.jobs AS mean_weight,
    u.weight / nullif(sum(u.weight) OVER w, 0) AS share,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'adapter_usage_by_day') AS as_of
FROM loracomp.adapter_usage_by_day AS u
LEFT JOIN loracomp.adapter AS a ON u.adapter_id = a.id
LEFT JOIN loracomp.task AS t ON u.task = t.name
WINDOW w AS (PARTITION BY u.day, u.policy, u.base_model, u.has_expected);
COMMENT ON VIEW bi.adapter_usage_by_day IS
'How often, and with what weight, each adapter was used on each day. Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.adapter_usage_by_day.adapter IS
'Name and version of the adapter, such as rte@2; null if it was deleted.';
COMMENT ON COLUMN bi.adapter_usage_by_day.family IS 'Family of the task, such as nli; null if the task was deleted.';
COMMENT ON COLUMN bi.adapter_usage_by_day.share_of_jobs IS 'Share of the answers with adapters, of this day, policy, base model and has_expected, in which this adapter was used, 0 to 1.';
COMMENT ON COLUMN bi.adapter_usage_by_day.mean_weight IS 'Mean weight of the adapter in the answers in which it was used, 0 to 1.';
COMMENT ON COLUMN bi.adapter_usage_by_day.share IS
'The adapter''s share of all weights of this day, policy, base model and has_expected; these sum to 1.';
SELECT loracomp.copy_comments('bi.adapter_usage_by_day', 'loracomp.adapter_usage_by_day', 'bi.routing_by_day');

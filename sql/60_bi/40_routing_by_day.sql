-- drop: DROP VIEW IF EXISTS bi.routing_by_day
-- Reads only, with its owner's rights.
CREATE VIEW bi.routing_by_day AS
SELECT
    r.day,
    r.policy,
    r.base_model,
    r.is_evaluation,
    coalesce(m.labels ->> r.task, r.task) AS task,
    max(r.jobs)::bigint AS jobs,
    sum(r.mass) / max(r.jobs) AS mean_probability,
    sum(r.jobs_first)::double precision / max(r.jobs) AS first_share,
    sum(r.jobs_inside)::double precision / max(r.jobs) AS inside_share,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'routing_by_day') AS refreshed_at
FROM (
    SELECT
        d.*,
        sum(d.jobs_first) OVER (PARTITION BY d.day, d.policy, d.base_model, d.is_evaluation) AS jobs
    FROM loracomp.routing_by_day AS d
) AS r
CROSS JOIN loracomp.task_mask AS m
GROUP BY r.day, r.policy, r.base_model, r.is_evaluation, coalesce(m.labels ->> r.task, r.task);
COMMENT ON VIEW bi.routing_by_day IS 'Which tasks retrieval saw in each day''s jobs. Refreshed, not live.';
COMMENT ON COLUMN bi.routing_by_day.task IS 'Task that had a probability.';
COMMENT ON COLUMN bi.routing_by_day.jobs IS 'Answers that were routed by retrieval that day; the same for each task.';
COMMENT ON COLUMN bi.routing_by_day.mean_probability IS
'Mean probability of the task over these answers, 0 to 1; the tasks of a day sum to 1.';
COMMENT ON COLUMN bi.routing_by_day.first_share IS 'Share of the answers of which it was the most probable task.';
COMMENT ON COLUMN bi.routing_by_day.inside_share IS 'Share of the answers whose mix it had a weight in.';
COMMENT ON COLUMN bi.routing_by_day.refreshed_at IS 'Up to when it counts: when its numbers were last worked out.';

-- drop: DROP MATERIALIZED VIEW IF EXISTS loracomp.adapter_usage_by_day
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
COMMENT ON COLUMN loracomp.adapter_usage_by_day.is_evaluation IS 'Whether evaluations asked, and not people.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.adapter_id IS 'The adapter.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.task IS 'Task that it was trained for, as the traces name it.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.jobs IS 'Answers that it took part in.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.jobs_first IS
'Answers that name it first; over all adapters: the answers that were composed.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.weight IS 'Sum of its weights.';
CREATE UNIQUE INDEX adapter_usage_by_day_key ON loracomp.adapter_usage_by_day (
    day, policy, base_model, is_evaluation, adapter_id
);

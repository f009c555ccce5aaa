-- drop: DROP MATERIALIZED VIEW IF EXISTS loracomp.routing_by_day
-- Refreshed by refresh_reports(). It holds the names of hidden tasks, so analysts read
-- bi.routing_by_day, which masks them.
CREATE MATERIALIZED VIEW loracomp.routing_by_day AS
SELECT
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    j.policy,
    p.base_model,
    j.evaluation IS NOT NULL AS is_evaluation,
    x.task,
    count(*) FILTER (WHERE x.place = 1) AS jobs_first,
    count(*) FILTER (WHERE x.weight > 0) AS jobs_inside,
    sum(x.probability) AS mass,
    sum(CASE WHEN x.probability > 0 THEN -x.probability * ln(x.probability) ELSE 0 END) / ln(2::double precision)
        AS entropy
FROM loracomp.prediction AS p
INNER JOIN loracomp.job AS j ON p.job_id = j.id
CROSS JOIN LATERAL unnest(p.tasks, p.probabilities, p.weights)
WITH ORDINALITY AS x (task, probability, weight, place)
WHERE p.policy ->> 'router' = 'retrieval'
GROUP BY (p.created_at AT TIME ZONE 'UTC')::date, j.policy, p.base_model, j.evaluation IS NOT NULL, x.task;
COMMENT ON MATERIALIZED VIEW loracomp.routing_by_day IS
'What retrieval made of each day''s jobs, by task: sums that views of bi divide.';
COMMENT ON COLUMN loracomp.routing_by_day.day IS 'Day of the answers, in UTC.';
COMMENT ON COLUMN loracomp.routing_by_day.is_evaluation IS 'Whether evaluations asked, and not people.';
COMMENT ON COLUMN loracomp.routing_by_day.task IS 'Task that had a probability.';
COMMENT ON COLUMN loracomp.routing_by_day.jobs_first IS
'Answers of which it was the most probable task; over all tasks: the answers.';
COMMENT ON COLUMN loracomp.routing_by_day.jobs_inside IS 'Answers whose mix it had a weight in.';
COMMENT ON COLUMN loracomp.routing_by_day.mass IS 'Sum of its probabilities.';
COMMENT ON COLUMN loracomp.routing_by_day.entropy IS 'Its part of the sum of the answers'' entropies, in bits.';
CREATE UNIQUE INDEX routing_by_day_key ON loracomp.routing_by_day (
    day, policy, base_model, is_evaluation, task
);

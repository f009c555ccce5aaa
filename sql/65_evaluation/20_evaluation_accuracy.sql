-- Reads only, with its owner's rights. In a mean over tasks every task has the same weight. Its interval is computed from the
-- tasks' Wilson intervals: their distances from the estimates are squared and added (Zou and Donner 2008). Scopes are joined,
-- because the planner would not push a condition on the evaluation below GROUPING SETS.
CREATE VIEW bi.evaluation_accuracy AS
WITH by_task AS (
    SELECT
        j.evaluation,
        j.task AS own_task,
        j.policy,
        j.base_model,
        count(*) AS asked,
        count(*) FILTER (WHERE j.status = 'succeeded') AS n,
        count(*) FILTER (WHERE j.is_correct) AS correct
    FROM loracomp.job AS j
    WHERE j.evaluation IS NOT NULL AND j.expected IS NOT NULL AND j.finished_at IS NOT NULL AND j.kind = 'predict'
    GROUP BY j.evaluation, j.task, j.policy, j.base_model
),

by_scope AS (
    SELECT
        a.evaluation,
        c.scope,
        CASE WHEN c.scope <> 'all' THEN t.family END AS family,
        CASE WHEN c.scope = 'task' THEN a.own_task END AS own_task,
        a.policy,
        a.base_model,
        nullif(count(s.share), 0) AS tasks,
        sum(a.asked)::bigint AS asked,
        sum(a.n)::bigint AS n,
        sum(a.correct)::bigint AS correct,
        avg(s.share) AS accuracy,
        sqrt(sum((s.share - i.low) ^ 2)) AS below,
        sqrt(sum((i.high - s.share) ^ 2)) AS above
    FROM by_task AS a
    INNER JOIN loracomp.task AS t ON a.own_task = t.name
    CROSS JOIN LATERAL (SELECT a.correct::double precision / nullif(a.n, 0) AS share) AS s
    CROSS JOIN LATERAL bi.wilson_interval(a.correct, a.n) AS i
    CROSS JOIN (VALUES ('task'), ('family'), ('all')) AS c (scope)
    GROUP BY 1, 2, 3, 4, 5, 6
)

SELECT
    m.evaluation,
    m.scope,
    m.family,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> m.own_task, m.own_task) AS own_task,
    m.policy,
    m.base_model,
    m.tasks,
    m.asked,
    m.n,
    m.correct,
    m.accuracy,
    greatest(0, m.accuracy - m.below / m.tasks) AS accuracy_low,
    least(1, m.accuracy + m.above / m.tasks) AS accuracy_high,
    now() AS as_of
FROM by_scope AS m;
COMMENT ON VIEW bi.evaluation_accuracy IS
'How often answers were right in an evaluation, by policy: for each task, and means over the tasks of a family and over all.';
COMMENT ON COLUMN bi.evaluation_accuracy.scope IS
'task, family or all: filter by this column, because rows of one scope are means over rows of another.';
COMMENT ON COLUMN bi.evaluation_accuracy.family IS 'Family of the tasks, such as nli; null if scope is all.';
COMMENT ON COLUMN bi.evaluation_accuracy.own_task IS 'Task of the evaluated rows; null unless scope is task.';
COMMENT ON COLUMN bi.evaluation_accuracy.tasks IS 'Number of tasks in the mean. Compare only means over the same tasks.';
COMMENT ON COLUMN bi.evaluation_accuracy.accuracy IS 'correct / n for one task, 0 to 1; for a family or all, the mean of the tasks'' accuracies.';
COMMENT ON COLUMN bi.evaluation_accuracy.accuracy_low IS
'Lower end of the 95 % confidence interval: Wilson''s for one task, otherwise computed from the tasks'' intervals.';
SELECT loracomp.copy_comments('bi.evaluation_accuracy', 'bi.prediction', 'bi.accuracy_by_day');

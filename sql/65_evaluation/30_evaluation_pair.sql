-- Policies compared on the same rows.
--   evaluation_pair           any two policies, for each task, each family and all tasks
--     mcnemar_p               p value of the difference

-- Reads no table. The test is exact for all numbers of rows; its time grows with the smaller of the two numbers. Binomial
-- probabilities are summed from their logarithms, which are clamped because exp raises an underflow below -745.
CREATE FUNCTION bi.mcnemar_p(only_a bigint, only_b bigint) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT least(1, 2 * sum(exp(greatest(t.log_p, -700))))
FROM (
    SELECT
        sum(CASE WHEN i.i > 0 THEN ln((only_a + only_b - i.i + 1)::double precision / i.i) ELSE 0 END)
        OVER (ORDER BY i.i)
        - (only_a + only_b) * ln(2::double precision) AS log_p
    FROM generate_series(0, least(only_a, only_b)) AS i (i)
) AS t
WHERE loracomp.check_range('only_a', only_a, 0, 1e6) AND loracomp.check_range('only_b', only_b, 0, 1e6);
END;
COMMENT ON FUNCTION bi.mcnemar_p IS
'P value of McNemar''s exact two-sided test, from the numbers of rows on which only one of two policies was right: how often '
'two equally good policies would differ at least as much. 1 if they never differ.';

-- Reads only, with its owner's rights. Rows that only one policy answered are not counted. The interval of a difference is Agresti
-- and Min's (2005): Wald's with half a row added to each of the four outcomes; that of a mean uses the sum of the variances. Scopes
-- are joined, because the planner would not push a condition on the evaluation below GROUPING SETS.
CREATE VIEW bi.evaluation_pair AS
WITH answered AS (
    -- Aggregate the answers to each row first, because the planner chooses bad plans for a self-join by row.
    SELECT
        j.evaluation,
        j.task AS own_task,
        array_agg(j.policy) AS policies,
        array_agg(j.is_correct) AS outcomes
    FROM loracomp.job AS j
    WHERE j.evaluation IS NOT NULL AND j.example_id IS NOT NULL AND j.expected IS NOT NULL AND j.kind = 'predict'
        AND j.status = 'succeeded'
    GROUP BY j.evaluation, j.task, j.example_id
),

by_task AS (
    SELECT
        r.evaluation,
        t.family,
        r.own_task,
        a.policy AS policy_a,
        b.policy AS policy_b,
        count(*) AS n,
        count(*) FILTER (WHERE a.is_correct) AS right_a,
        count(*) FILTER (WHERE b.is_correct) AS right_b,
        count(*) FILTER (WHERE a.is_correct AND NOT b.is_correct) AS only_a,
        count(*) FILTER (WHERE b.is_correct AND NOT a.is_correct) AS only_b
    FROM answered AS r
    INNER JOIN loracomp.task AS t ON r.own_task = t.name
    CROSS JOIN LATERAL unnest(r.policies, r.outcomes) AS a (policy, is_correct)
    INNER JOIN LATERAL unnest(r.policies, r.outcomes) AS b (policy, is_correct) ON a.policy <> b.policy
    GROUP BY r.evaluation, t.family, r.own_task, a.policy, b.policy
),

by_scope AS (
    SELECT
        k.evaluation,
        c.scope,
        CASE WHEN c.scope <> 'all' THEN k.family END AS family,
        CASE WHEN c.scope = 'task' THEN k.own_task END AS own_task,
        k.policy_a,
        k.policy_b,
        count(*) AS tasks,
        count(*) FILTER (WHERE k.only_a > k.only_b) AS tasks_ahead,
        count(*) FILTER (WHERE k.only_a < k.only_b) AS tasks_behind,
        sum(k.n)::bigint AS n,
        sum(k.only_a)::bigint AS only_a,
        sum(k.only_b)::bigint AS only_b,
        avg(k.right_a::double precision / k.n) AS accuracy_a,
        avg(k.right_b::double precision / k.n) AS accuracy_b,
        avg((k.only_a - k.only_b)::double precision / (k.n + 2)) AS centre,
        sqrt(
            sum((k.only_a + k.only_b + 1 - (k.only_a - k.only_b)::double precision ^ 2 / (k.n + 2)) / (k.n + 2) ^ 2)
        ) / count(*) AS standard_error
    FROM by_task AS k
    CROSS JOIN (VALUES ('task'), ('family'), ('all')) AS c (scope)
    GROUP BY 1, 2, 3, 4, 5, 6
)

SELECT
    s.evaluation,
    s.scope,
    s.family,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> s.own_task, s.own_task) AS own_task,
    s.policy_a,
    s.policy_b,
    s.tasks,
    s.tasks_ahead,
    s.tasks_behind,
    s.n,
    s.only_a,
    s.only_b,
    s.accuracy_a,
    s.accuracy_b,
    s.accuracy_a - s.accuracy_b AS difference,
    greatest(-1, s.centre - 1.959964 * s.standard_error) AS difference_low,
    least(1, s.centre + 1.959964 * s.standard_error) AS difference_high,
    bi.mcnemar_p(s.only_a, s.only_b) AS p,
    now() AS as_of
FROM by_scope AS s;
COMMENT ON VIEW bi.evaluation_pair IS
'Two policies compared on the rows that both answered: by how much policy_a was better than policy_b, with a p value.';
COMMENT ON COLUMN bi.evaluation_pair.policy_a IS 'The policy that is compared.';
COMMENT ON COLUMN bi.evaluation_pair.policy_b IS 'The policy that policy_a is compared with.';
COMMENT ON COLUMN bi.evaluation_pair.tasks_ahead IS 'Number of tasks on which policy_a was right more often than policy_b.';
COMMENT ON COLUMN bi.evaluation_pair.tasks_behind IS 'Number of tasks on which policy_b was right more often than policy_a.';
COMMENT ON COLUMN bi.evaluation_pair.n IS 'Number of rows that both policies answered.';
COMMENT ON COLUMN bi.evaluation_pair.only_a IS 'Number of rows on which only policy_a was right.';
COMMENT ON COLUMN bi.evaluation_pair.only_b IS 'Number of rows on which only policy_b was right.';
COMMENT ON COLUMN bi.evaluation_pair.accuracy_a IS
'Accuracy of policy_a on the rows that both policies answered, 0 to 1; in a mean over tasks each task has the same weight.';
COMMENT ON COLUMN bi.evaluation_pair.accuracy_b IS 'Accuracy of policy_b on the rows that both policies answered, 0 to 1.';
COMMENT ON COLUMN bi.evaluation_pair.difference IS 'accuracy_a - accuracy_b.';
COMMENT ON COLUMN bi.evaluation_pair.difference_low IS 'Lower end of the 95 % confidence interval of difference.';
COMMENT ON COLUMN bi.evaluation_pair.difference_high IS 'Upper end of the 95 % confidence interval of difference.';
COMMENT ON COLUMN bi.evaluation_pair.p IS 'P value of McNemar''s exact two-sided test on only_a and only_b.';
SELECT loracomp.copy_comments('bi.evaluation_pair', 'bi.evaluation_accuracy');

-- Reads only, with its owner's rights. The answers to a row are combined by a window function, because the planner chooses bad
-- plans for a self-join by row.
CREATE VIEW bi.expected_gain AS
SELECT
    x.evaluation,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> x.own_task, x.own_task) AS own_task,
    x.policy,
    x.base_model,
    count(*) AS n,
    count(*) FILTER (WHERE x.composes) AS composed,
    avg(x.expected) AS expected,
    avg(x.score - x.base_score) AS realised,
    stddev_samp(x.expected - (x.score - x.base_score)) / sqrt(count(*)) AS bias_standard_error,
    corr(x.expected, x.score - x.base_score) AS correlation,
    now() AS as_of
FROM (
    SELECT
        j.evaluation,
        j.task AS own_task,
        j.policy,
        j.base_model,
        p.expected_gains,
        p.adapter_ids <> '{}' AS composes,
        e.expected,
        s.score,
        max(s.score) FILTER (WHERE p.policy_settings ->> 'router' = 'base')
        OVER (PARTITION BY j.evaluation, j.base_model, j.example_id) AS base_score
    FROM loracomp.job AS j
    INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
    CROSS JOIN LATERAL (
        SELECT loracomp.log_share(p.choice_scores, array_position(j.choices, j.expected)) AS score
    ) AS s
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(u.weight * u.gain), 0) AS expected
        FROM unnest(p.weights, p.expected_gains) AS u (weight, gain)
    ) AS e
    WHERE j.evaluation IS NOT NULL AND j.example_id IS NOT NULL AND j.expected IS NOT NULL AND j.status = 'succeeded'
        AND p.choice_scores IS NOT NULL AND p.calibration_examples IS NULL
        AND (p.expected_gains IS NOT NULL OR p.policy_settings ->> 'router' = 'base')
) AS x
WHERE x.expected_gains IS NOT NULL AND x.base_score IS NOT NULL
GROUP BY
    x.evaluation,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> x.own_task, x.own_task),
    x.policy,
    x.base_model;
COMMENT ON VIEW bi.expected_gain IS
'Expected vs. realised gain over the base model, for policies with weighting measured, on each task of an evaluation. Only rows '
'with choices that a policy without adapters (base) answered too. Calibrated answers are left out: nothing is expected of biases.';
COMMENT ON COLUMN bi.expected_gain.own_task IS 'Task of the evaluated rows.';
COMMENT ON COLUMN bi.expected_gain.composed IS
'Number of these rows for which adapters were used; for the others the base model answered alone, see bi.prediction.fallback.';
COMMENT ON COLUMN bi.expected_gain.expected IS
'Mean expected gain in nats: the adapters'' expected gains averaged by their weights; 0 if the base model answered alone.';
COMMENT ON COLUMN bi.expected_gain.realised IS
'Mean realised gain in nats: log-probability of the right choice among the choices, minus the base model''s on the same row.';
COMMENT ON COLUMN bi.expected_gain.bias_standard_error IS 'Standard error of expected minus realised; null if n is 1.';
COMMENT ON COLUMN bi.expected_gain.correlation IS 'Correlation between expected and realised gain over the rows.';
SELECT loracomp.copy_comments('bi.expected_gain', 'bi.evaluation_pair', 'bi.evaluation_accuracy');

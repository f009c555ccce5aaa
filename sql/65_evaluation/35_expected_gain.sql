-- Reads only, with its owner's rights. A row's answers together by a window: joining each with each by the row is what
-- planners get wrong.
CREATE VIEW bi.expected_gain AS
SELECT
    x.evaluation,
    coalesce(m.labels ->> x.own_task, x.own_task) AS own_task,
    x.policy,
    x.base_model,
    count(*) AS n,
    count(*) FILTER (WHERE x.composes) AS composed,
    avg(x.expected) AS expected,
    avg(x.score - x.base_score) AS realised,
    avg(x.expected - (x.score - x.base_score)) AS bias,
    stddev_samp(x.expected - (x.score - x.base_score)) / sqrt(count(*)) AS bias_standard_error,
    corr(x.expected, x.score - x.base_score) AS correlation,
    avg(x.is_correct::integer)::double precision AS accuracy,
    avg(x.base_is_correct::integer)::double precision AS base_accuracy,
    now() AS as_of
FROM (
    SELECT
        j.evaluation,
        j.task AS own_task,
        j.policy,
        j.base_model,
        j.is_correct,
        p.expected_gains,
        p.adapter_ids <> '{}' AS composes,
        e.expected,
        s.score,
        max(s.score) FILTER (WHERE p.policy_settings ->> 'router' = 'base') OVER same_row AS base_score,
        bool_or(j.is_correct) FILTER (WHERE p.policy_settings ->> 'router' = 'base') OVER same_row AS base_is_correct
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
        AND p.choice_scores IS NOT NULL
    WINDOW same_row AS (PARTITION BY j.evaluation, j.base_model, j.example_id)
) AS x
CROSS JOIN loracomp.task_mask AS m
WHERE x.expected_gains IS NOT NULL AND x.base_score IS NOT NULL
GROUP BY x.evaluation, coalesce(m.labels ->> x.own_task, x.own_task), x.policy, x.base_model;
COMMENT ON VIEW bi.expected_gain IS
'What policies with weighting measured expected to gain over the base model on each task of an evaluation, and what they '
'gained: on the rows that a policy of the base model alone answered too. Rows with choices.';
COMMENT ON COLUMN bi.expected_gain.evaluation IS 'Named set of jobs.';
COMMENT ON COLUMN bi.expected_gain.own_task IS 'Task that the rows come from.';
COMMENT ON COLUMN bi.expected_gain.policy IS 'Name of the settings of routing and merging.';
COMMENT ON COLUMN bi.expected_gain.base_model IS 'Frozen language model.';
COMMENT ON COLUMN bi.expected_gain.n IS 'Rows that both answered.';
COMMENT ON COLUMN bi.expected_gain.composed IS 'Those for which adapters were composed; for the others none was expected to help.';
COMMENT ON COLUMN bi.expected_gain.expected IS
'Mean expected gain in nats: the adapters'' expected gains by their weights; 0 where the base model answered alone.';
COMMENT ON COLUMN bi.expected_gain.realised IS
'Mean gain that came true: log-probability of the right choice given the choices, minus the base model''s on the same row.';
COMMENT ON COLUMN bi.expected_gain.bias IS 'Mean of expected minus realised, in nats.';
COMMENT ON COLUMN bi.expected_gain.bias_standard_error IS 'Of bias; null for one row.';
COMMENT ON COLUMN bi.expected_gain.correlation IS 'Between expected and realised, over the rows.';
COMMENT ON COLUMN bi.expected_gain.accuracy IS 'Share of the rows that the policy has right.';
COMMENT ON COLUMN bi.expected_gain.base_accuracy IS 'Share of the same rows that the base model alone has right.';
COMMENT ON COLUMN bi.expected_gain.as_of IS 'Up to when it counts: now, for it is live.';

-- drop: DROP VIEW IF EXISTS bi.evaluation_regret
-- Reads only, with its owner's rights: bi.evaluation_pair, of the own task's adapter and every other policy.
CREATE VIEW bi.evaluation_regret AS
SELECT
    p.evaluation,
    p.scope,
    p.family,
    p.own_task,
    p.policy_b AS policy,
    p.tasks,
    p.n,
    p.accuracy_b AS accuracy,
    p.accuracy_a AS own_task_accuracy,
    p.difference AS regret,
    p.difference_low AS regret_low,
    p.difference_high AS regret_high,
    p.p
FROM bi.evaluation_pair AS p
WHERE p.policy_a = 'own_task';
COMMENT ON VIEW bi.evaluation_regret IS
'What a policy loses against the adapter trained for the task (policy own_task) on the same rows; below 0, it gains.';
COMMENT ON COLUMN bi.evaluation_regret.scope IS 'task, family or all: filter by it.';
COMMENT ON COLUMN bi.evaluation_regret.policy IS 'The policy that is judged.';
COMMENT ON COLUMN bi.evaluation_regret.accuracy IS 'Accuracy of the policy on these rows, 0 to 1.';
COMMENT ON COLUMN bi.evaluation_regret.own_task_accuracy IS 'Accuracy of the own task''s adapter on these rows.';
COMMENT ON COLUMN bi.evaluation_regret.regret IS 'own_task_accuracy - accuracy.';
COMMENT ON COLUMN bi.evaluation_regret.p IS 'P value of McNemar''s exact two-sided test.';

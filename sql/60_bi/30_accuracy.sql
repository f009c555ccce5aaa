-- How often answers were the expected ones.
--   bi.accuracy                 by evaluation, task and policy
--   bi.accuracy_by_day
--     each: wilson_interval, task_mask
--     loracomp.accuracy_by_day  what both rest on: the jobs that are here, and the days of those that were purged

-- Reads only. It holds the names of hidden tasks, which views of bi mask. A job's day is in both parts, so that a condition
-- on it reaches them.
CREATE VIEW loracomp.accuracy_by_day AS
SELECT
    c.day,
    c.evaluation,
    c.own_task,
    c.policy,
    c.base_model,
    sum(c.asked)::bigint AS asked,
    sum(c.n)::bigint AS n,
    sum(c.correct)::bigint AS correct
FROM (
    SELECT
        (j.finished_at AT TIME ZONE 'UTC')::date AS day,
        j.evaluation,
        j.task AS own_task,
        j.policy,
        j.base_model,
        count(*) AS asked,
        count(*) FILTER (WHERE j.status = 'succeeded') AS n,
        count(*) FILTER (WHERE j.is_correct) AS correct
    FROM loracomp.job AS j
    WHERE j.expected IS NOT NULL AND j.finished_at IS NOT NULL AND j.kind = 'predict'
    GROUP BY (j.finished_at AT TIME ZONE 'UTC')::date, j.evaluation, j.task, j.policy, j.base_model
    UNION ALL
    SELECT
        d.day,
        d.evaluation,
        d.own_task,
        d.policy,
        d.base_model,
        d.asked,
        d.n,
        d.correct
    FROM loracomp.purged_day AS d
    WHERE d.asked > 0
) AS c
GROUP BY c.day, c.evaluation, c.own_task, c.policy, c.base_model;
COMMENT ON VIEW loracomp.accuracy_by_day IS 'What bi.accuracy_by_day rests on.';
COMMENT ON COLUMN loracomp.accuracy_by_day.day IS 'Day on which the jobs ended, in UTC.';
COMMENT ON COLUMN loracomp.accuracy_by_day.evaluation IS 'Named set of jobs; null outside of one.';
COMMENT ON COLUMN loracomp.accuracy_by_day.own_task IS 'Task that the jobs come from.';
COMMENT ON COLUMN loracomp.accuracy_by_day.policy IS 'Name of the settings of routing and merging.';
COMMENT ON COLUMN loracomp.accuracy_by_day.base_model IS 'Frozen language model.';
COMMENT ON COLUMN loracomp.accuracy_by_day.asked IS 'Jobs that ended, failed and cancelled ones too.';
COMMENT ON COLUMN loracomp.accuracy_by_day.n IS 'Those that were answered.';
COMMENT ON COLUMN loracomp.accuracy_by_day.correct IS 'Answers that were the expected ones, to the letter.';

-- Reads only, with its owner's rights. Failed jobs count as asked and not as answered, so that nobody is misled.
CREATE VIEW bi.accuracy AS
SELECT
    c.evaluation,
    coalesce(m.labels ->> c.own_task, c.own_task) AS own_task,
    c.policy,
    c.base_model,
    c.asked,
    c.n,
    c.correct,
    c.correct::double precision / nullif(c.n, 0) AS accuracy,
    i.low AS accuracy_low,
    i.high AS accuracy_high,
    now() AS as_of
FROM (
    SELECT
        d.evaluation,
        d.own_task,
        d.policy,
        d.base_model,
        sum(d.asked)::bigint AS asked,
        sum(d.n)::bigint AS n,
        sum(d.correct)::bigint AS correct
    FROM loracomp.accuracy_by_day AS d
    GROUP BY d.evaluation, d.own_task, d.policy, d.base_model
) AS c
CROSS JOIN loracomp.task_mask AS m
CROSS JOIN LATERAL bi.wilson_interval(c.correct, c.n) AS i;
COMMENT ON VIEW bi.accuracy IS 'How often answers were the expected ones, by evaluation, task and policy.';
COMMENT ON COLUMN bi.accuracy.evaluation IS 'Named set of jobs; null for jobs with an expected answer outside of one.';
COMMENT ON COLUMN bi.accuracy.own_task IS 'Task that the jobs come from.';
COMMENT ON COLUMN bi.accuracy.policy IS 'Name of the settings of routing and merging; controls are policies too.';
COMMENT ON COLUMN bi.accuracy.base_model IS 'Frozen language model.';
COMMENT ON COLUMN bi.accuracy.asked IS 'Jobs that ended, failed and cancelled ones too.';
COMMENT ON COLUMN bi.accuracy.n IS 'Those that were answered.';
COMMENT ON COLUMN bi.accuracy.correct IS 'Answers that were the expected ones, to the letter.';
COMMENT ON COLUMN bi.accuracy.accuracy IS 'correct / n, 0 to 1.';
COMMENT ON COLUMN bi.accuracy.accuracy_low IS 'Lower end of its 95 % confidence interval (Wilson).';
COMMENT ON COLUMN bi.accuracy.accuracy_high IS 'Upper end of that interval.';
COMMENT ON COLUMN bi.accuracy.as_of IS 'Up to when it counts: now, for it is live.';

-- Reads only, with its owner's rights. Failed jobs count as asked and not as answered.
CREATE VIEW bi.accuracy_by_day AS
SELECT
    c.day,
    c.evaluation,
    coalesce(m.labels ->> c.own_task, c.own_task) AS own_task,
    c.policy,
    c.base_model,
    c.asked,
    c.n,
    c.correct,
    c.correct::double precision / nullif(c.n, 0) AS accuracy,
    i.low AS accuracy_low,
    i.high AS accuracy_high,
    now() AS as_of
FROM loracomp.accuracy_by_day AS c
CROSS JOIN loracomp.task_mask AS m
CROSS JOIN LATERAL bi.wilson_interval(c.correct, c.n) AS i;
COMMENT ON VIEW bi.accuracy_by_day IS 'How often answers were the expected ones, by task, policy and day.';
COMMENT ON COLUMN bi.accuracy_by_day.day IS 'Day on which the jobs ended, in UTC.';
COMMENT ON COLUMN bi.accuracy_by_day.evaluation IS
'Named set of jobs; null for jobs with an expected answer outside of one.';
COMMENT ON COLUMN bi.accuracy_by_day.own_task IS 'Task that the jobs come from.';
COMMENT ON COLUMN bi.accuracy_by_day.policy IS
'Name of the settings of routing and merging; controls are policies too.';
COMMENT ON COLUMN bi.accuracy_by_day.base_model IS 'Frozen language model.';
COMMENT ON COLUMN bi.accuracy_by_day.asked IS 'Jobs that ended, failed and cancelled ones too.';
COMMENT ON COLUMN bi.accuracy_by_day.n IS 'Those that were answered.';
COMMENT ON COLUMN bi.accuracy_by_day.correct IS 'Answers that were the expected ones, to the letter.';
COMMENT ON COLUMN bi.accuracy_by_day.accuracy IS 'correct / n, 0 to 1; null where n is 0.';
COMMENT ON COLUMN bi.accuracy_by_day.accuracy_low IS 'Lower end of its 95 % confidence interval (Wilson).';
COMMENT ON COLUMN bi.accuracy_by_day.accuracy_high IS 'Upper end of that interval.';
COMMENT ON COLUMN bi.accuracy_by_day.as_of IS 'Up to when it counts: now, for it is live.';

-- How often answers were right.
--   bi.accuracy                 by evaluation, task and policy
--   bi.accuracy_by_day
--     each: wilson_interval, task_mask
--     loracomp.current_accuracy   both read it: the table accuracy_by_day, and the jobs that ended since the last refresh
--       live_since
--   accuracy_by_day_on            computes a day of that table

-- Reads only.
CREATE FUNCTION loracomp.accuracy_by_day_on(day date) RETURNS SETOF loracomp.accuracy_by_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    accuracy_by_day_on.day,
    j.evaluation,
    j.task AS own_task,
    j.policy,
    j.base_model,
    count(*) AS asked,
    count(*) FILTER (WHERE j.status = 'succeeded') AS n,
    count(*) FILTER (WHERE j.is_correct) AS correct
FROM loracomp.jobs_on(accuracy_by_day_on.day) AS j
WHERE j.expected IS NOT NULL AND j.kind = 'predict'
GROUP BY j.evaluation, j.task, j.policy, j.base_model;
END;
COMMENT ON FUNCTION loracomp.accuracy_by_day_on IS 'Rows of loracomp.accuracy_by_day for a day, computed from its jobs.';

-- Reads only. It contains the names of hidden tasks, which views of bi replace by labels. Days since the last refresh
-- are live, because people watch evaluations.
CREATE VIEW loracomp.current_accuracy AS
SELECT d.* FROM loracomp.accuracy_by_day AS d WHERE d.day < (SELECT l.day FROM loracomp.live_since AS l)
UNION ALL
-- Not by accuracy_by_day_on, which a reader would need a right to call.
SELECT
    (j.finished_at AT TIME ZONE 'UTC')::date, j.evaluation, j.task, j.policy, j.base_model, count(*),
    count(*) FILTER (WHERE j.status = 'succeeded'), count(*) FILTER (WHERE j.is_correct)
FROM loracomp.job AS j
WHERE j.finished_at >= (SELECT l.since FROM loracomp.live_since AS l) AND j.finished_at < 'infinity'
    AND j.expected IS NOT NULL AND j.kind = 'predict'
GROUP BY (j.finished_at AT TIME ZONE 'UTC')::date, j.evaluation, j.task, j.policy, j.base_model;
COMMENT ON VIEW loracomp.current_accuracy IS 'Accuracy by day up to now with unmasked task names; bi.accuracy and bi.accuracy_by_day read it.';
SELECT loracomp.copy_comments('loracomp.current_accuracy', 'loracomp.accuracy_by_day');

-- Reads only, with its owner's rights. A failed job counts in asked but not in n, so that failures stay visible.
CREATE VIEW bi.accuracy AS
SELECT
    c.evaluation,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> c.own_task, c.own_task) AS own_task,
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
    FROM loracomp.current_accuracy AS d
    GROUP BY d.evaluation, d.own_task, d.policy, d.base_model
) AS c
CROSS JOIN LATERAL bi.wilson_interval(c.correct, c.n) AS i;
COMMENT ON VIEW bi.accuracy IS 'How often answers were right, by evaluation, task and policy. Purged jobs count.';
COMMENT ON COLUMN bi.accuracy.accuracy IS 'correct / n, 0 to 1; null if n is 0.';
COMMENT ON COLUMN bi.accuracy.accuracy_low IS 'Lower end of the 95 % confidence interval of accuracy (Wilson).';
COMMENT ON COLUMN bi.accuracy.accuracy_high IS 'Upper end of the 95 % confidence interval of accuracy.';
COMMENT ON COLUMN bi.accuracy.as_of IS
'Time of the query: days since the last refresh are live. Jobs of earlier days that were erased or tried again show after the '
'next refresh.';
SELECT loracomp.copy_comments('bi.accuracy', 'loracomp.current_accuracy');

-- Reads only, with its owner's rights. A failed job counts in asked but not in n.
CREATE VIEW bi.accuracy_by_day AS
SELECT
    c.day,
    c.evaluation,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> c.own_task, c.own_task) AS own_task,
    c.policy,
    c.base_model,
    c.asked,
    c.n,
    c.correct,
    c.correct::double precision / nullif(c.n, 0) AS accuracy,
    i.low AS accuracy_low,
    i.high AS accuracy_high,
    now() AS as_of
FROM loracomp.current_accuracy AS c
CROSS JOIN LATERAL bi.wilson_interval(c.correct, c.n) AS i;
COMMENT ON VIEW bi.accuracy_by_day IS 'How often answers were right, by task, policy and day. Purged jobs count.';
SELECT loracomp.copy_comments('bi.accuracy_by_day', 'bi.accuracy', 'loracomp.current_accuracy');

-- How much the tasks that routing found for a day's jobs differ from the tasks of the week before.
--   bi.routing_drift
--     loracomp.routing_by_day   the tasks of each day, a table
--   routing_by_day_on           computes a day of it

-- Reads only. Jobs whose right answer was known are left out, because users did not ask them. Probabilities close to 0 are left out too,
-- because the view divides the sums, and Postgres raises an error if a quotient underflows.
CREATE FUNCTION loracomp.routing_by_day_on(day date) RETURNS SETOF loracomp.routing_by_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    routing_by_day_on.day,
    j.policy,
    j.base_model,
    x.task,
    count(*) FILTER (WHERE x.ordinal = 1) AS jobs_first,
    coalesce(sum(x.probability) FILTER (WHERE x.probability > 1e-200), 0) AS mass,
    coalesce(sum(-x.probability * ln(x.probability)) FILTER (WHERE x.probability > 1e-200), 0) / ln(2::double precision)
        AS entropy
FROM loracomp.jobs_on(routing_by_day_on.day) AS j
INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
CROSS JOIN LATERAL unnest(p.tasks, p.probabilities) WITH ORDINALITY AS x (task, probability, ordinal)
WHERE p.policy_settings ->> 'router' = 'retrieval' AND x.task IS NOT NULL AND j.expected IS NULL
GROUP BY j.policy, j.base_model, x.task;
END;
COMMENT ON FUNCTION loracomp.routing_by_day_on IS 'Rows of loracomp.routing_by_day for a day, computed from its jobs.';

-- Reads only, with its owner's rights. The Jensen-Shannon divergence between two distributions of tasks is 0 if they are equal
-- and 1 if they have no task in common. Each row is counted for its own day and for the seven days after it. A join on ranges of days would
-- compare every day with every other.
CREATE VIEW bi.routing_drift AS
WITH compared AS (
    SELECT
        x.day + a.days AS day,
        x.policy,
        x.base_model,
        sum(x.entropy) FILTER (WHERE a.days = 0) AS entropy,
        sum(x.jobs_first) FILTER (WHERE a.days = 0) AS jobs,
        sum(x.jobs_first) FILTER (WHERE a.days > 0) AS jobs_before,
        sum(x.mass) FILTER (WHERE a.days = 0) / nullif(sum(sum(x.mass) FILTER (WHERE a.days = 0)) OVER w, 0) AS p,
        sum(x.mass) FILTER (WHERE a.days > 0) / nullif(sum(sum(x.mass) FILTER (WHERE a.days > 0)) OVER w, 0) AS q
    FROM loracomp.routing_by_day AS x
    CROSS JOIN generate_series(0, 7) AS a (days)
    GROUP BY x.day + a.days, x.policy, x.base_model, x.task
    WINDOW w AS (PARTITION BY x.day + a.days, x.policy, x.base_model)
)

SELECT
    c.day,
    c.policy,
    c.base_model,
    sum(c.jobs)::bigint AS jobs,
    sum(c.entropy) / sum(c.jobs) AS entropy_bits,
    sum(-c.p * ln(nullif(c.p, 0))) / ln(2::double precision) AS mix_entropy_bits,
    coalesce(sum(c.jobs_before), 0)::bigint AS week_before_jobs,
    CASE WHEN sum(c.jobs_before) > 0 THEN greatest(0, sum(
        coalesce(c.p * ln(2 * nullif(c.p, 0) / (c.p + coalesce(c.q, 0))), 0)
        + coalesce(c.q * ln(2 * nullif(c.q, 0) / (coalesce(c.p, 0) + c.q)), 0)
    ) / (2 * ln(2::double precision))) END AS drift,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r) AS as_of
FROM compared AS c
GROUP BY c.day, c.policy, c.base_model
HAVING sum(c.jobs) > 0;
COMMENT ON VIEW bi.routing_drift IS
'How certain routing was on each day, and how much the jobs'' tasks differ from the tasks of the week before. Leaves out jobs whose '
'right answer was known. Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.routing_drift.jobs IS 'Number of answers that were routed by retrieval.';
COMMENT ON COLUMN bi.routing_drift.entropy_bits IS
'Mean entropy of a job''s task probabilities, in bits: 0 if one task is certain, 1 if two tasks are equally probable.';
COMMENT ON COLUMN bi.routing_drift.mix_entropy_bits IS
'Entropy of the day''s mean task probabilities, in bits. It is higher if the jobs were about more different tasks.';
COMMENT ON COLUMN bi.routing_drift.week_before_jobs IS 'Number of answers that were routed by retrieval in the seven days before this row''s day.';
COMMENT ON COLUMN bi.routing_drift.drift IS
'Jensen-Shannon divergence between the tasks of this day and of the seven days before it: 0 if they are equal, 1 if they have no task in '
'common, null if there were no jobs in the seven days. With few jobs it is above 0 by chance.';
SELECT loracomp.copy_comments('bi.routing_drift', 'loracomp.routing_by_day', 'bi.accuracy_by_day');

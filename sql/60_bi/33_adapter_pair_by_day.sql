-- How often two adapters were used in the same answer, by day.
--   bi.adapter_pair_by_day
--     loracomp.adapter_pair_by_day   the stored numbers, a table
--   adapter_pair_by_day_on      computes a day of it

-- Reads only.
CREATE FUNCTION loracomp.adapter_pair_by_day_on(day date) RETURNS SETOF loracomp.adapter_pair_by_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    adapter_pair_by_day_on.day,
    j.policy,
    p.base_model,
    j.evaluation IS NOT NULL AS is_evaluation,
    a.id AS adapter_a,
    b.id AS adapter_b,
    count(*) AS jobs
FROM loracomp.jobs_on(adapter_pair_by_day_on.day) AS j
INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
CROSS JOIN LATERAL unnest(p.adapter_ids) AS a (id)
INNER JOIN LATERAL unnest(p.adapter_ids) AS b (id) ON a.id < b.id
GROUP BY j.policy, p.base_model, j.evaluation IS NOT NULL, a.id, b.id;
END;
COMMENT ON FUNCTION loracomp.adapter_pair_by_day_on IS 'Rows of loracomp.adapter_pair_by_day for a day, computed from its jobs.';

-- Reads only, with its owner's rights. Each pair appears in both orders, so that a filter on adapter_a finds all its pairs.
CREATE VIEW bi.adapter_pair_by_day AS
WITH mask AS MATERIALIZED (SELECT m.labels FROM loracomp.task_mask AS m)

SELECT
    p.day,
    p.policy,
    p.base_model,
    p.is_evaluation,
    a.adapter_id AS adapter_id_a,
    loracomp.masked_adapter(
        x.name || '@' || x.version, a.task, a.adapter_id, (SELECT m.labels FROM mask AS m)
    ) AS adapter_a,
    b.adapter_id AS adapter_id_b,
    loracomp.masked_adapter(
        y.name || '@' || y.version, b.task, b.adapter_id, (SELECT m.labels FROM mask AS m)
    ) AS adapter_b,
    p.jobs,
    a.jobs AS jobs_a,
    b.jobs AS jobs_b,
    c.composed,
    p.jobs::double precision / a.jobs AS share_of_a,
    p.jobs * c.composed::double precision / (a.jobs * b.jobs) AS lift,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'adapter_pair_by_day') AS as_of
FROM (
    SELECT o.day, o.policy, o.base_model, o.is_evaluation, o.adapter_a AS a, o.adapter_b AS b, o.jobs
    FROM loracomp.adapter_pair_by_day AS o
    UNION ALL
    SELECT o.day, o.policy, o.base_model, o.is_evaluation, o.adapter_b, o.adapter_a, o.jobs
    FROM loracomp.adapter_pair_by_day AS o
) AS p
INNER JOIN loracomp.adapter_usage_by_day AS a
    ON p.a = a.adapter_id AND p.day = a.day AND p.policy = a.policy AND p.base_model = a.base_model
    AND p.is_evaluation = a.is_evaluation
INNER JOIN loracomp.adapter_usage_by_day AS b
    ON p.b = b.adapter_id AND p.day = b.day AND p.policy = b.policy AND p.base_model = b.base_model
    AND p.is_evaluation = b.is_evaluation
INNER JOIN (
    SELECT u.day, u.policy, u.base_model, u.is_evaluation, sum(u.jobs_first)::bigint AS composed
    FROM loracomp.adapter_usage_by_day AS u
    GROUP BY u.day, u.policy, u.base_model, u.is_evaluation
) AS c
    ON p.day = c.day AND p.policy = c.policy AND p.base_model = c.base_model AND p.is_evaluation = c.is_evaluation
LEFT JOIN loracomp.adapter AS x ON p.a = x.id
LEFT JOIN loracomp.adapter AS y ON p.b = y.id;
COMMENT ON VIEW bi.adapter_pair_by_day IS
'How often two adapters were used in the same answer, by day; each pair in both orders. Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.adapter_pair_by_day.day IS 'Day in UTC on which the jobs were answered.';
COMMENT ON COLUMN bi.adapter_pair_by_day.policy IS 'Name of the policy: the settings of routing and merging.';
COMMENT ON COLUMN bi.adapter_pair_by_day.base_model IS 'Base model that answered.';
COMMENT ON COLUMN bi.adapter_pair_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN bi.adapter_pair_by_day.adapter_id_a IS 'Id of adapter a.';
COMMENT ON COLUMN bi.adapter_pair_by_day.adapter_a IS 'Name and version of this adapter; null if it was deleted.';
COMMENT ON COLUMN bi.adapter_pair_by_day.adapter_id_b IS 'Id of adapter b.';
COMMENT ON COLUMN bi.adapter_pair_by_day.adapter_b IS 'Name and version of this adapter; null if it was deleted.';
COMMENT ON COLUMN bi.adapter_pair_by_day.jobs IS 'Number of answers in which both adapters were used.';
COMMENT ON COLUMN bi.adapter_pair_by_day.jobs_a IS 'Number of answers in which adapter a was used.';
COMMENT ON COLUMN bi.adapter_pair_by_day.jobs_b IS 'Number of answers in which adapter b was used.';
COMMENT ON COLUMN bi.adapter_pair_by_day.composed IS 'Number of the day''s answers with adapters.';
COMMENT ON COLUMN bi.adapter_pair_by_day.share_of_a IS
'jobs / jobs_a: share of adapter a''s answers in which adapter b was used too, 0 to 1.';
COMMENT ON COLUMN bi.adapter_pair_by_day.lift IS
'How many times more often both were used together than expected by chance; 1 means chance.';
COMMENT ON COLUMN bi.adapter_pair_by_day.as_of IS 'When these numbers were computed last; later answers are not counted yet.';

-- How often two adapters answered together, by day.
--   bi.adapter_pair_by_day
--     loracomp.adapter_pair_by_day   what it rests on; refresh_reports() works it out

-- Refreshed by refresh_reports().
CREATE MATERIALIZED VIEW loracomp.adapter_pair_by_day AS
SELECT
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    j.policy,
    p.base_model,
    j.evaluation IS NOT NULL AS is_evaluation,
    a.id AS adapter_a,
    b.id AS adapter_b,
    count(*) AS jobs
FROM loracomp.prediction AS p
INNER JOIN loracomp.job AS j ON p.job_id = j.id
CROSS JOIN LATERAL unnest(p.adapter_ids) AS a (id)
INNER JOIN LATERAL unnest(p.adapter_ids) AS b (id) ON a.id < b.id
GROUP BY (p.created_at AT TIME ZONE 'UTC')::date, j.policy, p.base_model, j.evaluation IS NOT NULL, a.id, b.id;
COMMENT ON MATERIALIZED VIEW loracomp.adapter_pair_by_day IS
'How often two adapters were composed into one answer, by day.';
COMMENT ON COLUMN loracomp.adapter_pair_by_day.day IS 'Day of the answers, in UTC.';
COMMENT ON COLUMN loracomp.adapter_pair_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN loracomp.adapter_pair_by_day.adapter_a IS 'The one adapter; its number is the smaller.';
COMMENT ON COLUMN loracomp.adapter_pair_by_day.adapter_b IS 'The other.';
COMMENT ON COLUMN loracomp.adapter_pair_by_day.jobs IS 'Answers that both took part in.';
CREATE UNIQUE INDEX adapter_pair_by_day_key ON loracomp.adapter_pair_by_day (
    day, policy, base_model, is_evaluation, adapter_a, adapter_b
);

-- Reads only, with its owner's rights. Each pair stands in both orders, so that one column can be filtered.
CREATE VIEW bi.adapter_pair_by_day AS
SELECT
    p.day,
    p.policy,
    p.base_model,
    p.is_evaluation,
    a.adapter_id AS adapter_id_a,
    CASE WHEN m.labels ? a.task THEN 'hidden adapter ' || a.adapter_id ELSE x.name || '@' || x.version END AS adapter_a,
    b.adapter_id AS adapter_id_b,
    CASE WHEN m.labels ? b.task THEN 'hidden adapter ' || b.adapter_id ELSE y.name || '@' || y.version END AS adapter_b,
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
CROSS JOIN loracomp.task_mask AS m
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
'How often two adapters answered together, by day; each pair in both orders. Refreshed, not live.';
COMMENT ON COLUMN bi.adapter_pair_by_day.day IS 'Day of the answers, in UTC.';
COMMENT ON COLUMN bi.adapter_pair_by_day.policy IS 'Name of the settings of routing and merging.';
COMMENT ON COLUMN bi.adapter_pair_by_day.base_model IS 'Frozen language model.';
COMMENT ON COLUMN bi.adapter_pair_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN bi.adapter_pair_by_day.adapter_id_a IS 'Number of the one adapter.';
COMMENT ON COLUMN bi.adapter_pair_by_day.adapter_a IS 'Its name and version; null where it was removed since.';
COMMENT ON COLUMN bi.adapter_pair_by_day.adapter_id_b IS 'Number of the other adapter.';
COMMENT ON COLUMN bi.adapter_pair_by_day.adapter_b IS 'Its name and version; null where it was removed since.';
COMMENT ON COLUMN bi.adapter_pair_by_day.jobs IS 'Answers that both took part in.';
COMMENT ON COLUMN bi.adapter_pair_by_day.jobs_a IS 'Answers that the one took part in.';
COMMENT ON COLUMN bi.adapter_pair_by_day.jobs_b IS 'Answers that the other took part in.';
COMMENT ON COLUMN bi.adapter_pair_by_day.composed IS 'The day''s composed answers.';
COMMENT ON COLUMN bi.adapter_pair_by_day.share_of_a IS
'Share of the one''s answers that the other took part in too, 0 to 1.';
COMMENT ON COLUMN bi.adapter_pair_by_day.lift IS
'How many times as often they met as they would by chance: 1 is chance.';
COMMENT ON COLUMN bi.adapter_pair_by_day.as_of IS 'When these numbers were computed last; later answers are not counted yet.';

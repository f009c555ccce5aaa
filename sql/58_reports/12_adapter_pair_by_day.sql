-- drop: DROP MATERIALIZED VIEW IF EXISTS loracomp.adapter_pair_by_day
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
COMMENT ON COLUMN loracomp.adapter_pair_by_day.is_evaluation IS 'Whether evaluations asked, and not people.';
COMMENT ON COLUMN loracomp.adapter_pair_by_day.adapter_a IS 'The one adapter; its number is the smaller.';
COMMENT ON COLUMN loracomp.adapter_pair_by_day.adapter_b IS 'The other.';
COMMENT ON COLUMN loracomp.adapter_pair_by_day.jobs IS 'Answers that both took part in.';
CREATE UNIQUE INDEX adapter_pair_by_day_key ON loracomp.adapter_pair_by_day (
    day, policy, base_model, is_evaluation, adapter_a, adapter_b
);

-- Compares two adapters, or an adapter with the base model, by their measured gains.
--   compare_adapters
--     sign_test_p

-- Reads no table. The test is exact for any number of rows; its time grows with the smaller of the two counts. It sums binomial
-- probabilities computed from their logarithms, which are clamped because exp raises an underflow error below -745.
CREATE FUNCTION loracomp.sign_test_p(better bigint, worse bigint) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT least(1, 2 * sum(exp(greatest(t.log_p, -700))))
FROM (
    SELECT
        sum(CASE WHEN i.i > 0 THEN ln((better + worse - i.i + 1)::double precision / i.i) ELSE 0 END)
        OVER (ORDER BY i.i)
        - (better + worse) * ln(2::double precision) AS log_p
    FROM generate_series(0, least(better, worse)) AS i (i)
) AS t
WHERE loracomp.check_range('better', better, 0, 1e6) AND loracomp.check_range('worse', worse, 0, 1e6);
END;
COMMENT ON FUNCTION loracomp.sign_test_p IS
'P value of the exact two-sided sign test: the probability that two equally good adapters differ at least as much as these counts. 1 if '
'both counts are 0.';

-- Reads only. The exact sign test makes no assumption about the distribution of gains.
CREATE FUNCTION loracomp.compare_adapters(adapter_id integer, other_id integer DEFAULT NULL, task text DEFAULT NULL)
RETURNS TABLE (
    examples bigint,
    mean_difference double precision,
    standard_error double precision,
    better bigint,
    worse bigint,
    p double precision,
    accuracy double precision,
    other_accuracy double precision
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
    SELECT
        count(*),
        avg(d.difference),
        stddev_samp(d.difference) / sqrt(count(*)),
        count(*) FILTER (WHERE d.difference > 0),
        count(*) FILTER (WHERE d.difference < 0),
        loracomp.sign_test_p(count(*) FILTER (WHERE d.difference > 0), count(*) FILTER (WHERE d.difference < 0)),
        avg(d.is_right::integer)::double precision,
        avg(d.other_is_right::integer)::double precision
    FROM (
        SELECT
            m.gains[x.own]::double precision - CASE WHEN o.is_base THEN 0 ELSE m.gains[x.other] END AS difference,
            m.are_right[x.own] AS is_right,
            CASE WHEN o.is_base THEN m.base_is_right ELSE m.are_right[x.other] END AS other_is_right
        FROM loracomp.adapter AS a
        CROSS JOIN (SELECT compare_adapters.other_id IS NULL AS is_base) AS o
        JOIN loracomp.measurement AS m ON m.base_model_id = a.base_model_id AND m.task_id = CASE
            WHEN compare_adapters.task IS NULL THEN a.task_id
            ELSE (SELECT t.id FROM loracomp.task AS t WHERE t.name = compare_adapters.task)
        END
        CROSS JOIN LATERAL (
            SELECT array_position(m.adapter_ids, a.id) AS own, array_position(m.adapter_ids, compare_adapters.other_id) AS other
        ) AS x
        WHERE a.id = compare_adapters.adapter_id AND x.own IS NOT NULL AND (o.is_base OR x.other IS NOT NULL)
    ) AS d;
$$;
COMMENT ON FUNCTION loracomp.compare_adapters IS
'Compares two adapters, or an adapter with the base model (other_id null), on a task (null: the first one''s), over the examples on '
'which both are measured: mean difference of their gains in nats, on how many examples the first is better and worse, the p value '
'of the exact two-sided sign test, and the share that each answers correctly (null without choices).';

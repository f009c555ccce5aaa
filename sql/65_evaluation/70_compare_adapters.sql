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
        bi.mcnemar_p(count(*) FILTER (WHERE d.difference > 0), count(*) FILTER (WHERE d.difference < 0)),
        avg(d.is_right::integer)::double precision,
        avg(d.other_is_right::integer)::double precision
    FROM (
        SELECT
            g.gain - o.gain AS difference,
            g.is_right,
            o.is_right AS other_is_right
        FROM loracomp.adapter AS a
        JOIN loracomp.task AS own ON own.id = a.task_id
        JOIN loracomp.task AS t ON t.name = coalesce(compare_adapters.task, own.name)
        JOIN loracomp.measurement AS m ON m.task_id = t.id AND m.base_model_id = a.base_model_id
        CROSS JOIN LATERAL (
            SELECT u.gain::double precision, u.is_right
            FROM unnest(m.adapter_ids, m.gains, m.are_right) AS u (id, gain, is_right) WHERE u.id = a.id
        ) AS g
        CROSS JOIN LATERAL (
            SELECT u.gain::double precision, u.is_right
            FROM unnest(m.adapter_ids, m.gains, m.are_right) AS u (id, gain, is_right)
            WHERE u.id = compare_adapters.other_id
            UNION ALL
            SELECT 0, m.base_is_right WHERE compare_adapters.other_id IS NULL
        ) AS o
        WHERE a.id = compare_adapters.adapter_id
    ) AS d;
$$;
COMMENT ON FUNCTION loracomp.compare_adapters IS
'Compares two adapters, or an adapter with the base model (other_id null), on a task (null: the first one''s), over the examples on '
'which both are measured: mean difference of their gains in nats, on how many examples the first is better and worse, the p value '
'of the exact two-sided sign test, and the share that each answers right (null without choices).';

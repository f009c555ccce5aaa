-- Reads only. The exact sign test makes no assumption about the distribution of gains.
CREATE FUNCTION loracomp.compare_adapters(adapter_id integer, other_id integer)
RETURNS TABLE (
    examples bigint,
    mean_difference double precision,
    standard_error double precision,
    better bigint,
    worse bigint,
    p double precision
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
    SELECT
        count(*),
        avg(d.difference),
        stddev_samp(d.difference) / sqrt(count(*)),
        count(*) FILTER (WHERE d.difference > 0),
        count(*) FILTER (WHERE d.difference < 0),
        bi.mcnemar_p(count(*) FILTER (WHERE d.difference > 0), count(*) FILTER (WHERE d.difference < 0))
    FROM (
        SELECT
            m.gains[array_position(m.adapter_ids, a.id)]::double precision
            - m.gains[array_position(m.adapter_ids, compare_adapters.other_id)] AS difference
        FROM loracomp.adapter AS a
        JOIN loracomp.measurement AS m ON m.task_id = a.task_id AND m.base_model_id = a.base_model_id
        WHERE a.id = compare_adapters.adapter_id AND m.adapter_ids @> ARRAY[a.id, compare_adapters.other_id]
    ) AS d;
$$;
COMMENT ON FUNCTION loracomp.compare_adapters IS
'Compares two adapters on the first one''s task, over the examples on which both are measured: mean difference of their gains '
'in nats, on how many examples the first is better and worse, and the p value of the exact two-sided sign test.';

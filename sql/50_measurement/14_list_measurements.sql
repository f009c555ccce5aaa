-- Counts measured examples, and jobs of kind measure.

-- Reads only.
CREATE FUNCTION loracomp.list_measurements(task text DEFAULT NULL)
RETURNS TABLE (
    task text,
    base_model text,
    examples bigint,
    adapters bigint,
    queued bigint,
    running bigint,
    failed bigint,
    last_error text
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT loracomp.check_task_exists(list_measurements.task);
    WITH measured AS (
        SELECT m.task_id, m.base_model_id, count(*) AS examples, (
            SELECT count(DISTINCT u.id) FROM loracomp.measurement AS o CROSS JOIN LATERAL unnest(o.adapter_ids) AS u (id)
            WHERE o.task_id = m.task_id AND o.base_model_id = m.base_model_id
        ) AS adapters
        FROM loracomp.measurement AS m GROUP BY m.task_id, m.base_model_id
    ), waiting AS (
        SELECT
            j.task,
            j.base_model,
            count(*) FILTER (WHERE j.status = 'queued') AS queued,
            count(*) FILTER (WHERE j.status = 'running') AS running,
            count(*) FILTER (WHERE j.status = 'failed') AS failed,
            (array_agg(j.error ORDER BY j.finished_at DESC) FILTER (WHERE j.status = 'failed'))[1] AS last_error
        FROM loracomp.job AS j
        JOIN loracomp.base_model AS b ON b.name = j.base_model
        WHERE j.kind = 'measure' AND j.status IN ('queued', 'running', 'failed') AND NOT (
            -- Don't count failed jobs whose example was measured later.
            j.status = 'failed' AND EXISTS (
                SELECT FROM loracomp.measurement AS m
                WHERE m.example_id = j.example_id AND m.base_model_id = b.id AND m.adapter_ids @> j.adapter_ids
            )
        )
        GROUP BY j.task, j.base_model
    )
    SELECT
        t.name, b.name, coalesce(m.examples, 0), coalesce(m.adapters, 0),
        coalesce(w.queued, 0), coalesce(w.running, 0), coalesce(w.failed, 0), w.last_error
    FROM loracomp.task AS t
    CROSS JOIN loracomp.base_model AS b
    LEFT JOIN measured AS m ON m.task_id = t.id AND m.base_model_id = b.id
    LEFT JOIN waiting AS w ON w.task = t.name AND w.base_model = b.name
    WHERE (m.examples > 0 OR w.task IS NOT NULL)
        AND t.name = coalesce(list_measurements.task, t.name)
    ORDER BY b.name, t.name;
$$;
COMMENT ON FUNCTION loracomp.list_measurements IS
'For each task and base model: the number of measured examples and adapters, and the number of jobs of kind measure that wait, run, or '
'have failed (without jobs whose example was measured later).';

-- Finds the jobs in which an example or an adapter was used.
--   lineage_of_example
--   lineage_of_adapter

-- Reads all predictions, unless there is a GIN index on loracomp.prediction (example_ids).
CREATE FUNCTION loracomp.lineage_of_example(example_id bigint)
RETURNS TABLE (
    job_id bigint,
    submitted_by name,
    finished_at timestamptz,
    part text,
    place integer,
    similarity double precision,
    task_weight double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT
        p.job_id, j.submitted_by, p.created_at, 'retrieved', s.place, p.similarities[s.place],
        coalesce(p.adapter_weights[array_position(p.composed_tasks, p.example_tasks[s.place])], 0)
    FROM loracomp.prediction AS p
    CROSS JOIN LATERAL array_position(p.example_ids, lineage_of_example.example_id) AS s (place)
    LEFT JOIN loracomp.job AS j ON j.id = p.job_id
    WHERE p.example_ids @> ARRAY[lineage_of_example.example_id]
    UNION ALL
    SELECT p.job_id, p.submitted_by, p.created_at, 'calibrated', NULL, NULL, NULL
    FROM loracomp.prediction AS p
    WHERE p.calibration_examples @> ARRAY[lineage_of_example.example_id]
    UNION ALL
    SELECT j.id, j.submitted_by, j.finished_at, 'asked', NULL, NULL, NULL
    FROM loracomp.job AS j
    WHERE j.example_id = lineage_of_example.example_id
    ORDER BY 1, 4;
    IF NOT found AND NOT EXISTS (SELECT FROM loracomp.example AS e WHERE e.id = lineage_of_example.example_id) THEN
        RAISE EXCEPTION 'there is no example %, and no trace names it', lineage_of_example.example_id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.retrieved_example has the ids in traces';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.lineage_of_example IS
'Jobs in which an example was used. retrieved: it was among the nearest, with this rank, and its task''s adapter got this '
'weight. calibrated: the choices'' biases were fitted on it and others. asked: the job was made from it (an evaluation, or kind measure).';

-- Reads all predictions, unless there is a GIN index on loracomp.prediction (adapter_ids).
CREATE FUNCTION loracomp.lineage_of_adapter(adapter_id integer)
RETURNS TABLE (
    job_id bigint, submitted_by name, finished_at timestamptz, weight double precision, same_file boolean
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT p.job_id, j.submitted_by, p.created_at, p.adapter_weights[s.place], p.adapter_sha256[s.place] = a.sha256
    FROM loracomp.prediction AS p
    CROSS JOIN LATERAL array_position(p.adapter_ids, lineage_of_adapter.adapter_id) AS s (place)
    LEFT JOIN loracomp.job AS j ON j.id = p.job_id
    LEFT JOIN loracomp.adapter AS a ON a.id = lineage_of_adapter.adapter_id
    WHERE p.adapter_ids @> ARRAY[lineage_of_adapter.adapter_id]
    ORDER BY p.job_id;
    IF NOT found AND NOT EXISTS (SELECT FROM loracomp.adapter AS a WHERE a.id = lineage_of_adapter.adapter_id) THEN
        RAISE EXCEPTION 'there is no adapter with id %, and no trace names it', lineage_of_adapter.adapter_id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp adapter list shows the existing ones';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.lineage_of_adapter IS
'Answers in which an adapter was used, with its weight. same_file: whether its file is still the one that was used; null if '
'the adapter was deleted.';

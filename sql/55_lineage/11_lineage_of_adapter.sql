-- drop: DROP FUNCTION IF EXISTS loracomp.lineage_of_adapter(integer)
-- Reads all predictions, unless there is a GIN index on loracomp.prediction (adapter_ids).
CREATE FUNCTION loracomp.lineage_of_adapter(adapter_id integer)
RETURNS TABLE (
    job_id bigint, submitted_by name, finished_at timestamptz, weight double precision, same_file boolean
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT p.job_id, j.submitted_by, p.created_at, p.adapter_weights[s.place], p.adapter_sha256[s.place] = a.sha256
    FROM loracomp.prediction AS p
    CROSS JOIN LATERAL array_position(p.adapter_ids, lineage_of_adapter.adapter_id) AS s (place)
    LEFT JOIN loracomp.job AS j ON j.id = p.job_id
    LEFT JOIN loracomp.adapter AS a ON a.id = lineage_of_adapter.adapter_id
    WHERE p.adapter_ids @> ARRAY[lineage_of_adapter.adapter_id]
    ORDER BY p.job_id;
$$;
COMMENT ON FUNCTION loracomp.lineage_of_adapter IS
'Answers that an adapter took part in, with its weight. same_file: its file is still the one that was used; null where it '
'is gone.';

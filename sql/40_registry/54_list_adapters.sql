-- drop: DROP FUNCTION IF EXISTS loracomp.list_adapters()
-- Reads adapters of all statuses, newest version first.
CREATE FUNCTION loracomp.list_adapters()
RETURNS TABLE (
    name text,
    version integer,
    status text,
    task text,
    base_model text,
    rank integer,
    alpha double precision,
    use_rslora boolean,
    modules integer,
    parameter_count bigint,
    byte_count bigint,
    sha256 text,
    created_by name,
    created_at timestamptz,
    activated_at timestamptz,
    retired_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT
    a.name,
    a.version,
    a.status,
    t.name,
    b.name,
    a.rank,
    a.alpha,
    a.use_rslora,
    cardinality(a.target_modules),
    a.parameter_count,
    a.byte_count,
    a.sha256,
    a.created_by,
    a.created_at,
    a.activated_at,
    a.retired_at
FROM loracomp.adapter AS a
INNER JOIN loracomp.task AS t ON a.task_id = t.id
INNER JOIN loracomp.base_model AS b ON a.base_model_id = b.id
ORDER BY b.name, a.name, a.version DESC;
END;
COMMENT ON FUNCTION loracomp.list_adapters IS 'Adapters of all statuses, by base model and name, newest version first.';

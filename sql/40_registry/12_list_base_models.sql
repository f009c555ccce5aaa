-- drop: DROP FUNCTION IF EXISTS loracomp.list_base_models()
-- Reads base models, the default first.
CREATE FUNCTION loracomp.list_base_models()
RETURNS TABLE (
    name text,
    is_default boolean,
    source text,
    revision text,
    architecture text,
    parameter_count bigint,
    context_length integer,
    active_adapters bigint,
    fingerprint text
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT
    b.name,
    b.is_default,
    b.source,
    b.revision,
    b.architecture,
    b.parameter_count,
    b.context_length,
    (SELECT count(*) FROM loracomp.adapter AS a WHERE a.base_model_id = b.id AND a.status = 'active'),
    b.fingerprint
FROM loracomp.base_model AS b
ORDER BY b.is_default DESC, b.name;
END;
COMMENT ON FUNCTION loracomp.list_base_models IS 'Base models with the number of their active adapters.';

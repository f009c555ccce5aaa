-- drop: DROP FUNCTION IF EXISTS loracomp.check_registry()
-- Reads only: whether models, encoder, adapters and examples are there and whole.
CREATE FUNCTION loracomp.check_registry()
RETURNS TABLE ("check" text, status text, detail text)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT 'base model', CASE WHEN count(*) FILTER (WHERE is_default) = 1 THEN 'ok' ELSE 'fail' END,
        CASE WHEN count(*) FILTER (WHERE is_default) = 1
            THEN format('%s of %s is the default', max(name) FILTER (WHERE is_default), count(*))
            ELSE 'none is the default: loracomp model add SOURCE --default' END
    FROM base_model
    UNION ALL
    SELECT 'encoder', CASE WHEN count(*) = 1 THEN 'ok' ELSE 'fail' END,
        coalesce(max(format('%s, %s dimensions', name, dimensions)), 'none is set: loracomp encoder set SOURCE')
    FROM encoder
    UNION ALL
    SELECT 'adapters', CASE WHEN count(*) > 0 THEN 'ok' ELSE 'warn' END,
        CASE WHEN count(*) > 0 THEN format('%s active, for %s tasks', count(*), count(DISTINCT task_id))
            ELSE 'none is active: loracomp library load' END
    FROM adapter WHERE status = 'active'
    UNION ALL
    SELECT 'adapter hashes', CASE WHEN count(*) FILTER (WHERE NOT whole) = 0 THEN 'ok' ELSE 'fail' END,
        CASE WHEN count(*) FILTER (WHERE NOT whole) = 0 THEN format('%s files are as they were registered', count(*))
            ELSE 'changed in the database: ' || string_agg(format('%s version %s', name, version), ', ')
                FILTER (WHERE NOT whole) || '; stage them again' END
    FROM (
        SELECT a.name, a.version,
            a.sha256 IS NOT DISTINCT FROM encode(sha256(string_agg(w.bytes, '' ORDER BY w.part)), 'hex') AS whole
        FROM adapter AS a LEFT JOIN adapter_weights AS w ON w.adapter_id = a.id
        WHERE a.status <> 'retired' GROUP BY a.id
    ) AS files
    UNION ALL
    SELECT 'examples', CASE WHEN count(*) > 0 THEN 'ok' ELSE 'warn' END,
        format('%s embedded, for %s tasks', count(*), count(DISTINCT task_id))
    FROM example_embedding
    UNION ALL
    SELECT 'active adapters without examples', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        coalesce(string_agg(t.name, ', ' ORDER BY t.name) || ': never retrieved', 'none')
    FROM task AS t
    WHERE EXISTS (SELECT FROM adapter AS a WHERE a.task_id = t.id AND a.status = 'active')
        AND NOT EXISTS (SELECT FROM example_embedding AS e WHERE e.task_id = t.id)
$$;
COMMENT ON FUNCTION loracomp.check_registry IS
'Whether models, encoder, adapters and examples are there and whole; the hash of every adapter is computed.';

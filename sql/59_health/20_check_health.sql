-- drop: DROP FUNCTION IF EXISTS loracomp.check_health()
-- Reads only: what an administrator should know before trusting this database; `loracomp doctor` prints it.
CREATE FUNCTION loracomp.check_health()
RETURNS TABLE ("check" text, status text, detail text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT 'server', CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'ok' ELSE 'warn' END,
        format('PostgreSQL %s; 16 or newer is tested', current_setting('server_version'))
    UNION ALL
    -- CVE-2026-3172 is fixed in 0.8.2, a fault of HNSW vacuum in 0.8.3.
    SELECT 'pgvector',
        CASE WHEN string_to_array(extversion, '.')::int[] >= ARRAY[0, 8, 3] THEN 'ok' ELSE 'warn' END,
        format('pgvector %s', extversion)
            || CASE WHEN string_to_array(extversion, '.')::int[] < ARRAY[0, 8, 3]
                THEN ' has known faults: upgrade to 0.8.3 or newer' ELSE '' END
    FROM pg_extension WHERE extname = 'vector'
    UNION ALL
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
    UNION ALL
    SELECT 'leases', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        format('%s ran out and wait for a worker to take them back', count(*))
    FROM job WHERE job.status = 'running' AND lease_expires_at < now() - interval '1 minute'
    UNION ALL
    SELECT 'queue', CASE WHEN coalesce(max(now() - greatest(run_at, created_at)), '0') < interval '10 minutes' THEN 'ok' ELSE 'warn' END,
        format('%s due, the oldest for %s s; is a worker running?', count(*),
            coalesce(round(extract(epoch FROM max(now() - greatest(run_at, created_at)))), 0))
    FROM job WHERE job.status = 'queued' AND run_at <= now()
    UNION ALL
    SELECT 'roles', CASE WHEN count(*) = 4 THEN 'ok' ELSE 'fail' END, format('%s of 4 loracomp roles exist', count(*))
    FROM pg_roles
    WHERE rolname IN ('loracomp_submitter', 'loracomp_worker', 'loracomp_analyst', 'loracomp_admin')
$$;
COMMENT ON FUNCTION loracomp.check_health IS
'What an administrator should know: each check with ok, warn or fail, and what to do.';

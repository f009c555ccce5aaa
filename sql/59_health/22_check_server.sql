-- drop: DROP FUNCTION IF EXISTS loracomp.check_server()
-- Reads only: pgvector's version, settings that lose what was accepted, and what keeps tables from being cleaned up.
CREATE FUNCTION loracomp.check_server()
RETURNS TABLE ("check" text, status text, detail text)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    -- CVE-2026-3172 is fixed in 0.8.2, a fault of HNSW vacuum in 0.8.3.
    SELECT 'pgvector',
        CASE WHEN string_to_array(e.extversion, '.')::int[] >= ARRAY[0, 8, 3] THEN 'ok' ELSE 'warn' END,
        format('pgvector %s', e.extversion)
            || CASE WHEN string_to_array(e.extversion, '.')::int[] < ARRAY[0, 8, 3]
                THEN ' has known faults: upgrade to 0.8.3 or newer' ELSE '' END
    FROM pg_extension AS e WHERE e.extname = 'vector'
    UNION ALL
    SELECT 'durability', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'fail' END,
        coalesce(string_agg(s.name || ' is off', ', ' ORDER BY s.name)
            || ': when the server or its machine dies, accepted jobs may be lost; turn it on', 'what is committed stays')
    FROM pg_settings AS s WHERE s.name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND s.setting = 'off'
    UNION ALL
    SELECT 'oldest snapshot',
        CASE WHEN bool_or(o.seconds > 300 OR o.transactions > 1000000) THEN 'warn' ELSE 'ok' END,
        coalesce(
            string_agg(
                format('%s keeps dead rows (%s)', o.holder,
                    coalesce(format('%s s', round(o.seconds)), format('%s transactions', o.transactions))), '; '
                ORDER BY o.kind
            ) FILTER (WHERE o.seconds > 300 OR o.transactions > 1000000)
            || ': claims walk through them; end it, and set idle_in_transaction_session_timeout and statement_timeout',
            'none is older than 5 minutes'
        )
    FROM loracomp.oldest_snapshots() AS o
    UNION ALL
    SELECT 'sight of other sessions', CASE WHEN m.may THEN 'ok' ELSE 'warn' END,
        CASE WHEN m.may THEN 'old snapshots of all are seen'
            ELSE format('old snapshots of others are not seen: GRANT pg_read_all_stats TO %I', current_user) END
    FROM (SELECT pg_has_role(current_user, 'pg_read_all_stats', 'usage') AS may) AS m
    UNION ALL
    SELECT 'bloat', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        coalesce(
            string_agg(format('%s has %s dead rows beside %s', t.relname, t.n_dead_tup, t.n_live_tup), '; '
                ORDER BY t.relname)
            || ': see to the oldest snapshot, then VACUUM', 'no table has more dead rows than it should'
        )
    FROM pg_stat_user_tables AS t
    WHERE t.schemaname = 'loracomp' AND t.n_dead_tup > 20000 AND t.n_dead_tup > 0.2 * t.n_live_tup
    UNION ALL
    SELECT 'autovacuum', CASE WHEN count(*) = 0 AND current_setting('autovacuum')::boolean THEN 'ok' ELSE 'warn' END,
        CASE WHEN NOT current_setting('autovacuum')::boolean THEN 'autovacuum is off: turn it on'
            ELSE coalesce('off for ' || string_agg(c.relname, ', ') || ': ALTER TABLE ... RESET (autovacuum_enabled)', 'on')
        END
    FROM pg_class AS c
    WHERE c.relnamespace = 'loracomp'::regnamespace AND c.reloptions && '{autovacuum_enabled=false,autovacuum_enabled=off}'
$$;
COMMENT ON FUNCTION loracomp.check_server IS
'Whether the server is fit: pgvector, durability, snapshots that keep dead rows, bloat, autovacuum.';

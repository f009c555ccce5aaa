-- drop: DROP FUNCTION IF EXISTS loracomp.oldest_snapshots()
-- Reads only: who keeps dead rows from being cleaned up, the oldest of each kind. Sessions of other roles are shown to
-- members of pg_read_all_stats alone, which the schema's owner should be.
CREATE FUNCTION loracomp.oldest_snapshots()
RETURNS TABLE (kind text, seconds double precision, transactions bigint, holder text)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    (
        SELECT 'session', loracomp.seconds_between(a.xact_start, clock_timestamp()),
            greatest(age(a.backend_xid), age(a.backend_xmin))::bigint,
            format('process %s of %s (%s), %s', a.pid, a.usename, coalesce(nullif(a.application_name, ''), '?'), a.state)
        FROM pg_stat_activity AS a
        WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
            AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL)
        ORDER BY a.xact_start LIMIT 1
    )
    UNION ALL
    (
        SELECT 'prepared_transaction', loracomp.seconds_between(p.prepared, clock_timestamp()),
            age(p.transaction)::bigint, format('transaction %L of %s', p.gid, p.owner)
        FROM pg_prepared_xacts AS p WHERE p.database = current_database()
        ORDER BY p.prepared LIMIT 1
    )
    UNION ALL
    (
        SELECT 'replication', NULL, r.transactions, r.holder
        FROM (
            SELECT greatest(age(s.xmin), age(s.catalog_xmin))::bigint, format('replication slot %s', s.slot_name)
            FROM pg_replication_slots AS s WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL
            UNION ALL
            SELECT age(a.backend_xmin)::bigint, format('standby %s', a.application_name)
            FROM pg_stat_replication AS a WHERE a.backend_xmin IS NOT NULL
        ) AS r (transactions, holder)
        ORDER BY r.transactions DESC LIMIT 1
    )
$$;
COMMENT ON FUNCTION loracomp.oldest_snapshots IS
'Who keeps dead rows from being cleaned up: the oldest session, prepared transaction and replication.';

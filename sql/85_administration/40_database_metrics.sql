-- Metrics of the database, which each worker shows in its /metrics.
--   database_metrics
--     worker_status
--     oldest_snapshots          what keeps vacuum from removing dead tuples

-- Reads only. The schema's owner should be a member of pg_read_all_stats, because otherwise it does not see sessions of other roles.
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
'What keeps vacuum from removing dead tuples: the oldest session, prepared transaction and replication slot or standby.';

-- Reads only. It counts the whole queue, so it should not be called more often than every few seconds.
CREATE FUNCTION loracomp.database_metrics() RETURNS TABLE (metric text, labels jsonb, value double precision)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    WITH waiting AS MATERIALIZED (
        SELECT j.base_model, j.priority, j.background, j.run_at <= now() AS is_due,
            count(*) AS jobs, coalesce(max(loracomp.seconds_between(greatest(j.run_at, j.created_at), now())), 0) AS oldest_s
        -- Name both cases of `scheduled`, so that each can use its own partial index.
        FROM loracomp.job AS j WHERE j.status = 'queued' AND (j.scheduled OR NOT j.scheduled)
        GROUP BY j.base_model, j.priority, j.background, j.run_at <= now()
    ),
    -- If the queue is empty, the metrics are 0, not missing.
    queue AS (
        SELECT w.* FROM waiting AS w
        UNION ALL
        SELECT b.name, 0, FALSE, d.is_due, 0, 0
        FROM loracomp.base_model AS b CROSS JOIN (VALUES (TRUE), (FALSE)) AS d (is_due)
        WHERE NOT EXISTS (
            SELECT FROM waiting AS w
            WHERE w.base_model = b.name AND w.priority = 0 AND NOT w.background AND w.is_due = d.is_due
        )
    ),
    running AS (
        SELECT b.name AS base_model, count(j.id) AS jobs, count(*) FILTER (WHERE j.lease_expires_at < now()) AS expired
        FROM loracomp.base_model AS b
        LEFT JOIN loracomp.job AS j ON j.base_model = b.name AND j.status = 'running'
        GROUP BY b.name
    ),
    workers AS (
        SELECT w.base_model, CASE w.status WHEN 'gone' THEN 'gone' ELSE 'alive' END AS status
        FROM loracomp.worker_status AS w WHERE w.status <> 'stopped'
    ),
    snapshots AS (
        SELECT k.kind, coalesce(s.seconds, 0) AS seconds, coalesce(s.transactions, 0) AS transactions
        FROM (VALUES ('session'), ('prepared_transaction'), ('replication')) AS k (kind)
        LEFT JOIN loracomp.oldest_snapshots() AS s USING (kind)
    ),
    -- Rows of partitions count for the partitioned table.
    tables AS (
        SELECT c.relname, sum(t.n_dead_tup) AS n_dead_tup, sum(t.n_live_tup) AS n_live_tup
        FROM pg_stat_user_tables AS t
        JOIN pg_class AS c ON c.oid = coalesce(pg_partition_root(t.relid), t.relid)
        WHERE c.relnamespace = 'loracomp'::regnamespace
            AND c.relname IN ('job', 'prediction', 'audit_event', 'worker')
        GROUP BY c.relname
    )
    SELECT 'loracomp_queue_jobs', jsonb_build_object('base_model', q.base_model, 'priority', q.priority::text,
        'background', q.background::text, 'state', CASE WHEN q.is_due THEN 'due' ELSE 'scheduled' END), q.jobs
    FROM queue AS q
    UNION ALL
    SELECT 'loracomp_queue_oldest_due_seconds', jsonb_build_object('base_model', q.base_model,
        'priority', q.priority::text, 'background', q.background::text), q.oldest_s
    FROM queue AS q WHERE q.is_due
    UNION ALL
    SELECT 'loracomp_running_jobs', jsonb_build_object('base_model', r.base_model), r.jobs FROM running AS r
    UNION ALL
    SELECT 'loracomp_expired_leases', jsonb_build_object('base_model', r.base_model), r.expired FROM running AS r
    UNION ALL
    SELECT 'loracomp_workers', jsonb_build_object('base_model', b.name, 'status', s.status), count(w.status)
    FROM loracomp.base_model AS b
    CROSS JOIN (VALUES ('alive'), ('gone')) AS s (status)
    LEFT JOIN workers AS w ON w.base_model = b.name AND w.status = s.status
    GROUP BY b.name, s.status
    UNION ALL
    SELECT 'loracomp_rows_waiting', jsonb_build_object('base_model', b.name), loracomp.count_rows_waiting()
    FROM loracomp.base_model AS b WHERE b.is_default
    UNION ALL
    SELECT 'loracomp_declarations_in_trouble', '{}', count(*) FROM loracomp.declaration AS a
    WHERE NOT a.paused AND a.trouble IS NOT NULL OR a.id = ANY ((SELECT loracomp.lost_promises())::integer[])
    UNION ALL
    SELECT 'loracomp_jobs_rescued', '{}', last_value FROM loracomp.rescued_jobs
    UNION ALL
    SELECT 'loracomp_inserts_refused', '{}', last_value FROM loracomp.refused_inserts
    UNION ALL
    SELECT 'loracomp_oldest_snapshot_seconds', jsonb_build_object('kind', s.kind), s.seconds
    FROM snapshots AS s WHERE s.kind <> 'replication'
    UNION ALL
    SELECT 'loracomp_oldest_snapshot_transactions', jsonb_build_object('kind', s.kind), s.transactions
    FROM snapshots AS s
    UNION ALL
    SELECT 'loracomp_table_dead_rows', jsonb_build_object('table', t.relname), t.n_dead_tup FROM tables AS t
    UNION ALL
    SELECT 'loracomp_table_live_rows', jsonb_build_object('table', t.relname), t.n_live_tup FROM tables AS t
    UNION ALL
    SELECT 'loracomp_report_age_seconds', '{}', loracomp.seconds_between(r.refreshed_at, now())
    FROM loracomp.report_refresh AS r
$$;
COMMENT ON FUNCTION loracomp.database_metrics IS
'Metrics of the database for workers'' /metrics: queue, leases, workers, snapshots and tables, with Prometheus names.';

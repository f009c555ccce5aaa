-- The checks that `loracomp doctor` makes in the database.
--   check_health
--     check_objects             all functions and views exist
--     check_server              its release and settings
--       oldest_snapshots
--     check_roles               logins have the limits of limit_analyst, and no more rights than they should
--     check_registry            models, adapters and embeddings fit together
--     check_queue               jobs move

-- Reads only: what an administrator should know; `loracomp doctor` prints it.
CREATE FUNCTION loracomp.check_health()
RETURNS TABLE (check_name text, status text, detail text)
-- VOLATILE, so that what an installer did while we waited for it is seen.
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    -- Lock first: the next statement looks up all functions before it calls one. If it had to wait for an installer then, the
    -- installer would have replaced the functions ("cache lookup failed"). With the lock, installers wait for us.
    LOCK TABLE loracomp.job IN ACCESS SHARE MODE;
    RETURN QUERY
    SELECT * FROM loracomp.check_objects()
    UNION ALL
    SELECT * FROM loracomp.check_server()
    UNION ALL
    SELECT * FROM loracomp.check_roles()
    UNION ALL
    SELECT * FROM loracomp.check_registry()
    UNION ALL
    SELECT * FROM loracomp.check_queue();
END
$$;
COMMENT ON FUNCTION loracomp.check_health IS
'Checks of the database for administrators: each with ok, warn or fail, and what to do.';

-- Reads only: whether all objects that sql/ created still exist.
CREATE FUNCTION loracomp.check_objects()
RETURNS TABLE (check_name text, status text, detail text)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT 'functions and views', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'fail' END,
        coalesce('missing: ' || string_agg(m.object, ', ' ORDER BY m.object) || '; run `loracomp init --again`',
            'all are there')
    FROM (
        SELECT DISTINCT substring(d.statement FROM 'EXISTS ([a-z_.]+)') AS object, d.statement ~ '^DROP FUNCTION' AS is_function
        FROM sql_object AS o CROSS JOIN LATERAL unnest(o.drops) AS d (statement)
        WHERE d.statement ~ '^DROP (FUNCTION|VIEW|MATERIALIZED VIEW) '
    ) AS m
    WHERE CASE
        WHEN m.is_function THEN NOT EXISTS (
            SELECT FROM pg_proc AS p
            WHERE p.pronamespace = to_regnamespace(split_part(m.object, '.', 1))
                AND p.proname = split_part(m.object, '.', 2)
        )
        ELSE to_regclass(m.object) IS NULL
    END
$$;
COMMENT ON FUNCTION loracomp.check_objects IS 'Whether all functions and views of this release exist.';

-- Reads only: pgvector's version, settings that could lose committed data, and what keeps vacuum from removing dead rows.
CREATE FUNCTION loracomp.check_server()
RETURNS TABLE (check_name text, status text, detail text)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    -- pgvector 0.8.2 fixes CVE-2026-3172, and 0.8.3 a bug of vacuum with HNSW indexes.
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
    -- With half of it in shared_buffers, a route takes up to 1.4 times as long.
    SELECT 'index in memory', CASE WHEN m.index_bytes <= m.buffer_bytes THEN 'ok' ELSE 'warn' END,
        format('%s for the index of examples, %s in shared_buffers', pg_size_pretty(m.index_bytes), pg_size_pretty(m.buffer_bytes))
            || CASE WHEN m.index_bytes > m.buffer_bytes THEN ': routing is slower; raise shared_buffers' ELSE '' END
            || CASE WHEN m.may_shrink THEN '; loracomp encoder index shrinks it' ELSE '' END
    FROM (
        SELECT coalesce(sum(pg_relation_size(c.oid)), 0)::bigint AS index_bytes,
            pg_size_bytes(current_setting('shared_buffers')) AS buffer_bytes,
            NOT EXISTS (SELECT FROM principal_axis) AND max(c.reltuples) >= reduced_from() AS may_shrink
        FROM pg_class AS c WHERE c.oid IN (to_regclass('example_embedding_hnsw'), to_regclass('reduced_embedding_hnsw'))
    ) AS m
    UNION ALL
    SELECT 'oldest snapshot',
        CASE WHEN bool_or(o.seconds > 300 OR o.transactions > 1000000) THEN 'warn' ELSE 'ok' END,
        coalesce(
            string_agg(
                format('%s keeps dead rows (%s)', o.holder,
                    coalesce(format('%s s', round(o.seconds)), format('%s transactions', o.transactions))), '; '
                ORDER BY o.kind
            ) FILTER (WHERE o.seconds > 300 OR o.transactions > 1000000)
            || ': dead rows stay; end it, and set idle_in_transaction_session_timeout and statement_timeout',
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
    WHERE t.schemaname IN ('loracomp', 'loracomp_parts') AND t.n_dead_tup > 20000 AND t.n_dead_tup > 0.2 * t.n_live_tup
    UNION ALL
    SELECT 'autovacuum', CASE WHEN count(*) = 0 AND current_setting('autovacuum')::boolean THEN 'ok' ELSE 'warn' END,
        CASE WHEN NOT current_setting('autovacuum')::boolean THEN 'autovacuum is off: turn it on'
            ELSE coalesce('off for ' || string_agg(c.relname, ', ') || ': ALTER TABLE ... RESET (autovacuum_enabled)', 'on')
        END
    FROM pg_class AS c
    WHERE c.relnamespace IN ('loracomp'::regnamespace, 'loracomp_parts'::regnamespace) AND c.reloptions && '{autovacuum_enabled=false,autovacuum_enabled=off}'
$$;
COMMENT ON FUNCTION loracomp.check_server IS
'Checks of the server: pgvector''s version, durability, memory for the index, old snapshots, bloat, autovacuum.';

-- Reads only: whether the four roles have exactly the right privileges, and which analysts' logins lack limits.
CREATE FUNCTION loracomp.check_roles()
RETURNS TABLE (check_name text, status text, detail text)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT 'roles', CASE WHEN count(*) = 4 THEN 'ok' ELSE 'fail' END, format('%s of 4 loracomp roles exist', count(*))
    FROM pg_roles AS r
    WHERE r.rolname IN ('loracomp_submitter', 'loracomp_worker', 'loracomp_analyst', 'loracomp_admin')
    UNION ALL
    SELECT 'powers of roles', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'fail' END,
        coalesce(string_agg(format('%s %s', p.rolname, p.power), ', ' ORDER BY p.rolname, p.power)
            || ': ALTER ROLE to take it back', 'none that they should not have')
    FROM (
        SELECT r.rolname, p.power FROM pg_roles AS r
        CROSS JOIN LATERAL (VALUES
            (r.rolsuper, 'is a superuser'), (r.rolbypassrls, 'bypasses row security'), (r.rolcanlogin, 'can log in'),
            (r.rolcreaterole, 'creates roles'), (r.rolcreatedb, 'creates databases')
        ) AS p (has, power)
        WHERE p.has
            AND r.rolname IN ('loracomp_submitter', 'loracomp_worker', 'loracomp_analyst', 'loracomp_admin')
    ) AS p
    UNION ALL
    SELECT 'grants', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'fail' END,
        coalesce(string_agg(g.what, ', ' ORDER BY g.what) || ': run `loracomp init --again`', 'as sql/ gives them')
    FROM (
        SELECT format('%s may not %s', m.role, m.verb) AS what
        FROM (VALUES
            ('loracomp_submitter', 'insert jobs', has_column_privilege(to_regrole('loracomp_submitter')::oid, 'loracomp.job', 'prompt', 'INSERT')),
            ('loracomp_worker', 'claim jobs', (
                SELECT bool_and(has_function_privilege(to_regrole('loracomp_worker')::oid, p.oid, 'EXECUTE')) FROM pg_proc AS p
                WHERE p.pronamespace = 'loracomp'::regnamespace
                    AND p.proname IN ('claim_jobs', 'renew_leases', 'record_predictions', 'fail_jobs', 'release_jobs')
            )),
            ('loracomp_analyst', 'read bi', (
                SELECT bool_and(has_table_privilege(to_regrole('loracomp_analyst')::oid, c.oid, 'SELECT')) FROM pg_class AS c
                WHERE c.relnamespace = 'bi'::regnamespace AND c.relkind = 'v'
            )),
            ('loracomp_admin', 'read jobs', has_table_privilege(to_regrole('loracomp_admin')::oid, 'loracomp.job', 'SELECT'))
        ) AS m (role, verb, may) WHERE m.may IS NOT TRUE
        UNION ALL
        SELECT format('everybody may execute %s', p.proname)
        FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
        WHERE p.pronamespace IN ('loracomp'::regnamespace, 'bi'::regnamespace) AND a.grantee = 0
        UNION ALL
        SELECT format('%s may write %s', a.grantee::regrole, c.relname)
        FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
        WHERE c.relnamespace = 'loracomp'::regnamespace AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
            AND a.grantee <> c.relowner AND a.grantee <> to_regrole('loracomp_admin')
        UNION ALL
        SELECT format('row security of %s is off', c.relname)
        FROM pg_class AS c
        WHERE c.relnamespace = 'loracomp'::regnamespace AND NOT c.relrowsecurity
            AND c.relname IN ('job', 'prediction', 'audit_event', 'task', 'example', 'adapter')
    ) AS g
    UNION ALL
    SELECT 'analysts without statement_timeout', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        coalesce(string_agg(r.rolname, ', ' ORDER BY r.rolname)
            || ': a query of theirs may run for hours and keep dead rows; SELECT loracomp.limit_analyst(''...'')',
            'none')
    FROM pg_roles AS r
    WHERE r.rolcanlogin AND NOT r.rolsuper AND pg_has_role(r.oid, to_regrole('loracomp_analyst'), 'member')
        AND NOT EXISTS (
            SELECT FROM pg_db_role_setting AS s CROSS JOIN LATERAL unnest(s.setconfig) AS c (setting)
            WHERE s.setrole IN (0, r.oid) AND s.setdatabase IN (
                0, (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
            ) AND c.setting ~ '^statement_timeout=' AND c.setting !~ '^statement_timeout=0(ms|s|min)?$'
        )
        -- A limit in the server's configuration holds for all logins.
        AND NOT EXISTS (
            SELECT FROM pg_settings AS s
            WHERE s.name = 'statement_timeout' AND s.source = 'configuration file' AND s.reset_val <> '0'
        )
$$;
COMMENT ON FUNCTION loracomp.check_roles IS
'Checks of roles and grants, and of which analysts'' logins have no limit on the length of a query.';

-- Reads only: whether base models, encoder, adapters and examples exist and are complete.
CREATE FUNCTION loracomp.check_registry()
RETURNS TABLE (check_name text, status text, detail text)
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
    -- Of a large registry only 250 MB, others each day, so that all calls of a day agree. Workers check each file that they load.
    SELECT 'adapter hashes', CASE WHEN count(*) FILTER (WHERE NOT whole) = 0 THEN 'ok' ELSE 'fail' END,
        CASE WHEN count(*) FILTER (WHERE NOT whole) = 0
            THEN format('%s of %s files were checked, and are as they were registered', count(*),
                (SELECT count(*) FROM adapter WHERE status <> 'retired'))
            ELSE 'changed in the database: ' || string_agg(format('%s version %s', name, version), ', ')
                FILTER (WHERE NOT whole) || '; stage them again' END
    FROM (
        SELECT a.name, a.version,
            a.sha256 IS NOT DISTINCT FROM encode(sha256(string_agg(w.bytes, '' ORDER BY w.part)), 'hex') AS whole
        FROM (
            SELECT a.*, sum(a.byte_count) OVER (ORDER BY md5(concat(a.id, current_date)), a.id) - a.byte_count AS bytes_before
            FROM adapter AS a WHERE a.status <> 'retired'
        ) AS a
        LEFT JOIN adapter_part AS w ON w.adapter_id = a.id
        WHERE a.bytes_before < 250e6
        GROUP BY a.id, a.name, a.version, a.sha256
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
'Whether base models, encoder, adapters and examples exist and are complete; of adapters'' files up to 250 MB are hashed.';

-- Reads only: expired leases, jobs that no worker takes, workers that stopped reporting, old reports.
CREATE FUNCTION loracomp.check_queue()
RETURNS TABLE (check_name text, status text, detail text)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT 'leases', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        CASE WHEN count(*) = 0 THEN 'none ran out more than a minute ago'
            ELSE format('%s ran out and wait for a worker to take them back', count(*)) END
    FROM job AS j WHERE j.status = 'running' AND j.lease_expires_at < now() - interval '1 minute'
    UNION ALL
    SELECT 'queue', CASE WHEN q.oldest_s < 600 THEN 'ok' ELSE 'warn' END,
        format('%s due, the oldest for %s s', q.jobs, q.oldest_s)
            || CASE WHEN q.oldest_s < 600 THEN '' ELSE ': start more workers' END
    FROM (
        SELECT count(*) AS jobs,
            coalesce(round(extract(EPOCH FROM max(now() - greatest(j.run_at, j.created_at)))), 0) AS oldest_s
        -- One branch for each case, so that each can use its index.
        FROM job AS j WHERE j.status = 'queued' AND (j.scheduled OR NOT j.scheduled) AND j.run_at <= now()
    ) AS q
    UNION ALL
    SELECT 'base models without a worker', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        coalesce(string_agg(format('%s (due for %s s)', q.base_model, q.oldest_due_s), ', ' ORDER BY q.base_model)
            || ': jobs wait and no worker serves it; start one', 'none that jobs have waited for longer than a minute')
    FROM queue_health AS q
    WHERE q.oldest_due_s > 60 AND NOT EXISTS (
        SELECT FROM worker_status AS w
        WHERE w.base_model = q.base_model AND w.status NOT IN ('gone', 'stopped')
    )
    UNION ALL
    SELECT 'workers', CASE WHEN count(*) FILTER (WHERE w.status = 'gone') = 0 THEN 'ok' ELSE 'warn' END,
        format('%s alive', count(*) FILTER (WHERE w.status NOT IN ('gone', 'stopped')))
            || coalesce(', gone without a word: ' || string_agg(w.worker, ', ' ORDER BY w.worker)
                FILTER (WHERE w.status = 'gone') || '; look at their logs', '')
    FROM worker_status AS w
    UNION ALL
    SELECT 'versions of workers', CASE WHEN count(DISTINCT w.code_version) < 2 THEN 'ok' ELSE 'warn' END,
        coalesce(string_agg(DISTINCT w.code_version, ', '), 'none')
            || CASE WHEN count(DISTINCT w.code_version) < 2 THEN '' ELSE ': start the older ones again' END
    FROM worker_status AS w WHERE w.status NOT IN ('gone', 'stopped')
    UNION ALL
    SELECT 'reports', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        coalesce(string_agg(format('%s is of %s', r.report, to_char(r.refreshed_at, 'YYYY-MM-DD HH24:MI')), ', '
            ORDER BY r.report) || ': schedule `loracomp refresh`', 'no older than a day, or nothing is newer')
    FROM report_refresh AS r
    WHERE r.refreshed_at < now() - interval '1 day'
        AND r.refreshed_at < (SELECT max(j.finished_at) FROM job AS j WHERE j.finished_at IS NOT NULL)
    UNION ALL
    SELECT 'ranges of job ids', CASE WHEN s.last_value < r.end_id THEN 'ok' ELSE 'warn' END,
        format('up to %s', r.end_id - 1) || CASE WHEN s.last_value < r.end_id THEN '' ELSE
            ': answers to later jobs have no partition of their own; SELECT loracomp.maintain() while nobody reads prediction' END
    FROM job_id_seq AS s
    CROSS JOIN (SELECT coalesce(max(g.end_id), 0) AS end_id FROM job_ranges() AS g) AS r
$$;
COMMENT ON FUNCTION loracomp.check_queue IS
'Checks that jobs are answered: leases, due jobs, workers that are alive and of the same version, age of reports, ranges.';

-- The checks that `loracomp doctor` makes in the database.
--   check_health
--     check_server              the server's release and settings
--       oldest_snapshots
--     check_objects             whether others could create objects that our functions call
--     check_work                whether jobs have what they need, and are answered

-- Reads only. `loracomp doctor` prints the result.
CREATE FUNCTION loracomp.check_health()
RETURNS TABLE (check_name text, status text, detail text)
-- VOLATILE, so that it sees what an installer changed while this function waited for it.
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    -- Lock first, because the next statement looks up all functions before it calls the first one. If it then had to wait for an installer,
    -- the functions would have been replaced meanwhile ("cache lookup failed"). With the lock, the installer waits for this function.
    LOCK TABLE loracomp.job IN ACCESS SHARE MODE;
    RETURN QUERY
    SELECT c.check_name, CASE c.troubles WHEN '{}' THEN 'ok' ELSE c.otherwise END,
        CASE c.troubles WHEN '{}' THEN c.fine ELSE array_to_string(c.troubles, '; ') END
    FROM (
        SELECT * FROM loracomp.check_server()
        UNION ALL
        SELECT * FROM loracomp.check_objects()
        UNION ALL
        SELECT * FROM loracomp.check_work()
    ) AS c;
END
$$;
COMMENT ON FUNCTION loracomp.check_health IS
'Checks of the database for administrators: each with ok, warn or fail, and what to do.';

-- Reads only. This function and the next two return a row for each check: its status if it finds problems, what it says if it finds none,
-- and the problems, each with what to do about it.
CREATE FUNCTION loracomp.check_server()
RETURNS TABLE (check_name text, otherwise text, fine text, troubles text[])
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT 'server', 'warn', format('PostgreSQL %s, pgvector %s', current_setting('server_version'), e.extversion), ARRAY(
        SELECT 'loracomp is tested with PostgreSQL 16 and newer only: upgrade the server'
        WHERE current_setting('server_version_num')::integer < 160000
        UNION ALL
        -- 0.8.2 fixes CVE-2026-3172, and 0.8.3 a bug of vacuum with HNSW indexes.
        SELECT format('pgvector %s has known faults: upgrade to 0.8.3 or newer', e.extversion)
        WHERE string_to_array(e.extversion, '.')::int[] < ARRAY[0, 8, 3]
    )
    FROM pg_extension AS e WHERE e.extname = 'vector'
    UNION ALL
    SELECT 'durability', 'fail', 'committed data survives a crash', ARRAY(
        SELECT s.name || ' is off, so accepted jobs may be lost if the server or its machine crashes: turn it on'
        FROM pg_settings AS s WHERE s.name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND s.setting = 'off'
        ORDER BY s.name
    )
    UNION ALL
    -- With half of the index in shared_buffers, routing takes up to 1.4 times as long.
    SELECT 'index in memory', 'warn', m.sizes, ARRAY(
        SELECT m.sizes || ': routing is slower; raise shared_buffers'
        WHERE m.bytes > pg_size_bytes(current_setting('shared_buffers'))
    )
    FROM (
        SELECT sum(pg_relation_size(c.oid)) AS bytes,
            format('%s for the index of examples, %s in shared_buffers',
                pg_size_pretty(coalesce(sum(pg_relation_size(c.oid)), 0)), current_setting('shared_buffers')) AS sizes
        FROM pg_class AS c WHERE c.oid = to_regclass('example_embedding_hnsw')
    ) AS m
    UNION ALL
    SELECT 'dead rows', 'warn', 'vacuum can remove them', ARRAY(
        SELECT format('%s keeps vacuum from removing them (for %s): end it, '
            'and set idle_in_transaction_session_timeout and statement_timeout', o.holder,
            coalesce(round(o.seconds::numeric) || ' s', o.transactions || ' transactions'))
        FROM loracomp.oldest_snapshots() AS o WHERE o.seconds > 300 OR o.transactions > 1000000
        UNION ALL
        SELECT format('this check can''t see what keeps vacuum from removing them: GRANT pg_read_all_stats TO %I', current_user)
        WHERE NOT pg_has_role(current_user, 'pg_read_all_stats', 'usage')
        UNION ALL
        SELECT format('%s has %s dead and %s live rows: VACUUM it', t.relname, t.n_dead_tup, t.n_live_tup)
        FROM pg_stat_user_tables AS t
        WHERE t.schemaname IN ('loracomp', 'loracomp_parts') AND t.n_dead_tup > 20000 AND t.n_dead_tup > 0.2 * t.n_live_tup
    )
$$;
COMMENT ON FUNCTION loracomp.check_server IS
'Checks the server: its release, durability, memory for the index, and what keeps dead rows from being removed.';

-- Reads only the catalog. `others` are functions and operators whose owner may not act as loracomp's owner. If one of our functions called
-- such an object, its owner would get the rights of whoever calls our function. Functions in C are left out, because only a superuser can
-- create one.
CREATE FUNCTION loracomp.check_objects()
RETURNS TABLE (check_name text, otherwise text, fine text, troubles text[])
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    WITH ours AS MATERIALIZED (
        SELECT n.* FROM pg_namespace AS n WHERE n.nspname IN ('loracomp', 'loracomp_parts', 'bi')
    ),
    others AS MATERIALIZED (
        SELECT o.*, o.owner::regrole::text AS of FROM (
            SELECT 'pg_proc'::regclass AS catalog, p.oid, p.proname AS name, 'function ' || p.oid::regprocedure::text AS what,
                p.pronamespace AS schema, p.proowner AS owner
            FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang WHERE l.lanname NOT IN ('internal', 'c')
            UNION ALL
            SELECT 'pg_operator', r.oid, r.oprname, 'operator ' || r.oid::regoperator::text, r.oprnamespace, r.oprowner
            FROM pg_operator AS r
            WHERE NOT EXISTS (
                SELECT FROM pg_depend AS d
                WHERE d.classid = 'pg_operator'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_extension'::regclass
            )
        ) AS o
        WHERE NOT pg_has_role(o.owner, current_user, 'member')
    )
    SELECT 'schemas', 'fail', 'only the owner can create objects that loracomp''s functions call', ARRAY(
        SELECT format('schema %s belongs to %s: ALTER SCHEMA %1$s OWNER TO %I', n.nspname, n.nspowner::regrole, current_user)
        FROM ours AS n WHERE NOT pg_has_role(n.nspowner, current_user, 'member')
        UNION ALL
        SELECT format('%s may create objects in schema %s, and could thereby get the owner''s rights: '
            'REVOKE CREATE ON SCHEMA %2$s FROM %1$s', g.name, n.nspname)
        FROM ours AS n
        CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
        CROSS JOIN LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'public' ELSE a.grantee::regrole::text END) AS g (name)
        WHERE a.privilege_type = 'CREATE' AND (a.grantee = 0 OR NOT pg_has_role(a.grantee, current_user, 'member'))
        UNION ALL
        SELECT format('%s belongs to %s: drop it', o.what, o.of)
        FROM others AS o JOIN ours AS n ON n.oid = o.schema WHERE n.nspname <> 'loracomp_parts' -- where each owner of declared tables has a function
        UNION ALL
        SELECT format(
            '%s, owned by %s, is called by %s%s: %s, then drop it', o.what, o.of, min(u.object), ' and other objects of loracomp, ' || nullif(count(*) - 1, 0),
            CASE WHEN bool_or(u.is_a_tables) THEN 'drop these and create them again as `loracomp sql` does'
                ELSE 'run `loracomp init --again`' END
        )
        FROM others AS o
        JOIN pg_depend AS d ON d.refclassid = o.catalog AND d.refobjid = o.oid
        CROSS JOIN LATERAL (
            SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS object,
                d.classid IN ('pg_class'::regclass, 'pg_constraint'::regclass, 'pg_attrdef'::regclass) AS is_a_tables
        ) AS u
        JOIN ours AS n ON n.oid = coalesce(
            (SELECT p.pronamespace FROM pg_proc AS p WHERE d.classid = 'pg_proc'::regclass AND p.oid = d.objid),
            (SELECT c.relnamespace FROM pg_class AS c WHERE c.oid = CASE d.classid
                WHEN 'pg_class'::regclass THEN d.objid
                WHEN 'pg_rewrite'::regclass THEN (SELECT r.ev_class FROM pg_rewrite AS r WHERE r.oid = d.objid)
                WHEN 'pg_constraint'::regclass THEN (SELECT r.conrelid FROM pg_constraint AS r WHERE r.oid = d.objid)
                WHEN 'pg_attrdef'::regclass THEN (SELECT f.adrelid FROM pg_attrdef AS f WHERE f.oid = d.objid)
                WHEN 'pg_policy'::regclass THEN (SELECT p.polrelid FROM pg_policy AS p WHERE p.oid = d.objid)
                WHEN 'pg_trigger'::regclass THEN (SELECT t.tgrelid FROM pg_trigger AS t WHERE t.oid = d.objid)
            END)
        )
        GROUP BY o.what, o.of
    )
    UNION ALL
    SELECT 'overloads', 'warn', 'nobody has overloaded built-in functions in schema public', ARRAY(
        SELECT format(
            '%s has %s functions and operators in schema public with names of built-in ones, such as %s: statements of everybody whose '
            'search_path has public may run them; drop them, or REVOKE CREATE ON SCHEMA public FROM %1$s', o.of, count(*), min(o.what)
        )
        FROM others AS o
        WHERE o.schema = to_regnamespace('public')::oid AND CASE o.catalog
            WHEN 'pg_proc'::regclass
                THEN EXISTS (SELECT FROM pg_proc AS p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = o.name)
            ELSE EXISTS (SELECT FROM pg_operator AS r WHERE r.oprnamespace = 'pg_catalog'::regnamespace AND r.oprname = o.name)
        END
        GROUP BY o.of
        ORDER BY o.of
    )
$$;
COMMENT ON FUNCTION loracomp.check_objects IS
'Checks for objects that others may have created: objects in loracomp''s schemas, functions that ours call, and overloads of built-in '
'functions.';

-- Reads only.
CREATE FUNCTION loracomp.check_work()
RETURNS TABLE (check_name text, otherwise text, fine text, troubles text[])
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    WITH living AS MATERIALIZED (
        SELECT w.* FROM loracomp.worker_status AS w WHERE w.status NOT IN ('gone', 'stopped')
    ),
    queue AS MATERIALIZED (
        SELECT q.*, q.base_model IN (SELECT w.base_model FROM living AS w) AS is_served FROM loracomp.queue_health AS q
    )
    SELECT 'models', 'fail', 'a default base model and an encoder are set', ARRAY(
        SELECT 'no base model is the default: loracomp library load brings one, and loracomp model default chooses one'
        WHERE NOT EXISTS (SELECT FROM loracomp.base_model AS b WHERE b.is_default)
        UNION ALL
        SELECT 'no encoder is set: loracomp encoder set SOURCE' WHERE NOT EXISTS (SELECT FROM loracomp.encoder)
        UNION ALL
        SELECT format('jobs wait until the new encoder has embedded %s more examples: '
            'if the command was killed, run loracomp encoder set %s again',
            loracomp.count_unembedded(NULL), e.source)
        FROM loracomp.encoder AS e WHERE NOT e.is_ready
    )
    UNION ALL
    SELECT 'adapters', 'warn', format('%s active', n.active), ARRAY(
        SELECT 'no adapter is active: run loracomp library load' WHERE n.active = 0
        UNION ALL
        SELECT format('these tasks have an active adapter that is never used, because none of their examples is embedded: %s; '
            'import examples with loracomp task import',
            string_agg(t.name, ', ' ORDER BY t.name))
        FROM loracomp.task AS t
        WHERE EXISTS (SELECT FROM loracomp.adapter AS a WHERE a.task_id = t.id AND a.status = 'active')
            AND NOT EXISTS (SELECT FROM loracomp.example_embedding AS e WHERE e.task_id = t.id)
        HAVING count(t.id) > 0
    )
    FROM (SELECT count(*) AS active FROM loracomp.adapter AS a WHERE a.status = 'active') AS n
    UNION ALL
    SELECT 'queue', 'warn', (
        SELECT format('%s jobs are due, and %s rows of declared tables wait for theirs', sum(q.due), sum(q.rows_waiting)) FROM queue AS q
    ), ARRAY(
        SELECT format('the leases of %s jobs have expired, and no worker has queued the jobs again: start a worker', count(*))
        FROM loracomp.job AS j WHERE j.status = 'running' AND j.lease_expires_at < now() - interval '1 minute' HAVING count(*) > 0
        UNION ALL
        SELECT format('jobs for base model %s have waited for %s s: start %s', q.base_model, round(q.oldest_due_s::numeric),
            CASE WHEN q.is_served THEN 'more workers' ELSE 'a worker that serves it' END)
        FROM queue AS q WHERE q.oldest_due_s > CASE WHEN q.is_served THEN 600 ELSE 60 END
        UNION ALL
        SELECT format('%s rows of declared tables wait, and no worker serves base model %s: start one', q.rows_waiting, q.base_model)
        FROM queue AS q WHERE q.rows_waiting > 0 AND NOT q.is_served
    )
    UNION ALL
    SELECT 'declarations', 'warn', (SELECT format('rows of %s declared tables get jobs', count(*)) FROM loracomp.declaration AS a), ARRAY(
        SELECT format('rows of %s get no jobs: %s', a.view, a.trouble) FROM loracomp.declaration AS a
        WHERE NOT a.paused AND a.trouble IS NOT NULL
        UNION ALL
        SELECT format('%s %% of the certain answers of %s should be right, and the latest corrected rows show fewer: correct more rows',
            100 * a.certain, a.view)
        FROM loracomp.declaration AS a WHERE a.id = ANY ((SELECT loracomp.lost_promises())::integer[])
    )
    UNION ALL
    SELECT 'workers', 'warn', format('%s alive', (SELECT count(*) FROM living)), ARRAY(
        SELECT format('%s has stopped reporting without saying that it ends: look at its log', w.worker) FROM loracomp.worker_status AS w WHERE w.status = 'gone'
        UNION ALL
        SELECT format('workers run versions %s: upgrade and restart the older ones', string_agg(DISTINCT w.code_version, ', '))
        FROM living AS w HAVING count(DISTINCT w.code_version) > 1
    )
    UNION ALL
    SELECT 'keeper', 'warn', 'each step has run within five minutes', ARRAY(
        SELECT 'workers are alive, and none of them keeps house, so that no scheduled job and no declared row gets its turn: look at their logs'
        WHERE EXISTS (SELECT FROM living AS w WHERE w.started_at < now() - interval '1 minute')
            AND NOT EXISTS (SELECT FROM loracomp.keeper AS k WHERE k.keeps_until > now() - interval '1 minute')
        UNION ALL
        SELECT format('%s fails: %s', s.step, s.error) FROM loracomp.keeper_step AS s WHERE s.error IS NOT NULL
        UNION ALL
        SELECT format('%s last ran at %s: look at the log of worker %s', s.step, to_char(s.ran_at, 'YYYY-MM-DD HH24:MI'), k.worker)
        FROM loracomp.keeper_step AS s CROSS JOIN loracomp.keeper AS k
        WHERE s.error IS NULL AND s.ran_at < now() - interval '5 minutes' AND k.keeps_until > now()
    )
    UNION ALL
    SELECT 'reports', 'warn', 'refreshed within a day, or no job has ended since', ARRAY(
        SELECT format('the reports were last refreshed at %s: schedule `loracomp refresh`', to_char(r.refreshed_at, 'YYYY-MM-DD HH24:MI'))
        FROM loracomp.report_refresh AS r
        WHERE r.refreshed_at < now() - interval '1 day'
            AND r.refreshed_at < (SELECT max(j.finished_at) FROM loracomp.job AS j WHERE j.finished_at IS NOT NULL)
    )
$$;
COMMENT ON FUNCTION loracomp.check_work IS
'Checks whether jobs can be answered and are: models, adapters, leases, due jobs, declarations, workers, the keeper and reports.';

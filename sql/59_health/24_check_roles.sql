-- drop: DROP FUNCTION IF EXISTS loracomp.check_roles()
-- Reads only: whether the four roles may do what they should and no more, and whose login lacks a limit.
CREATE FUNCTION loracomp.check_roles()
RETURNS TABLE ("check" text, status text, detail text)
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
    SELECT 'words in plans', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        coalesce(string_agg(w.what, ', ' ORDER BY w.what)
            || ': by EXPLAIN a submitter finds out others'' words there; DROP INDEX, ALTER COLUMN ... SET STATISTICS 0',
            'no index and no statistics tell submitters of others'' words')
    FROM (
        SELECT a.attrelid, a.attnum, a.attstattarget, format('%s.%s', c.relname, a.attname) AS name
        FROM pg_class AS c INNER JOIN pg_attribute AS a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'loracomp'::regnamespace AND (c.relname, a.attname) IN (
            ('job', 'prompt'), ('job', 'idempotency_key'), ('job', 'task'), ('job', 'expected'), ('job', 'error'),
            ('job', 'lease_token'), ('prediction', 'output')
        )
    ) AS a
    CROSS JOIN LATERAL (
        SELECT 'statistics of ' || a.name WHERE a.attstattarget IS DISTINCT FROM 0
        UNION ALL
        SELECT 'an index on ' || a.name FROM pg_index AS i
        WHERE i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey)
            -- It begins with the submitter, who is always given.
            AND i.indexrelid <> 'loracomp.idempotency_key_was_used_before'::regclass
    ) AS w (what)
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
        -- What the server's configuration sets holds for all.
        AND NOT EXISTS (
            SELECT FROM pg_settings AS s
            WHERE s.name = 'statement_timeout' AND s.source = 'configuration file' AND s.reset_val <> '0'
        )
$$;
COMMENT ON FUNCTION loracomp.check_roles IS
'Whether roles and grants are as they should be, and which analysts'' queries have no end.';

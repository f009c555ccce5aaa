{# What `loracomp sql` prints, and `loracomp init` runs block by block. -#}
{% block header -%}
-- loracomp {{ release }}: {{ "the whole schema" if since is none else "from the schema of " ~ since }}, as `loracomp init` makes it. Run it by psql as
-- the database's owner.
\set ON_ERROR_STOP on
\set QUIET on
\o /dev/null
SET client_encoding = 'UTF8';

{% endblock %}
{% block settings %}
-- What the script does, and how long it may take, must not depend on settings of the role, of the database or of the client.
SET LOCAL standard_conforming_strings = on;
SET LOCAL quote_all_identifiers = off;
SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings
WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout');
{%- endblock %}
{% block roles %}
SET LOCAL search_path = pg_catalog, pg_temp;
{{ settings }}
-- Roles belong to the whole server, so they are created in a separate step: installers of other databases may be creating them at the same
-- time.
DO $roles$
DECLARE
    missing name[] := ARRAY(
        SELECT unnest('{ {{- roles | join(",") -}} }'::name[]) EXCEPT SELECT rolname FROM pg_catalog.pg_roles
    );
    role name;
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'database % has the encoding %, and loracomp needs UTF8', current_database(), current_setting('server_encoding')
            USING HINT = 'make another database, for example by CREATE DATABASE loracomp ENCODING ''UTF8'' TEMPLATE template0';
    END IF;
    FOREACH role IN ARRAY missing LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL; -- another installer has made it meanwhile
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'the installer may not create roles'
                    USING HINT = 'let an administrator run CREATE ROLE for ' || array_to_string(missing, ', ');
        END;
    END LOOP;
END
$roles$;
{% endblock %}
{% block begin %}
SET LOCAL client_min_messages = warning;
{{ settings }}
-- Names are looked up only in pg_catalog and in schema loracomp. In a schema where others may create objects, their overloads could be
-- called instead of built-in functions, with the rights of whoever uses loracomp's functions.
SET LOCAL search_path = loracomp, pg_temp;

-- Only one installer runs at a time. The others wait for a lock on the schema, which only its owner can take, whereas any login could hold
-- an advisory lock for ever. CREATE SCHEMA waits for whoever is creating the same schema.
DO $lock$
BEGIN
    LOOP
        BEGIN
            IF to_regnamespace('loracomp') IS NULL THEN
                CREATE SCHEMA loracomp;
            END IF;
            COMMENT ON SCHEMA loracomp IS '{{ note }}';
            EXIT;
        EXCEPTION
            WHEN unique_violation OR duplicate_schema THEN
                NULL; -- another installer has created it
            WHEN invalid_schema_name OR undefined_object THEN
                NULL; -- whoever held the lock has dropped it
            WHEN insufficient_privilege THEN
                IF to_regnamespace('loracomp') IS NULL THEN
                    RAISE;
                END IF;
                RAISE EXCEPTION 'schema loracomp is not yours' USING HINT = 'install as its owner';
        END;
    END LOOP;
END
$lock$;

-- Whoever can create functions in loracomp's schemas can get the installer's rights, so nobody else may create anything there. A schema of the
-- same name that was here before, such as a company's own bi, must not become loracomp's, because all of it would be granted to loracomp's roles.
DO $others$
DECLARE
    problem text;
BEGIN
    SELECT o.problem INTO problem FROM (
        SELECT format(
            'schema %I belongs to %s: run this as that role if it installed loracomp; otherwise rename the schema, or install in another database',
            n.nspname, n.nspowner::regrole
        ) AS problem, n.nspowner AS holder, 1 AS ordinal
        FROM pg_namespace AS n WHERE n.nspname IN ('loracomp', 'loracomp_parts', 'bi')
        UNION ALL
        SELECT format('%s may create in schema %I: REVOKE CREATE ON SCHEMA %2$I FROM %1$s', g.name, n.nspname), a.grantee, 2
        FROM pg_namespace AS n
        CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
        CROSS JOIN LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'public' ELSE a.grantee::regrole::text END) AS g (name)
        WHERE n.nspname IN ('loracomp', 'loracomp_parts', 'bi') AND a.privilege_type = 'CREATE'
        UNION ALL
        SELECT format('function %s belongs to %s: drop it', p.oid::regprocedure, p.proowner::regrole), p.proowner, 3
        FROM pg_proc AS p WHERE p.pronamespace IN (to_regnamespace('loracomp'), to_regnamespace('bi'))
        UNION ALL
        SELECT format('operator %s belongs to %s: drop it', o.oid::regoperator, o.oprowner::regrole), o.oprowner, 3
        FROM pg_operator AS o WHERE o.oprnamespace IN (to_regnamespace('loracomp'), to_regnamespace('bi'))
        UNION ALL
        SELECT format(
            'schema %I has objects that are not loracomp''s, such as %s: rename the schema, or install in another database',
            n.nspname, min(i.type || ' ' || i.identity)
        ), 0, 4
        FROM pg_namespace AS n
        JOIN pg_depend AS d ON d.refclassid = 'pg_namespace'::regclass AND d.refobjid = n.oid AND d.classid <> 'pg_default_acl'::regclass
        CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) AS i
        WHERE n.nspname IN ('loracomp', 'loracomp_parts', 'bi') AND to_regclass('loracomp.alembic_version') IS NULL
        GROUP BY n.nspname
    ) AS o
    WHERE o.holder = 0 OR NOT pg_has_role(o.holder, current_user, 'member')
    ORDER BY o.ordinal LIMIT 1;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem;
    END IF;
END
$others$;

DO $pgvector$
DECLARE
    found record;
BEGIN
    BEGIN
        CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;
    EXCEPTION WHEN feature_not_supported OR insufficient_privilege OR undefined_file THEN
        RAISE EXCEPTION 'this database has no pgvector (%)', sqlerrm USING ERRCODE = 'feature_not_supported',
            HINT = 'install it on the server, then let a superuser run CREATE EXTENSION vector in this database';
    END;
    SELECT e.extversion AS version, e.extnamespace::regnamespace AS schema INTO found FROM pg_extension AS e WHERE e.extname = 'vector';
    IF string_to_array(found.version, '.')::integer[] < '{0,8}' THEN
        RAISE EXCEPTION 'pgvector % is too old, 0.8 is needed', found.version USING ERRCODE = 'feature_not_supported',
            HINT = 'install it on the server, then run ALTER EXTENSION vector UPDATE';
    END IF;
    IF found.schema <> 'public'::regnamespace THEN
        RAISE EXCEPTION 'pgvector is in schema % and must be in public', found.schema USING ERRCODE = 'feature_not_supported',
            HINT = 'run ALTER EXTENSION vector SET SCHEMA public';
    END IF;
END
$pgvector$;
SELECT '[1]'::public.vector; -- loads the library: before that, only superusers may SET hnsw.* on a function
{% endblock %}
{% block revision %}

DO $revision$
BEGIN
{% if base is none %}
    IF to_regclass('loracomp.alembic_version') IS NOT NULL THEN
        RAISE EXCEPTION 'loracomp is installed here' USING HINT = 'Print the difference: loracomp sql --from RELEASE.';
    END IF;
{% else %}
    IF (SELECT version_num FROM loracomp.alembic_version) <> '{{ base }}' THEN
        RAISE EXCEPTION 'the schema of this database is not at revision {{ base }}';
    END IF;
{% endif %}
END
$revision$;
{% endblock %}
{% block lock %}

-- Users' views that read loracomp's views or call its functions, by name; `is_kept` says whether the installer may replace the view. Such a
-- view stays while loracomp's objects are replaced: meanwhile a query that returns NULLs of the same types takes the place of its
-- definition. Its owner, grants, comments, triggers and whatever depends on it stay; only its options must be set again.
CREATE TEMP VIEW users_view AS
SELECT
    v.name, v.is_kept,
    format('ALTER VIEW %s OWNER TO %s', v.name, v.relowner::regrole) AS lock,
    format('CREATE OR REPLACE VIEW %s AS SELECT %s', v.name, v.columns) AS hollow,
    format(
        'CREATE OR REPLACE VIEW %s%s AS %s', v.name, ' WITH (' || array_to_string(v.reloptions, ', ') || ')', pg_get_viewdef(v.oid)
    ) AS definition
FROM (
    SELECT
        c.oid, c.relowner, c.reloptions, format('%I.%I', n.nspname, c.relname) AS name,
        c.relkind = 'v' AND pg_has_role(c.relowner, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE') AS is_kept,
        (
            SELECT string_agg(format(
                'NULL::%s%s AS %I', format_type(atttypid, atttypmod),
                ' COLLATE ' || nullif(attcollation, 0)::regcollation, attname
            ), ', ' ORDER BY attnum)
            FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0
        ) AS columns
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_rewrite AS r ON r.ev_class = c.oid AND r.rulename = '_RETURN'
    WHERE EXISTS (
        SELECT
        FROM pg_depend AS d
        LEFT JOIN pg_proc AS p ON (p.tableoid, p.oid) = (d.refclassid, d.refobjid)
        LEFT JOIN pg_class AS s ON (s.tableoid, s.oid) = (d.refclassid, d.refobjid) AND s.relkind IN ('v', 'm')
        WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND s.oid IS DISTINCT FROM c.oid
            AND coalesce(p.pronamespace, s.relnamespace) IN (to_regnamespace('loracomp'), to_regnamespace('bi'))
    ) AND NOT EXISTS (
        SELECT FROM loracomp.sql_object AS ours
        WHERE format(
            'DROP %sVIEW IF EXISTS %I.%I', CASE c.relkind WHEN 'm' THEN 'MATERIALIZED ' END, n.nspname, c.relname
        ) = ANY (ours.drops)
    )
) AS v
ORDER BY v.name;

-- Locks all tables and views until the transaction ends, so that clients wait. DROP would lock one object after another, in another order
-- than clients do, and so cause deadlocks. If locking takes longer than half of deadlock_timeout, all locks are released for a moment and
-- it tries again. Users' views are locked first, as clients do. They are locked by ALTER VIEW, because LOCK TABLE would check whether the
-- view's owner has rights on what the view reads.
DO $lock$
DECLARE
    patience CONSTANT interval := (SELECT setting::integer / 2 * interval '1 ms' FROM pg_settings WHERE name = 'deadlock_timeout');
    deadline timestamptz;
    statement text;
BEGIN
    FOR attempt IN 1 .. {{ attempts }} LOOP
        BEGIN
            deadline := clock_timestamp() + patience;
            FOR statement IN
                SELECT v.lock FROM pg_temp.users_view AS v WHERE v.is_kept
                UNION ALL
                (
                    SELECT format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', oid::regclass) FROM pg_class
                    WHERE relkind IN ('r', 'p', 'v') AND relnamespace IN (to_regnamespace('loracomp'), to_regnamespace('bi'))
                    ORDER BY relkind = 'v' DESC, relname = 'job' DESC
                )
            LOOP
                PERFORM set_config(
                    'lock_timeout', greatest(1, extract(EPOCH FROM deadline - clock_timestamp()) * 1000)::integer::text, true
                );
                EXECUTE statement;
            END LOOP;
            SET LOCAL lock_timeout = 0;
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            PERFORM pg_sleep(0.1);
        END;
    END LOOP;
    RAISE EXCEPTION 'loracomp''s tables are in use: %', coalesce((
        SELECT string_agg(DISTINCT format('%s by %s (%s)', l.relation::regclass, h.who, h.what), '; ')
        FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
        JOIN (
            SELECT a.pid, NULL AS transaction, a.usename AS who, format('process %s, since %s', a.pid, a.xact_start) AS what
            FROM pg_stat_activity AS a WHERE a.pid <> pg_backend_pid()
            UNION ALL
            -- A prepared transaction has no process. It has locked its own id under the name that its other locks have.
            SELECT NULL, x.virtualtransaction, p.owner, format('ROLLBACK PREPARED %L ends it; prepared %s', p.gid, p.prepared)
            FROM pg_prepared_xacts AS p JOIN pg_locks AS x ON x.pid IS NULL AND x.granted AND x.transactionid = p.transaction
        ) AS h ON l.pid = h.pid OR l.pid IS NULL AND l.virtualtransaction = h.transaction
        WHERE l.granted AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
            AND c.relnamespace IN (to_regnamespace('loracomp'), to_regnamespace('bi')) AND c.relkind IN ('r', 'p', 'v')
    ), 'by transactions that have just ended; run this again');
END
$lock$;
{% endblock %}
{% block drop %}

-- Drops all objects of sql/, newest first and without CASCADE, so that an error names users' objects that depend on them. It keeps what
-- others made on loracomp's functions and views: grants to their roles, and the definitions of their views.
CREATE TEMP TABLE kept (ordinal integer GENERATED ALWAYS AS IDENTITY, view text, statement text) ON COMMIT DROP;
DO $drop$
DECLARE
    view record;
    statement text;
BEGIN
    INSERT INTO pg_temp.kept (statement)
    SELECT format(
        'GRANT %s%s ON %s TO %s%s', a.privilege_type, o.columns, o.object, a.grantee::regrole,
        CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END
    )
    FROM (
        SELECT relnamespace AS schema, format('TABLE %s', oid::regclass) AS object, '' AS columns,
            relowner AS owner, relacl AS acl
        FROM pg_class WHERE relkind IN ('r', 'v', 'm')
        UNION ALL
        SELECT relnamespace, format('TABLE %s', c.oid::regclass), format(' (%I)', attname), relowner, attacl
        FROM pg_class AS c JOIN pg_attribute ON attrelid = c.oid WHERE relkind IN ('r', 'v', 'm')
        UNION ALL
        SELECT pronamespace, format('ROUTINE %s', oid::regprocedure), '', proowner, proacl FROM pg_proc
    ) AS o
    CROSS JOIN LATERAL aclexplode(o.acl) AS a
    WHERE o.schema IN (to_regnamespace('loracomp'), to_regnamespace('bi'))
        -- Grants to PUBLIC (0) are not kept, because sql/ revokes from PUBLIC on purpose.
        AND a.grantee NOT IN (0, o.owner) AND pg_get_userbyid(a.grantee) <> ALL ('{ {{- roles | join(",") -}} }');
    SET LOCAL search_path = ''; -- definitions then name the schema of all that they use
    FOR view IN SELECT * FROM pg_temp.users_view AS v WHERE v.is_kept LOOP
        INSERT INTO pg_temp.kept (view, statement) VALUES (view.name, view.definition);
        EXECUTE view.hollow;
    END LOOP;
    SET LOCAL search_path = loracomp, pg_temp;
    FOR statement IN
        SELECT d.statement FROM loracomp.sql_object AS o, unnest(o.drops) WITH ORDINALITY AS d (statement, ordinal)
        ORDER BY o.position DESC, d.ordinal
    LOOP
        EXECUTE statement;
    END LOOP;
    DELETE FROM loracomp.sql_object;
END
$drop$;
DROP VIEW pg_temp.users_view;
REVOKE ALL ON ALL TABLES IN SCHEMA loracomp, bi FROM {{ roles | join(", ") }};
REVOKE ALL ON ALL ROUTINES IN SCHEMA loracomp, bi FROM {{ roles | join(", ") }};
REVOKE ALL ON SCHEMA loracomp, bi FROM {{ roles | join(", ") }};
{% endblock %}
{% block apply %}

-- Functions, views, triggers and grants. loracomp.sql_object stores for each file the statements that drop its objects, newest first,
-- because a newer object may depend on an older one.
CREATE TEMP VIEW made AS
SELECT d.statement FROM (
    SELECT
        p.oid, format('DROP FUNCTION IF EXISTS %I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(p.oid)) AS statement
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace
    WHERE nspname IN ('loracomp', 'bi') AND prokind = 'f'
    UNION ALL
    SELECT c.oid, format(
        CASE relkind
            WHEN 'v' THEN 'DROP VIEW IF EXISTS %I.%I'
            WHEN 'm' THEN 'DROP MATERIALIZED VIEW IF EXISTS %I.%I'
            ELSE 'ALTER TABLE %I.%I DISABLE ROW LEVEL SECURITY'
        END, nspname, relname
    )
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE nspname IN ('loracomp', 'bi') AND (relkind IN ('v', 'm') OR relrowsecurity)
    UNION ALL
    SELECT t.oid, format('DROP TRIGGER IF EXISTS %I ON %I.%I', tgname, nspname, relname)
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE nspname IN ('loracomp', 'bi') AND NOT tgisinternal
    UNION ALL
    SELECT p.oid, format('DROP POLICY IF EXISTS %I ON %I.%I', polname, nspname, relname)
    FROM pg_policy AS p JOIN pg_class AS c ON c.oid = polrelid JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE nspname IN ('loracomp', 'bi')
) AS d
ORDER BY d.oid DESC;
CREATE TEMP TABLE known ON COMMIT DROP AS TABLE pg_temp.made;
CREATE FUNCTION pg_temp.note_file(path text, ordinal integer, checksum text) RETURNS void LANGUAGE sql
BEGIN ATOMIC
    INSERT INTO loracomp.sql_object (path, position, drops, checksum)
    VALUES (path, ordinal, ARRAY(SELECT statement FROM made WHERE statement NOT IN (TABLE known)), checksum);
    INSERT INTO known SELECT statement FROM made WHERE statement NOT IN (TABLE known);
END;
{% endblock %}
{% block end %}

DROP FUNCTION pg_temp.note_file;
DROP VIEW pg_temp.made;
{% endblock %}
{% block again %}

DO $again$
DECLARE
    kept record;
BEGIN
    FOR kept IN SELECT k.statement FROM pg_temp.kept AS k WHERE k.view IS NULL ORDER BY k.ordinal LOOP
        BEGIN
            EXECUTE kept.statement;
        EXCEPTION WHEN undefined_table OR undefined_function OR undefined_column THEN
            RAISE WARNING 'the object is gone, so this was not done again: %', kept.statement;
        END;
    END LOOP;
    SET LOCAL search_path = '';
    FOR kept IN SELECT k.view, k.statement FROM pg_temp.kept AS k WHERE k.view IS NOT NULL ORDER BY k.ordinal LOOP
        BEGIN
            EXECUTE kept.statement;
        EXCEPTION WHEN OTHERS THEN
            RAISE EXCEPTION 'your view % does not fit this release (%)', kept.view, sqlerrm
                USING HINT = 'drop the view, run the command again, then create a view that fits';
        END;
    END LOOP;
    SET LOCAL search_path = loracomp, pg_temp;
END
$again$;
{% endblock %}

-- Makes the objects in schema loracomp_parts. `loracomp init` leaves them in place, because users' views and triggers depend on them. Nobody
-- has USAGE on the schema, so no user can name an object in it.
--   for all declarations
--     hint                trigger function of declared tables: notes which rows were written
--       hint_statement    SQL that notes them
--     sees_statement      SQL that asks whether row security shows a row
--     sees_row            runs it with the rights of the view's reader
--     correct             trigger function of the views, for UPDATE ... SET correct: 60_correct.sql
--     thresholds          the confidences above which answers are certain: 65_certain.sql
--   for each declaration
--     answers_ID          the answers, for the table's owner, whose view reads this view. It contains the declaration's number as a constant,
--                         so that a reader's plan looks at no other declaration's hints
--     read_ID             runs a statement with the rights of the table's owner
--   functions that make, renew and drop these
--     make_parts          makes answers_ID and read_ID
--       make_answers_view
--     add_triggers        makes the triggers on the table and its partitions
--     drop_parts          drops all of these
--       lock_tables       24_locks.sql
--
-- A user's table is never read with the rights of loracomp's owner. hint and correct do run with these rights, but they read only the rows of
-- the statement that fired them, and convert only key columns, whose types are built in (key_forms).

-- Reads only the catalog. The SQL reads the transition tables old_row and new_row; $1 is the transaction. Returns null if the key no longer has
-- the declared columns, or if the transaction is older than the declaration and can't see it: all rows must then be read. An updated row counts if
-- a column of the prompt, the filter or the key has changed. A change of any column counts if one of these columns is virtual, because transition
-- tables have no values of virtual columns, and unless the isolation level is READ COMMITTED, because the transaction may not see that
-- alter_answers has added a column. Rows are compared as bytes, because comparing values may run a user's code.
CREATE FUNCTION loracomp.hint_statement(declaration_id integer, operation text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    key text;
    image text;
BEGIN
    SELECT string_agg(format(f.written, format('s.%I', a.attname)), ', ' ORDER BY k.ordinal) INTO key
    FROM loracomp.declaration AS d
    CROSS JOIN LATERAL unnest(d.key_columns) WITH ORDINALITY AS k (number, ordinal)
    JOIN pg_attribute AS a ON a.attrelid = d.source AND a.attnum = k.number
    CROSS JOIN LATERAL loracomp.key_forms(a.atttypid) AS f
    WHERE d.id = hint_statement.declaration_id AND d.source_identity = loracomp.identity_of(d.source) -- a restored table's columns may have other numbers
    GROUP BY d.id HAVING count(*) = cardinality(d.key_columns);
    IF key IS NULL OR operation = 'TRUNCATE' THEN
        RETURN NULL;
    END IF;
    IF operation <> 'UPDATE' THEN
        RETURN format(
            'INSERT INTO loracomp.answer_hint (declaration_id, written_in, key)
            SELECT %1$s, $1, ARRAY[%2$s] FROM %3$s AS s WHERE pg_column_size(ARRAY[%2$s]) <= 2600',
            declaration_id, key, CASE operation WHEN 'INSERT' THEN 'new_row' ELSE 'old_row' END
        );
    END IF;
    SELECT string_agg(format('s.%I', a.attname), ', ') INTO image
    FROM loracomp.declaration AS d JOIN pg_attribute AS a ON a.attrelid = d.source
    WHERE d.id = hint_statement.declaration_id AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v' AND (
        a.attnum = ANY (d.columns || d.key_columns) OR current_setting('transaction_isolation') <> 'read committed' OR EXISTS (
            SELECT FROM pg_attribute AS v WHERE v.attrelid = d.source AND v.attnum = ANY (d.columns) AND v.attgenerated = 'v'
        )
    );
    RETURN format(
        'INSERT INTO loracomp.answer_hint (declaration_id, written_in, key)
        SELECT %1$s, $1, coalesce(o.key, n.key)
        FROM (SELECT ARRAY[%2$s] AS key, ROW(%3$s) AS image FROM old_row AS s) AS o
        FULL JOIN (SELECT ARRAY[%2$s] AS key, ROW(%3$s) AS image FROM new_row AS s) AS n ON o.key = n.key
        WHERE record_image_eq(o.image, n.image) IS NOT TRUE AND pg_column_size(coalesce(o.key, n.key)) <= 2600',
        declaration_id, key, image
    );
END
$$;
COMMENT ON FUNCTION loracomp.hint_statement IS 'SQL by which a declaration''s trigger notes the rows that an INSERT, UPDATE or DELETE has written.';

-- The application's statement must not fail and must not wait long. If hints can't be written, a full scan is requested instead. If that fails
-- too, for example while loracomp is being upgraded, the daily scan finds the rows; an upgrade also ends with a scan. The triggers may be on
-- another table than the declaration's: on a copy that pg_restore has made, or on a partition that was detached. Then nothing is noted. Nor
-- is anything if there is no declaration, unless the transaction may be older than the declaration. A table may have many declarations, and MERGE
-- fires three triggers of each: so once a transaction has waited in vain, it takes only what is free.
CREATE OR REPLACE FUNCTION loracomp_parts.hint() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '300ms' -- for each of two tables
AS $$
DECLARE
    source regclass; -- not computed here, because the handler below doesn't catch what fails here
    statement text;
    noted bigint;
BEGIN
    PERFORM set_config('lock_timeout', '1ms', TRUE) WHERE current_setting('loracomp.has_waited', TRUE) = 'on';
    BEGIN
        source := (SELECT d.source FROM loracomp.declaration AS d WHERE d.id = tg_argv[0]::integer);
        IF source <> tg_relid AND source IS DISTINCT FROM pg_partition_root(tg_relid)
            OR source IS NULL AND current_setting('transaction_isolation') = 'read committed'
        THEN
            RETURN NULL;
        END IF;
        statement := loracomp.hint_statement(tg_argv[0]::integer, tg_op);
        IF statement IS NULL THEN
            INSERT INTO loracomp.scan_request (declaration_id) VALUES (tg_argv[0]::integer);
        ELSE
            EXECUTE statement USING pg_current_xact_id()::text::bigint;
        END IF;
        GET DIAGNOSTICS noted = ROW_COUNT;
        IF noted > 0 THEN
            PERFORM loracomp.notify('loracomp_keep', '');
        END IF;
    EXCEPTION WHEN OTHERS THEN
        PERFORM set_config('loracomp.has_waited', 'on', TRUE) WHERE sqlstate = '55P03';
        BEGIN
            INSERT INTO loracomp.scan_request (declaration_id) VALUES (tg_argv[0]::integer);
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
    END;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION loracomp_parts.hint FROM public;

-- Reads only the catalog. It uses the current names of the table and its key, because another table may have got the old name.
CREATE OR REPLACE FUNCTION loracomp_parts.sees_statement(declaration_id integer) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT format(
        'SELECT EXISTS (SELECT FROM %s WHERE (%s) = (%s))',
        loracomp.source_sql(d), loracomp.key_columns(d), loracomp.key_values(d, '$1')
    )
    FROM loracomp.declaration AS a CROSS JOIN LATERAL loracomp.with_current_names(a) AS d WHERE a.id = sees_statement.declaration_id;
$$;

CREATE OR REPLACE FUNCTION loracomp_parts.sees_row(statement text, key text[]) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_seen boolean;
BEGIN
    EXECUTE statement INTO is_seen USING key;
    RETURN is_seen;
END
$$;

-- The view doesn't depend on the promise, because replacing the view would wait for everybody who reads it, and other readers would wait behind that.
-- A row that was written shows as stale at once, or as waiting if it has no answer but, for example, a refusal, so that wait_for_answer waits. After a
-- declaration was altered, its old answers are stale until the scan has reached their rows. In a SERIALIZABLE transaction, the view doesn't
-- look at this, or at hints. The hints of all tables share the pages of one index, so otherwise Postgres would make transactions that read any
-- declaration's view fail while others write to any declared table.
CREATE FUNCTION loracomp.make_answers_view(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE VIEW loracomp_parts.answers_%1$s AS
        SELECT
            r.key, r.answer, r.confidence, r.shown AS status, CASE WHEN r.shown <> ''waiting'' THEN r.reason END AS reason,
            CASE WHEN r.corrections IS NULL THEN r.answered_by ELSE r.corrections || '' corrections'' END AS answered_by,
            r.answered_at, r.correct, r.job_id,
            CASE WHEN r.shown = ''answered'' THEN r.confidence > (
                (SELECT loracomp_parts.thresholds(%1$s)) ->> concat(r.setup, '' '', r.answer)
            )::double precision END AS certain
        FROM (
            SELECT
                o.key, o.answer, o.confidence, o.reason, o.answered_by, o.corrections, o.setup, o.answered_at, o.correct, o.job_id,
                CASE
                    WHEN o.status = ''waiting'' OR (SELECT current_setting(''transaction_isolation'')) <> ''serializable'' AND (
                        EXISTS (SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = %1$s AND h.key = o.key)
                        OR o.job_id <= (SELECT d.stale_to_job FROM loracomp.declaration AS d WHERE d.id = %1$s)
                    ) THEN CASE WHEN o.answer IS NULL THEN ''waiting'' ELSE ''stale'' END
                    ELSE o.status
                END AS shown
            FROM loracomp.answer_row AS o WHERE o.declaration_id = %1$s
        ) AS r',
        d.id
    );
END
$$;
COMMENT ON FUNCTION loracomp.make_answers_view IS 'Makes the view answers_ID of a declaration, or replaces its definition.';

-- Postgres requires that a function's new owner has CREATE on its schema. Granting that on loracomp_parts, even for a moment, would update a
-- catalog row that other create_answers calls would wait for. So read_ID is first made in a schema of its own.
-- All settings that decide how Postgres writes a value as text are fixed, because prompts from two sessions are compared.
CREATE FUNCTION loracomp.make_parts(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET client_min_messages = warning
AS $make$
BEGIN
    PERFORM loracomp.make_answers_view(d);
    EXECUTE format(
        'GRANT SELECT ON loracomp_parts.answers_%1$s TO %2$I;
        DROP FUNCTION IF EXISTS loracomp_parts.read_%1$s;
        CREATE SCHEMA loracomp_parts_%1$s;
        CREATE FUNCTION loracomp_parts_%1$s.read_%1$s(statement text, argument jsonb) RETURNS jsonb
        LANGUAGE plpgsql VOLATILE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET datestyle = ''ISO'' SET timezone = ''UTC'' SET intervalstyle = ''postgres'' SET extra_float_digits = 1
        SET bytea_output = ''hex'' SET lc_monetary = ''C'' SET quote_all_identifiers = off
        AS %3$L;
        REVOKE ALL ON FUNCTION loracomp_parts_%1$s.read_%1$s FROM public;
        GRANT CREATE ON SCHEMA loracomp_parts_%1$s TO %2$I;
        ALTER FUNCTION loracomp_parts_%1$s.read_%1$s OWNER TO %2$I;
        ALTER FUNCTION loracomp_parts_%1$s.read_%1$s SET SCHEMA loracomp_parts;
        DROP SCHEMA loracomp_parts_%1$s',
        d.id, d.owner, format($read$
            DECLARE
                result jsonb;
            BEGIN
                IF current_user <> %L THEN -- an owner can make a function run with its caller's rights
                    RAISE EXCEPTION 'the function that reads the rows must run with the rights of its owner';
                END IF;
                EXECUTE statement INTO result USING argument;
                RETURN result;
            END
            $read$, d.owner)
    );
END
$make$;
COMMENT ON FUNCTION loracomp.make_parts IS 'Makes or renews a declaration''s objects in schema loracomp_parts.';

-- The triggers fire once a statement, because row triggers would make partitioned tables slow. A statement fires only the triggers of the
-- table that it names, so each partition has triggers too; partitions that were added since the last call get theirs now.
CREATE FUNCTION loracomp.add_triggers(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format(
            'CREATE TRIGGER loracomp_%s_%s AFTER %2$s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION loracomp_parts.hint(%1$s)',
            d.id, e.event, t.source, e.tables
        )
        FROM (SELECT d.source UNION SELECT p.relid FROM pg_partition_tree(d.source) AS p) AS t (source)
        CROSS JOIN (VALUES
            ('insert', 'REFERENCING NEW TABLE AS new_row'),
            ('update', 'REFERENCING OLD TABLE AS old_row NEW TABLE AS new_row'),
            ('delete', 'REFERENCING OLD TABLE AS old_row'),
            ('truncate', '')
        ) AS e (event, tables)
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger AS g WHERE g.tgrelid = t.source AND g.tgname = format('loracomp_%s_%s', d.id, e.event)
        )
    LOOP
        EXECUTE statement;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.add_triggers IS 'Makes the triggers that a declaration''s table and its partitions still lack.';

-- It works even if the table or the view is gone. Triggers on another owner's table, which pg_restore may have copied, are left: dropping them would
-- wait for whoever uses that table, and they do nothing. With `locks` it waits for the tables for two seconds at most, all together; otherwise the
-- caller's lock_timeout applies to each of them. Whoever reads the view has locked its table too, so the table is locked first.
CREATE FUNCTION loracomp.drop_parts(d loracomp.declaration, locks boolean) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
    tables CONSTANT regclass[] := ARRAY(
        SELECT DISTINCT g.tgrelid FROM pg_trigger AS g JOIN pg_class AS c ON c.oid = g.tgrelid
        WHERE g.tgfoid = 'loracomp_parts.hint'::regproc AND starts_with(g.tgname, format('loracomp_%s_', d.id))
            AND (c.oid = d.source OR pg_get_userbyid(c.relowner) = d.owner)
    );
    statement text;
BEGIN
    IF drop_parts.locks THEN
        PERFORM loracomp.lock_tables(tables, 'ACCESS EXCLUSIVE');
    END IF;
    FOR statement IN
        SELECT format('DROP TRIGGER %I ON %s', g.tgname, g.tgrelid::regclass) FROM pg_trigger AS g
        WHERE g.tgrelid = ANY (tables) AND g.tgfoid = 'loracomp_parts.hint'::regproc AND starts_with(g.tgname, format('loracomp_%s_', d.id))
        UNION ALL
        SELECT format('DROP VIEW %s', c.oid::regclass) FROM pg_class AS c WHERE c.oid = d.view
    LOOP
        EXECUTE statement;
    END LOOP;
    EXECUTE format(
        'DROP VIEW IF EXISTS loracomp_parts.answers_%1$s;
        DROP FUNCTION IF EXISTS loracomp_parts.read_%1$s', d.id
    );
END
$$;
COMMENT ON FUNCTION loracomp.drop_parts IS 'Drops a declaration''s view, its triggers, and its objects in schema loracomp_parts.';

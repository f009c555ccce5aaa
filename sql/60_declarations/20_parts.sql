-- What a declaration makes for itself, in schema loracomp_parts, where loracomp init leaves it in place:
--   make_parts          makes or renews all of them
--     hint_body         the body of hint_ID
--     make_reader       makes read_ID
--       read_body       its body: 22_read.sql
--     from_source       the table as SQL, and key_list columns of the key as SQL: for the view too
--   filter_condition    the filter as SQL: for read_ID and the view
--   key_fits            whether a key can be in an index, as SQL: for read_ID, hint_ID and the view
--   renamed             the declaration with the names that its table and columns have now
--   source_names        names of the table and of the declaration's columns, as they are now
--   numbers_of          numbers of the columns with these names
--   key_of              numbers of the columns of the primary key
--
--   answers_ID          view: the answers of this declaration, for its owner to make the declaration's view of
--   hint_ID             function of triggers on the table: notes which rows were written
--   missed_ID           sequence: the last transaction whose hints could not be written; it keeps what is rolled back
--   sees_ID             whether the reader of the view may see a row; it runs with the reader's rights
--   names_ID            the names that the table and the columns of its key have now, for sees_ID
--   correct_ID          function of the trigger on the view: UPDATE ... SET correct
--   read_ID             reads rows and makes their prompts; the table's owner owns it, so it runs with that role's rights
--
-- Our own rights are never used to read a user's table. A table's owner could make read_ID run with its caller's rights, so it checks
-- whose rights it has. hint_ID and correct_ID have our rights, so they convert no value whose type a user may have made: as long as the
-- view is there, the key's columns keep their types.

-- Reads only. The name of the table, then the names of columns and key_columns. Null for a column that was dropped.
CREATE FUNCTION loracomp.source_names(source regclass, columns smallint[]) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT ARRAY[source::text] || ARRAY(
        SELECT a.attname FROM pg_catalog.unnest(columns) WITH ORDINALITY AS c (number, place)
        LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = source AND a.attnum = c.number AND NOT a.attisdropped
        ORDER BY c.place
    );
$$;
COMMENT ON FUNCTION loracomp.source_names IS 'Names of a table and of these of its columns, as they are now.';

-- Reads only. Null for a name that no column has.
CREATE FUNCTION loracomp.numbers_of(source regclass, names text[]) RETURNS smallint[]
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT ARRAY(
        SELECT a.attnum FROM unnest(names) WITH ORDINALITY AS n (name, place)
        LEFT JOIN pg_attribute AS a ON a.attrelid = source AND a.attname = n.name AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY n.place
    );
$$;
COMMENT ON FUNCTION loracomp.numbers_of IS 'The numbers of a table''s columns with these names.';

-- Reads only the catalog. In the prompt and in the filter, names of columns are the new ones; a column that was dropped keeps its name.
-- After dump and restore columns may have other numbers, so they are found by name.
CREATE FUNCTION loracomp.renamed(d loracomp.declaration) RETURNS loracomp.declaration
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    before CONSTANT text[] := d.names;
BEGIN
    IF d.source_oid <> d.source THEN
        d.columns := loracomp.numbers_of(d.source, before[2 : cardinality(d.columns) + 1]);
        d.key_columns := loracomp.numbers_of(d.source, before[cardinality(d.columns) + 2 :]);
    END IF;
    d.names := ARRAY(
        SELECT coalesce(n.now, n.name)
        FROM ROWS FROM (unnest(before), unnest(loracomp.source_names(d.source, d.columns || d.key_columns)))
            WITH ORDINALITY AS n (name, now, place)
        ORDER BY n.place
    );
    IF d.names <> before THEN
        d.prompt := (
            SELECT string_agg(coalesce(
                replace(replace(p.literal, '{', '{{'), '}', '}}'), format('{%s}', d.names[array_position(before[2 :], p.col) + 1])
            ), '' ORDER BY p.place)
            FROM loracomp.prompt_pieces(d.prompt) AS p
        );
        d.filter := (
            SELECT coalesce(jsonb_object_agg(d.names[array_position(before[2 :], f.key) + 1], f.value), '{}') FROM jsonb_each(d.filter) AS f
        );
    END IF;
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.renamed IS 'A declaration with the names that its table and its columns have now.';

-- Reads only. Empty for a table without one.
CREATE FUNCTION loracomp.key_of(source regclass) RETURNS smallint[]
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT ARRAY(SELECT unnest(i.indkey[: i.indnkeyatts - 1]) FROM pg_index AS i WHERE i.indrelid = key_of.source AND i.indisprimary);
$$;
COMMENT ON FUNCTION loracomp.key_of IS 'The numbers of the columns of a table''s primary key.';

-- Reads only. SQL for each column of a declaration's key, as a list. The form has %1$s for the column, %2$s for its value as text,
-- %3$s for its value as read from the array of texts `key`, %4$s for its name, and %5$s for its name and type as literals.
CREATE FUNCTION loracomp.key_list(
    d loracomp.declaration, form text, alias text DEFAULT 's', key text DEFAULT 'k.key', separator text DEFAULT ', '
) RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT string_agg(
        format(
            form, c.name, format(f.written, c.name), format(f.read, format('%s[%s]', key, k.place)), quote_ident(a.attname),
            format('(%L, %s)', a.attname, a.atttypid)
        ), separator ORDER BY k.place
    )
    FROM unnest(d.key_columns) WITH ORDINALITY AS k (number, place)
    JOIN pg_attribute AS a ON a.attrelid = d.source AND a.attnum = k.number
    CROSS JOIN LATERAL (SELECT format('%s.%I', alias, a.attname)) AS c (name)
    CROSS JOIN LATERAL loracomp.key_forms(a.atttypid) AS f;
$$;
COMMENT ON FUNCTION loracomp.key_list IS 'SQL for each column of a declaration''s key, in a form, as a list. For make_parts.';

-- Reads only the catalog. Values are compared as their column's type does, so that true is t and 2.50 is 2.5; those of types that keys
-- can't have, as text.
CREATE FUNCTION loracomp.filter_condition(d loracomp.declaration, alias text DEFAULT 's') RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT coalesce(string_agg(
        format(
            CASE WHEN f.value @> 'null' THEN '(%1$I.%2$I IS NULL OR ' ELSE '(' END
            || CASE WHEN t.name IS NULL THEN 'pg_catalog.concat(%1$I.%2$I)' ELSE '%1$I.%2$I' END || ' OPERATOR(pg_catalog.=) ANY (%3$L::%4$s[]))',
            alias, f.key, ARRAY(SELECT e #>> '{}' FROM jsonb_path_query(f.value, 'lax $[*]') AS e), coalesce(t.name, 'pg_catalog.text')
        ), ' AND ' ORDER BY f.key
    ), 'true')
    FROM jsonb_each(d.filter) AS f
    LEFT JOIN pg_attribute AS a ON a.attrelid = d.source AND a.attname = f.key
    LEFT JOIN LATERAL (
        SELECT format_type(a.atttypid, NULL) AS name
        WHERE a.atttypid <> 'bpchar'::regtype AND (loracomp.key_forms(a.atttypid)).read IS NOT NULL -- character would be one letter
    ) AS t ON TRUE;
$$;
COMMENT ON FUNCTION loracomp.filter_condition IS 'A declaration''s filter as a condition of SQL.';

-- Reads only the catalog. answer_row's index has keys of at most 2,704 bytes; the table's own index compresses longer ones. Only these
-- types can be that long.
CREATE FUNCTION loracomp.key_fits(d loracomp.declaration, key text) RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT CASE WHEN count(*) > 0 THEN format('pg_catalog.pg_column_size(%s) OPERATOR(pg_catalog.<=) 2600', key_fits.key) ELSE 'true' END
    FROM pg_attribute AS a
    WHERE a.attrelid = d.source AND a.attnum = ANY (d.key_columns)
        AND a.atttypid = ANY ('{text,varchar,bpchar,numeric}'::regtype[]);
$$;
COMMENT ON FUNCTION loracomp.key_fits IS 'SQL for whether a key is short enough to be asked.';

-- Reads only the catalog. Statements are noted by one INSERT for all their rows. Triggers of a partitioned table are for each row, because
-- those for statements are not run where a statement names a partition.
CREATE FUNCTION loracomp.hint_body(d loracomp.declaration) RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $make$
    SELECT format($body$
        BEGIN
            IF (SELECT count(*) FROM pg_attribute AS a WHERE a.attrelid = tg_relid AND (a.attname, a.atttypid) IN (%6$s)) <> %7$s THEN
                RAISE 'the key has other columns'; -- planning the conversion of another type may run code of its owner
            END IF;
            CASE tg_level || ' ' || tg_op
                WHEN 'STATEMENT INSERT' THEN
                    INSERT INTO loracomp.answer_hint (declaration_id, key) SELECT %1$s, ARRAY[%3$s] FROM new_row WHERE %9$s;
                WHEN 'STATEMENT DELETE' THEN
                    INSERT INTO loracomp.answer_hint (declaration_id, key) SELECT %1$s, ARRAY[%2$s] FROM old_row WHERE %8$s;
                WHEN 'STATEMENT UPDATE' THEN
                    INSERT INTO loracomp.answer_hint (declaration_id, key)
                    SELECT %1$s, k.key FROM old_row FULL JOIN new_row ON ARRAY[%2$s] = ARRAY[%3$s]
                    CROSS JOIN LATERAL (SELECT ARRAY[%2$s] UNION SELECT ARRAY[%3$s]) AS k (key)
                    WHERE k.key[1] IS NOT NULL AND %10$s AND record_image_ne(ROW(%4$s), ROW(%5$s)); -- comparing images calls no user's code
                WHEN 'STATEMENT TRUNCATE' THEN
                    INSERT INTO loracomp.answer_hint (declaration_id, key) VALUES (%1$s, '{}');
                ELSE -- for each row; old or new may be null
                    INSERT INTO loracomp.answer_hint (declaration_id, key)
                    SELECT %1$s, k.key FROM (SELECT old.*) AS old_row CROSS JOIN (SELECT new.*) AS new_row
                    CROSS JOIN LATERAL (SELECT ARRAY[%2$s] UNION SELECT ARRAY[%3$s]) AS k (key)
                    WHERE k.key[1] IS NOT NULL AND %10$s AND record_image_ne(ROW(%4$s), ROW(%5$s));
            END CASE;
            IF found AND current_setting('loracomp.notify', true) IS DISTINCT FROM 'off' AND pg_notification_queue_usage() < 0.5 THEN
                PERFORM pg_notify('loracomp_keep', '');
            END IF;
            RETURN NULL;
        EXCEPTION WHEN OTHERS THEN -- the application's statement must not fail; all rows are looked at later
            PERFORM setval('loracomp_parts.missed_%1$s', greatest(pg_current_xact_id()::text::bigint, (
                SELECT m.last_value FROM loracomp_parts.missed_%1$s AS m
                WHERE m.last_value < pg_snapshot_xmax(pg_current_snapshot())::text::bigint -- not that of a server restored from
            )));
            RETURN NULL;
        END
        $body$,
        d.id, loracomp.key_list(d, '%2$s', 'old_row'), loracomp.key_list(d, '%2$s', 'new_row'),
        string_agg(format('old_row.%I', a.attname), ', '), string_agg(format('new_row.%I', a.attname), ', '),
        loracomp.key_list(d, '%5$s'), cardinality(d.key_columns),
        loracomp.key_fits(d, format('ARRAY[%s]', loracomp.key_list(d, '%2$s', 'old_row'))),
        loracomp.key_fits(d, format('ARRAY[%s]', loracomp.key_list(d, '%2$s', 'new_row'))), loracomp.key_fits(d, 'k.key')
    )
    FROM pg_attribute AS a
    WHERE a.attrelid = d.source AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v' AND (
        a.attnum = ANY (d.columns || d.key_columns) OR EXISTS ( -- triggers don't see virtual columns, but those that they are made of
            SELECT FROM pg_attribute AS v WHERE v.attrelid = d.source AND v.attnum = ANY (d.columns) AND v.attgenerated = 'v'
        )
    );
$make$;
COMMENT ON FUNCTION loracomp.hint_body IS 'The body of the trigger function that notes which rows of a declaration''s table were written.';

-- SQL for a declaration's table in FROM, as s. A table's children by inheritance have keys of their own.
CREATE FUNCTION loracomp.from_source(d loracomp.declaration) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT format('%s %s AS s', CASE WHEN c.relkind <> 'p' THEN 'ONLY' END, (d).names[1])
    FROM pg_catalog.pg_class AS c WHERE c.oid = (d).source
);
COMMENT ON FUNCTION loracomp.from_source IS 'A declaration''s table as SQL, without those that inherit from it. For make_parts.';

CREATE FUNCTION loracomp.make_reader(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET client_min_messages = warning
AS $make$
BEGIN
    EXECUTE format($parts$
        DROP FUNCTION IF EXISTS loracomp_parts.read_%1$s; -- another release may return something else
        -- Who is given a function must have CREATE on its schema. Granting that on loracomp_parts, even for a moment, would change a row of
        -- the catalog for which all other declarations that are being made would wait. So the function is made in a schema of its own.
        CREATE SCHEMA loracomp_parts_%1$s;
        CREATE FUNCTION loracomp_parts_%1$s.read_%1$s(keys jsonb, last text[], most integer)
        RETURNS jsonb LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        SET datestyle = 'ISO' SET timezone = 'UTC' SET intervalstyle = 'postgres' SET extra_float_digits = 1
        AS %3$L;
        REVOKE ALL ON FUNCTION loracomp_parts_%1$s.read_%1$s FROM public;
        GRANT CREATE ON SCHEMA loracomp_parts_%1$s TO %2$I;
        ALTER FUNCTION loracomp_parts_%1$s.read_%1$s OWNER TO %2$I;
        ALTER FUNCTION loracomp_parts_%1$s.read_%1$s SET SCHEMA loracomp_parts;
        DROP SCHEMA loracomp_parts_%1$s
        $parts$,
        d.id, d.owner, loracomp.read_body(d)
    );
END
$make$;
COMMENT ON FUNCTION loracomp.make_reader IS 'Makes or renews the function that reads a declaration''s rows.';

CREATE FUNCTION loracomp.make_parts(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET client_min_messages = warning
AS $make$
DECLARE
    of_any_name loracomp.declaration := d;
BEGIN
    of_any_name.names[1] := '%s';
    EXECUTE format($parts$
        CREATE OR REPLACE VIEW loracomp_parts.answers_%1$s AS
        SELECT
            r.key, r.answer, r.confidence,
            CASE
                WHEN r.answer IS NOT NULL AND (
                    r.status = 'asked' OR r.key IN (
                        SELECT h.key FROM loracomp.answer_hint AS h WHERE h.declaration_id = %1$s
                            AND h.written_in >= (SELECT a.hints_from FROM loracomp.declaration AS a WHERE a.id = %1$s)
                    )
                ) THEN 'stale'
                ELSE r.status
            END AS status,
            r.reason, r.answered_by, r.answered_at, r.correct, r.job_id
        FROM loracomp.answer_row AS r WHERE r.declaration_id = %1$s;
        GRANT SELECT ON loracomp_parts.answers_%1$s TO %2$I;

        CREATE SEQUENCE IF NOT EXISTS loracomp_parts.missed_%1$s MINVALUE 0 START 0;

        CREATE OR REPLACE FUNCTION loracomp_parts.hint_%1$s() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp SET lock_timeout = '2s'
        AS %3$L; -- it stays everybody's: who makes a partition must have it, for the triggers that are copied; but nobody can name it

        CREATE OR REPLACE FUNCTION loracomp_parts.sees_%1$s(key text[], names text[]) RETURNS boolean
        LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
        AS %4$L;

        CREATE OR REPLACE FUNCTION loracomp_parts.names_%1$s() RETURNS text[]
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
        AS $names$
            SELECT n.names[1] || n.names[cardinality(n.columns) + 2 :]
            FROM loracomp.declaration AS a CROSS JOIN LATERAL loracomp.renamed(a) AS n WHERE a.id = %1$s
        $names$;

        CREATE OR REPLACE FUNCTION loracomp_parts.correct_%1$s() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
        AS %5$L;
        REVOKE ALL ON FUNCTION loracomp_parts.correct_%1$s FROM public
        $parts$,
        d.id, d.owner, loracomp.hint_body(d),
        format(
            -- Names are those of the statement that reads the view: another table may have the old ones since.
            $sees$
            DECLARE
                is_seen boolean;
            BEGIN
                IF names = %1$L::text[] THEN
                    RETURN EXISTS (SELECT FROM %2$s WHERE %3$s);
                END IF;
                EXECUTE format(%4$L, VARIADIC names) INTO is_seen USING key;
                RETURN is_seen;
            END
            $sees$,
            d.names[1] || d.names[cardinality(d.columns) + 2 :], loracomp.from_source(d),
            loracomp.key_list(d, '%1$s = %3$s', key => '$1', separator => ' AND '),
            format(
                'SELECT EXISTS (SELECT FROM %s WHERE %s)', loracomp.from_source(of_any_name),
                loracomp.key_list(d, 's.%%I = %3$s', key => '$1', separator => ' AND ')
            )
        ),
        format(
            -- The view's first columns are the key, even if they were renamed. record_image_ne compares bytes and runs no user's code.
            $correct$
            DECLARE
                but_correct record;
            BEGIN
                IF pg_typeof(new.correct) <> 'text'::regtype THEN
                    RAISE feature_not_supported USING MESSAGE = 'correct is no longer the view''s own column';
                END IF;
                but_correct := new;
                but_correct.correct := old.correct;
                PERFORM loracomp.write_correction(
                    %s, (SELECT ARRAY[%s] FROM (SELECT old.*) AS s (%s)), new.correct, record_image_ne(old, but_correct)
                );
                RETURN new;
            END
            $correct$,
            d.id, loracomp.key_list(d, '%2$s'), loracomp.key_list(d, '%4$s')
        )
    );
    PERFORM loracomp.make_reader(d);
END
$make$;
COMMENT ON FUNCTION loracomp.make_parts IS 'Makes or renews what a declaration has in schema loracomp_parts.';

-- Looks a declaration's table up in the catalog, and writes SQL that reads it. These functions only read the catalog.
--   identity_of         server, database and oid of a table
--   primary_key_of      numbers of the columns of a table's primary key
--   parts_of            partitions of a table
--   numbers_of          numbers of columns, by their names
--   source_names        names of a table and of some of its columns
--   with_current_names  a declaration with the current names of its table and columns
--   with_all_columns    the same; raises if a column was dropped
--   check_same_owner    refuses a table that was given away
--   source_has_changed  whether follow_source has something to do or to refuse; due_declarations calls it
--   prompt_columns      numbers of the columns that a prompt names
--   key_columns_of      the columns of a declaration's key
--   SQL expressions about a row of the table, which the statement calls s:
--     source_sql        the table, for FROM
--     key_array         the key of a row, as answer_row has it
--     key_columns       the columns of the key
--     key_values        the values of these columns, from an array of texts
--     filter_condition  whether a row passes the filter
--       filter_values   the values that a filter allows; fixed_filter calls it too
--       base_type       the type under a domain; check_enum_values calls it too

-- The oid alone doesn't tell that a database was restored: servers give the same oids to objects that are made in the same order, so a table often
-- gets its oid again when a restored database is dumped and restored.
CREATE FUNCTION loracomp.identity_of(source regclass) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT concat_ws('/', s.system_identifier, d.oid, source::oid)
    FROM pg_control_system() AS s JOIN pg_database AS d ON d.datname = current_database();
END;
COMMENT ON FUNCTION loracomp.identity_of IS
'Server, database and oid of a table. Another one means that the database was restored from a dump, copied, or upgraded by pg_upgrade.';

-- An index that isn't valid enforces nothing. ALTER TABLE ONLY makes one on a partitioned table.
CREATE FUNCTION loracomp.primary_key_of(source regclass) RETURNS smallint[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT ARRAY(
        SELECT unnest((i.indkey::smallint[])[0:i.indnkeyatts - 1])
        FROM pg_index AS i WHERE i.indrelid = primary_key_of.source AND i.indisprimary AND i.indisvalid
    );
END;
COMMENT ON FUNCTION loracomp.primary_key_of IS 'The numbers of the columns of a table''s primary key; empty for a table without one.';

-- pg_partition_tree would lock each partition, and so wait for whoever has locked one. Other tables that inherit from this one are left out.
CREATE FUNCTION loracomp.parts_of(source regclass) RETURNS TABLE (part regclass)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH RECURSIVE found AS (
        SELECT i.inhrelid FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhparent
        WHERE i.inhparent = parts_of.source AND c.relkind = 'p'
        UNION ALL
        SELECT i.inhrelid FROM found AS f JOIN pg_inherits AS i ON i.inhparent = f.inhrelid
    )
    SELECT f.inhrelid FROM found AS f;
END;
COMMENT ON FUNCTION loracomp.parts_of IS 'The partitions of a table, also those of its partitions; none if it is not partitioned. Locks nothing.';

CREATE FUNCTION loracomp.numbers_of(source regclass, names text[]) RETURNS smallint[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT ARRAY(
        SELECT a.attnum FROM unnest(names) WITH ORDINALITY AS n (name, ordinal)
        LEFT JOIN pg_attribute AS a
            ON a.attrelid = source AND a.attname = n.name AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY n.ordinal
    );
END;
COMMENT ON FUNCTION loracomp.numbers_of IS 'The numbers of a table''s columns with these names; null for a name that no column has.';

-- The search path is fixed, so that the table's name has its schema.
CREATE FUNCTION loracomp.source_names(source regclass, columns smallint[]) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT ARRAY[source::text] || ARRAY(
        SELECT a.attname FROM unnest(columns) WITH ORDINALITY AS c (number, ordinal)
        LEFT JOIN pg_attribute AS a ON a.attrelid = source AND a.attnum = c.number AND NOT a.attisdropped
        ORDER BY c.ordinal
    );
$$;
COMMENT ON FUNCTION loracomp.source_names IS 'The name of a table, followed by the names of these columns; null for a dropped column.';

-- The prompt and the filter contain column names, so they are rewritten when a column is renamed. A dropped column keeps its last name. After
-- a dump and restore the columns may have other numbers, so they are found by name.
CREATE FUNCTION loracomp.with_current_names(d loracomp.declaration) RETURNS loracomp.declaration
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    before CONSTANT text[] := d.names;
    odd text;
BEGIN
    IF d.source_identity <> loracomp.identity_of(d.source) THEN
        d.columns := loracomp.numbers_of(d.source, before[2 : cardinality(d.columns) + 1]);
        d.key_columns := loracomp.numbers_of(d.source, before[cardinality(d.columns) + 2 :]);
    END IF;
    d.names := ARRAY(
        SELECT coalesce(n.now, n.name)
        FROM ROWS FROM (unnest(before), unnest(loracomp.source_names(d.source, d.columns || d.key_columns)))
            WITH ORDINALITY AS n (name, now, ordinal)
        ORDER BY n.ordinal
    );
    IF d.names <> before THEN
        odd := (
            SELECT min(n.name)
            FROM loracomp.prompt_pieces(d.prompt) AS p CROSS JOIN LATERAL (SELECT d.names[array_position(before[2 :], p.col) + 1]) AS n (name)
            WHERE n.name ~ '[{}]'
        );
        IF odd IS NOT NULL THEN
            RAISE EXCEPTION 'column % of the prompt has a name with a brace now: rename it', quote_ident(odd) USING ERRCODE = 'invalid_name';
        END IF;
        d.prompt := (
            SELECT string_agg(coalesce(
                replace(replace(p.literal, '{', '{{'), '}', '}}'), format('{%s}', d.names[array_position(before[2 :], p.col) + 1])
            ), '' ORDER BY p.ordinal)
            FROM loracomp.prompt_pieces(d.prompt) AS p
        );
        d.filter := (
            SELECT coalesce(jsonb_object_agg(d.names[array_position(before[2 :], f.key) + 1], f.value), '{}') FROM jsonb_each(d.filter) AS f
        );
    END IF;
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.with_current_names IS 'A declaration with the current names of its table and columns.';

-- follow_source and corrections call it.
CREATE FUNCTION loracomp.with_all_columns(d loracomp.declaration) RETURNS loracomp.declaration
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    dropped text;
BEGIN
    d := loracomp.with_current_names(d);
    SELECT string_agg(quote_ident(o.name), ', ') INTO dropped
    FROM unnest(d.names, loracomp.source_names(d.source, d.columns || d.key_columns)) AS o (name, found) WHERE o.found IS NULL;
    IF dropped IS NOT NULL THEN
        RAISE EXCEPTION 'column % was dropped: give another prompt by alter_answers', dropped USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.with_all_columns IS
'A declaration with the current names of its table and columns. Raises if one of the columns was dropped.';

CREATE FUNCTION loracomp.check_same_owner(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    owner CONSTANT name := (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = d.source);
BEGIN
    IF owner <> d.owner THEN
        RAISE EXCEPTION 'table % belongs to % now, who may drop this declaration and make another', d.names[1], owner
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_same_owner IS 'Raises if a declaration''s table belongs to another role than when it was declared.';

-- Reads only the catalog. Of what follow_source refuses, this notices what nobody writes a row for, because it may go on for a day: statements that
-- name the table of which this one has become a part fire no trigger here. A renamed column is noted at once, because after a dump and restore
-- it is found by its name.
CREATE FUNCTION loracomp.source_has_changed(d loracomp.declaration) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT NOT EXISTS (SELECT FROM pg_class AS v WHERE v.oid = (d).view)
        OR NOT EXISTS (
            SELECT FROM pg_class AS c
            WHERE c.oid = (d).source AND pg_get_userbyid(c.relowner) = (d).owner AND NOT c.relforcerowsecurity
        )
        OR (d).source_identity <> loracomp.identity_of((d).source) -- restored from a dump
        OR EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = (d).source)
        OR loracomp.primary_key_of((d).source) <> (d).key_columns
        OR EXISTS (
            SELECT FROM unnest((d).columns || (d).key_columns, (d).names[2:]) AS n (number, name)
            LEFT JOIN pg_attribute AS t ON t.attrelid = (d).source AND t.attnum = n.number AND NOT t.attisdropped
            WHERE t.attname IS DISTINCT FROM n.name
        );
END;
COMMENT ON FUNCTION loracomp.source_has_changed IS
'Whether a declaration''s table was renamed, dropped, given away, restored or attached, or has lost a column or its key.';

CREATE FUNCTION loracomp.prompt_columns(d loracomp.declaration) RETURNS smallint[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT ARRAY(
        SELECT (d).columns[array_position((d).names[2:], p.col)]
        FROM loracomp.prompt_pieces((d).prompt) AS p WHERE p.col IS NOT NULL ORDER BY p.ordinal
    );
END;
COMMENT ON FUNCTION loracomp.prompt_columns IS
'The numbers of the columns that a declaration''s prompt names. A column that was dropped and added again has another one.';

CREATE FUNCTION loracomp.key_columns_of(d loracomp.declaration)
RETURNS TABLE (ordinal bigint, name name, written text, read text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT k.ordinal, a.attname, f.written, f.read
    FROM unnest((d).key_columns) WITH ORDINALITY AS k (number, ordinal)
    JOIN pg_attribute AS a ON a.attrelid = (d).source AND a.attnum = k.number
    CROSS JOIN LATERAL loracomp.key_forms(a.atttypid) AS f;
END;
COMMENT ON FUNCTION loracomp.key_columns_of IS
'The columns of a declaration''s key, in order, with their key_forms. A column that was dropped, or whose type a key can''t have, is missing.';

-- Tables that inherit from this one have keys of their own, so they are left out.
CREATE FUNCTION loracomp.source_sql(d loracomp.declaration) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT format('%s %s AS s', CASE WHEN c.relkind <> 'p' THEN 'ONLY' END, (d).names[1])
    FROM pg_class AS c WHERE c.oid = (d).source;
END;
COMMENT ON FUNCTION loracomp.source_sql IS 'SQL for a declaration''s table in FROM, as s.';

CREATE FUNCTION loracomp.key_array(d loracomp.declaration) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT format('ARRAY[%s]', string_agg(format(k.written, format('s.%I', k.name)), ', ' ORDER BY k.ordinal))
    FROM loracomp.key_columns_of(d) AS k;
END;
COMMENT ON FUNCTION loracomp.key_array IS 'SQL for the key of the row s, as an array of texts.';

CREATE FUNCTION loracomp.key_columns(d loracomp.declaration) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT string_agg(format('s.%I', k.name), ', ' ORDER BY k.ordinal) FROM loracomp.key_columns_of(d) AS k;
END;
COMMENT ON FUNCTION loracomp.key_columns IS 'SQL for the columns of the key of the row s, as a list.';

CREATE FUNCTION loracomp.key_values(d loracomp.declaration, key text) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT string_agg(format(k.read, format('%s[%s]', key_values.key, k.ordinal)), ', ' ORDER BY k.ordinal)
    FROM loracomp.key_columns_of(d) AS k;
END;
COMMENT ON FUNCTION loracomp.key_values IS 'SQL for the values of the key''s columns, as a list; `key` is SQL for the key as an array of texts.';

CREATE FUNCTION loracomp.base_type(type oid) RETURNS oid
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH RECURSIVE found AS (
        SELECT t.oid, t.typbasetype FROM pg_type AS t WHERE t.oid = base_type.type
        UNION ALL
        SELECT t.oid, t.typbasetype FROM found AS f JOIN pg_type AS t ON t.oid = f.typbasetype
    )
    SELECT f.oid FROM found AS f WHERE f.typbasetype = 0;
END;
COMMENT ON FUNCTION loracomp.base_type IS 'The type under a domain, and under the domains under it; another type itself.';

CREATE FUNCTION loracomp.filter_values(source regclass, filter jsonb)
RETURNS TABLE (key text, value jsonb, allowed text[], type name)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        f.key, f.value, ARRAY(SELECT e #>> '{}' FROM jsonb_path_query(f.value, 'lax $[*]') AS e WHERE e <> 'null'),
        t.typname
    FROM jsonb_each(filter_values.filter) AS f
    LEFT JOIN pg_attribute AS a ON a.attrelid = filter_values.source AND a.attname = f.key
    LEFT JOIN pg_type AS t ON t.oid = loracomp.base_type(a.atttypid) -- a domain is compared as the type under it
        AND (EXISTS (SELECT FROM loracomp.key_forms(t.oid)) OR t.oid = ANY ('{float4,float8,interval}'::regtype[]));
END;
COMMENT ON FUNCTION loracomp.filter_values IS
'The columns of a filter with their allowed values, null left out, and the type by which they are compared; null: as text.';

-- Values are compared by the type of their column, so true equals t, and 2.50 equals 2.5. Columns of other types are compared as text, which
-- must be the same in every session.
CREATE FUNCTION loracomp.filter_condition(d loracomp.declaration) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(string_agg(
        format(
            CASE WHEN f.value @> 'null' THEN '(s.%1$I IS NULL OR %2$s = ANY (%3$L::pg_catalog.%4$I[]))'
                ELSE '%2$s = ANY (%3$L::pg_catalog.%4$I[])'
            END,
            f.key, format(CASE WHEN f.type IS NULL THEN 'concat(s.%I)' ELSE 's.%I' END, f.key),
            f.allowed, coalesce(f.type, 'text')
        ), ' AND ' ORDER BY f.key
    ), 'true')
    FROM loracomp.filter_values((d).source, (d).filter) AS f;
END;
COMMENT ON FUNCTION loracomp.filter_condition IS 'SQL for whether the row s passes a declaration''s filter.';

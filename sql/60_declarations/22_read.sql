-- Reads rows of a declared table with the rights of its owner, for ask_rows, corrections, answers_since and try_prompts.
--   next_keys             the next keys in key order
--   first_hidden          the first of some keys whose row the view doesn't show
--   read_rows             rows by their keys, with their prompts
--     first_megabyte      the first of the keys, whose rows have a megabyte of text together
--     read_prompts        reads these rows; the fault of a row that can't be read says why
--       prompts_statement
--   read_as_owner         runs SQL with the rights of the table's owner; each of these functions calls it
--     check_same_owner    15_source.sql
--     lock_code           25_code.sql
--
-- Keys and rows are passed as JSON arrays of objects: {"key": ["17"]}. The declaration must have
-- its current names (with_current_names).

-- Any side effect of the statement, such as a changed setting, is undone, and the lock of lock_code is released. Reading may run the owner's code,
-- which could call loracomp's functions with the rights of this session. So whoever may have other rights than the owner has the table checked
-- first: administrators and members of the owner's role. The keeper has checked it before. Other readers would run the same code by reading the
-- view, and the lock would make them wait for each other and for autovacuum.
CREATE FUNCTION loracomp.read_as_owner(
    d loracomp.declaration, statement text, argument jsonb DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    result jsonb;
BEGIN
    PERFORM loracomp.check_same_owner(d);
    IF (SELECT count(*) FROM loracomp.key_columns_of(d)) < cardinality(d.key_columns) THEN
        RAISE EXCEPTION 'a column of the key of % was dropped, or has a type that keys can''t have', d.names[1]
            USING ERRCODE = 'wrong_object_type';
    END IF;
    IF loracomp.caller() <> d.owner AND loracomp.may_alter_answers(d) THEN
        PERFORM loracomp.lock_code(d.source, waits => TRUE);
        PERFORM loracomp.check_same_owner(d); -- again, because the lock may have been waited for
        IF d.source::text <> d.names[1] THEN -- the statement would read another table
            RAISE EXCEPTION 'table % was renamed meanwhile', d.names[1] USING ERRCODE = 'object_in_use', HINT = 'try again';
        END IF;
    END IF;
    EXECUTE format('SELECT loracomp_parts.read_%s($1, $2)', d.id) INTO result USING statement, argument;
    RAISE EXCEPTION USING ERRCODE = 'LC001';
EXCEPTION WHEN SQLSTATE 'LC001' THEN
    RETURN result;
END
$$;
COMMENT ON FUNCTION loracomp.read_as_owner IS 'Runs a statement with the rights of the owner of a declaration''s table; returns its JSON.';

CREATE FUNCTION loracomp.next_keys(
    d loracomp.declaration, after text[], most integer, condition text DEFAULT 'true'
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    following text := 'true';
BEGIN
    IF after IS NOT NULL THEN
        following := format('(%s) > (%s)', loracomp.key_columns(d), loracomp.key_values(d, format('(%L::pg_catalog.text[])', after)));
    END IF;
    RETURN loracomp.read_as_owner(d, format(
        'SELECT coalesce(jsonb_agg(jsonb_build_object(''key'', r.key)), ''[]'')
        FROM (SELECT %1$s AS key FROM %2$s WHERE %3$s AND %6$s ORDER BY %4$s LIMIT %5$s) AS r',
        loracomp.key_array(d), loracomp.source_sql(d), following, loracomp.key_columns(d), most, condition
    ));
END
$$;
COMMENT ON FUNCTION loracomp.next_keys IS
'The next keys after a key, in key order; after null, the first keys. `condition` is SQL about the row s.';

-- Row security is not applied, because it does not apply to the owner.
CREATE FUNCTION loracomp.first_hidden(d loracomp.declaration, keys jsonb) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    RETURN loracomp.read_as_owner(d, format(
        'SELECT to_jsonb(min(k.ordinal))
        FROM ROWS FROM (jsonb_to_recordset($1) AS (key pg_catalog.text[])) WITH ORDINALITY AS k (key, ordinal)
        LEFT JOIN LATERAL (SELECT true AS is_shown FROM %1$s WHERE (%2$s) = (%3$s) AND %4$s LIMIT 1) AS s ON true
        WHERE s.is_shown IS NULL',
        loracomp.source_sql(d), loracomp.key_columns(d), loracomp.key_values(d, 'k.key'), loracomp.filter_condition(d)
    ), keys);
END
$$;
COMMENT ON FUNCTION loracomp.first_hidden IS
'The place, from 1, of the first of these keys whose row is gone or does not pass the filter; null if there is none.';

-- The expression of a virtual column may be slow, so such rows are read one by one, for a tenth of a second in all.
CREATE FUNCTION loracomp.read_rows(d loracomp.declaration, keys jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    statement CONSTANT text := loracomp.prompts_statement(d);
    end_at CONSTANT timestamptz := clock_timestamp() + interval '0.1 seconds';
    found_rows jsonb := '[]';
    next_key jsonb;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute AS v WHERE v.attrelid = d.source AND v.attnum = ANY (d.columns) AND v.attgenerated = 'v') THEN
        RETURN loracomp.read_prompts(d, statement, loracomp.first_megabyte(d, keys));
    END IF;
    FOR next_key IN SELECT k FROM jsonb_array_elements(keys) AS k LOOP
        found_rows := found_rows || loracomp.read_prompts(d, statement, jsonb_build_array(next_key));
        EXIT WHEN pg_column_size(found_rows) > 1000000 OR clock_timestamp() > end_at;
    END LOOP;
    RETURN found_rows;
END
$$;
COMMENT ON FUNCTION loracomp.read_rows IS
'Rows of a declaration''s table as a JSON array: key, prompt, whether the row exists and passes the filter, and the reason (fault) if it '
'can''t be read. Rows of the last keys may be missing; they are left for the next call.';

CREATE FUNCTION loracomp.first_megabyte(d loracomp.declaration, keys jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    RETURN loracomp.read_as_owner(d, format(
        'SELECT coalesce(jsonb_agg(jsonb_build_object(''key'', r.key) ORDER BY r.ordinal), ''[]'')
        FROM (
            SELECT k.key, k.ordinal, sum(s.size) OVER (ORDER BY k.ordinal) AS total
            FROM ROWS FROM (jsonb_to_recordset($1) AS (key pg_catalog.text[])) WITH ORDINALITY AS k (key, ordinal)
            LEFT JOIN LATERAL (SELECT %1$s AS size FROM %2$s WHERE (%3$s) = (%4$s) AND %5$s LIMIT 1) AS s ON true
        ) AS r
        WHERE r.ordinal = 1 OR (r.total > 1000000) IS NOT TRUE',
        loracomp.text_size_sql(d), loracomp.source_sql(d), loracomp.key_columns(d), loracomp.key_values(d, 'k.key'), loracomp.passes_sql(d)
    ), keys);
END
$$;
COMMENT ON FUNCTION loracomp.first_megabyte IS 'The first of these keys, at least one, whose rows have at most a megabyte of text together.';

-- If the rows can't be read together, each half is tried alone, down to single rows.
CREATE FUNCTION loracomp.read_prompts(d loracomp.declaration, statement text, keys jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    half CONSTANT integer := jsonb_array_length(keys) / 2;
BEGIN
    RETURN loracomp.read_as_owner(d, statement, keys);
EXCEPTION
    WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR internal_error OR out_of_memory
        OR feature_not_supported
    THEN
        IF half > 0 THEN
            RETURN loracomp.read_prompts(d, statement, jsonb_path_query_array(keys, '$[0 to $last]', jsonb_build_object('last', half - 1)))
                || loracomp.read_prompts(d, statement, jsonb_path_query_array(keys, '$[$first to last]', jsonb_build_object('first', half)));
        END IF;
        -- The error may quote values, which the view's readers must not see.
        RETURN jsonb_build_array((keys -> 0) || jsonb_build_object('passes', true, 'fault', format(
            'its prompt can''t be made: %s', left(regexp_replace(sqlerrm, '".*"', '...'), 200)
        )));
END
$$;
COMMENT ON FUNCTION loracomp.read_prompts IS 'Rows of a declaration''s table with their prompts, as read_rows returns them.';

-- Each row is looked up by its key, so that virtual columns of other rows are not evaluated. A text that is known to be too long is not read. A row
-- whose columns are blank together has no prompt, even if the template has words of its own.
CREATE FUNCTION loracomp.prompts_statement(d loracomp.declaration) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    prompt text;
    named text;
BEGIN
    -- An array, because a chain of || would make a copy of the text before each column.
    SELECT
        format('array_to_string(ARRAY[%s], '''')', string_agg(coalesce(v.value, quote_literal(t.literal)), ', ' ORDER BY t.ordinal)),
        format('array_to_string(ARRAY[%s], '''')', string_agg(v.value, ', '))
    INTO prompt, named
    FROM loracomp.prompt_pieces(d.prompt) AS t CROSS JOIN LATERAL (SELECT 'concat(s.' || quote_ident(t.col) || ')') AS v (value);
    RETURN format(
        $statement$
        SELECT coalesce(jsonb_agg(jsonb_build_object(
            'key', k.key, 'passes', coalesce(r.passes, false), 'prompt', r.prompt,
            'fault', CASE WHEN r.is_too_long THEN 'the prompt is longer than 1000000 characters' END
        ) ORDER BY k.ordinal), '[]')
        FROM ROWS FROM (jsonb_to_recordset($1) AS (key pg_catalog.text[])) WITH ORDINALITY AS k (key, ordinal)
        LEFT JOIN LATERAL (
            SELECT
                %5$s AS passes, %6$s > 4000000 OR char_length(p.prompt) > 1000000 AS is_too_long,
                CASE WHEN char_length(p.prompt) <= 1000000 AND NOT loracomp.is_blank(%7$s) THEN p.prompt END AS prompt
            FROM %2$s CROSS JOIN LATERAL (SELECT CASE WHEN %5$s AND %6$s <= 4000000 THEN %1$s END AS prompt OFFSET 0) AS p
            WHERE (%3$s) = (%4$s) LIMIT 1
        ) AS r ON true
        $statement$,
        prompt, loracomp.source_sql(d), loracomp.key_columns(d), loracomp.key_values(d, 'k.key'), loracomp.passes_sql(d),
        loracomp.text_size_sql(d), named
    );
END
$$;
COMMENT ON FUNCTION loracomp.prompts_statement IS 'SQL that reads the rows with the keys $1, with their prompts.';

-- The key is limited because answer_row has it in an index, whose entries have a maximum size.
CREATE FUNCTION loracomp.passes_sql(d loracomp.declaration) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT format(
        'pg_column_size(k.key) <= 2600 AND %s', loracomp.filter_condition(d)
    );
END;
COMMENT ON FUNCTION loracomp.passes_sql IS 'SQL for whether the row s, whose key is k, can have an answer and passes a declaration''s filter.';

-- It doesn't read the values, because a compressed value may be a hundred times as long as its stored form. Postgres knows the length of texts
-- only. For other types the stored size counts twice, and virtual columns are left out. The text between the columns counts for each row.
CREATE FUNCTION loracomp.text_size_sql(d loracomp.declaration) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT concat_ws(' + ', coalesce(sum(octet_length(t.literal)), 0), string_agg(
        format(
            CASE WHEN a.atttypid = ANY ('{text,varchar,bpchar}'::regtype[])
                    THEN 'coalesce(octet_length(s.%I)::pg_catalog.int8, 0)'
                ELSE 'coalesce(pg_column_size(s.%I)::pg_catalog.int8, 0) * 2'
            END, t.col
        ), ' + '
    ) FILTER (WHERE a.attname IS NOT NULL))
    FROM loracomp.prompt_pieces((d).prompt) AS t
    LEFT JOIN pg_attribute AS a ON a.attrelid = (d).source AND a.attname = t.col AND a.attgenerated <> 'v';
END;
COMMENT ON FUNCTION loracomp.text_size_sql IS 'SQL for the approximate number of bytes of the prompt of the row s.';

-- What create_answers and alter_answers refuse. These functions change nothing.
--   check_source        raises unless the caller owns the table and its rows can be answered
--     check_parent      raises if the table is part of another
--     check_owner       raises unless the table's owner may submit jobs and loracomp's owner may act as the table's owner
--     check_text        raises if a column is bytea
--     fixed_filter      writes the filter's values so that they mean the same in every session
--       check_filter_types    raises if a column's text depends on the settings of a session
--     check_code        25_code.sql
--   check_certain       raises if a promise can't be kept
--   check_request       raises if jobs with these choices, tags and so on would be refused

-- Returns the declaration as far as its table decides it: owner, prompt, filter, and the numbers and names of columns. The prompt is copied into each
-- job, whose prompt may have 1,000,000 characters; so it may have a tenth of them, which leaves most to the row, and lets a page have ten rows.
CREATE FUNCTION loracomp.check_source(source regclass, prompt text, filter jsonb) RETURNS loracomp.declaration
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    relation CONSTANT pg_class := (SELECT c FROM pg_class AS c WHERE c.oid = check_source.source);
    d loracomp.declaration;
    named text[];
    col text;
BEGIN
    IF relation.relkind IS NULL OR relation.relkind NOT IN ('r', 'p') OR relation.relpersistence = 't'
        OR (SELECT n.nspname FROM pg_namespace AS n WHERE n.oid = relation.relnamespace) IN ('loracomp', 'loracomp_parts', 'bi', 'pg_catalog')
    THEN
        RAISE EXCEPTION 'source % is not an ordinary table', check_source.source
            USING ERRCODE = 'wrong_object_type', HINT = 'copy the rows of a view, or of a foreign or temporary table, into a table of your own';
    END IF;
    PERFORM loracomp.check_parent(check_source.source);
    IF NOT pg_has_role(loracomp.caller(), relation.relowner, 'usage') THEN
        RAISE EXCEPTION 'table % is not yours', check_source.source
            USING ERRCODE = 'insufficient_privilege', HINT = format('it belongs to %s', relation.relowner::regrole);
    END IF;
    d.owner := pg_get_userbyid(relation.relowner);
    PERFORM loracomp.check_owner(d.owner), loracomp.check_code(check_source.source);
    d.key_columns := loracomp.primary_key_of(check_source.source);
    IF d.key_columns = '{}' THEN
        RAISE EXCEPTION 'table % has no primary key', check_source.source
            USING ERRCODE = 'invalid_table_definition', HINT = 'ALTER TABLE ... ADD PRIMARY KEY';
    END IF;
    SELECT a.attname INTO col
    FROM pg_attribute AS a LEFT JOIN pg_collation AS o ON o.oid = a.attcollation
    WHERE a.attrelid = check_source.source AND a.attnum = ANY (d.key_columns)
        AND (
            NOT EXISTS (SELECT FROM loracomp.key_forms(a.atttypid)) OR NOT o.collisdeterministic
            OR a.attname IN ('answer', 'confidence', 'certain', 'status', 'reason', 'answered_by', 'answered_at', 'correct')
        );
    IF col IS NOT NULL THEN
        RAISE EXCEPTION 'column % of the primary key has a name, type or collation that keys of answers can''t have', col
            USING ERRCODE = 'feature_not_supported', HINT = 'a key can have numbers, texts, uuid, boolean, dates and timestamps; its collations '
                'must be deterministic, and no column may have the name of another column of the view, such as answer or status';
    END IF;
    IF char_length(check_source.prompt) > 100000 THEN
        RAISE EXCEPTION 'prompt must be at most 100000 characters, and has %', char_length(check_source.prompt)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'it is copied into the prompt of each row, which may have 1000000 characters; '
                'put text that differs between rows into a column, or train an adapter on many examples';
    END IF;
    named := ARRAY(SELECT p.col FROM loracomp.prompt_pieces(check_source.prompt) AS p WHERE p.col IS NOT NULL ORDER BY p.ordinal);
    IF named = '{}' THEN
        RAISE EXCEPTION 'prompt names no column'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'write the name of a column in braces, such as {subject}';
    ELSIF cardinality(named) > 1000 THEN -- the statement that reads a row has an expression for each
        RAISE EXCEPTION 'prompt must name at most 1000 columns, and names %', cardinality(named)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'put them together in a generated column';
    END IF;
    IF jsonb_typeof(check_source.filter) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'filter must be a JSON object' USING ERRCODE = 'invalid_parameter_value', HINT = 'such as {"status": ["open", "new"]}';
    END IF;
    named := named || ARRAY(SELECT k.name FROM jsonb_object_keys(check_source.filter) AS k (name));
    d.columns := loracomp.numbers_of(check_source.source, named);
    col := named[array_position(d.columns, NULL)];
    IF col IS NOT NULL THEN
        RAISE EXCEPTION 'table % has no column %', check_source.source, left(col, 100)
            USING ERRCODE = 'undefined_column', HINT = concat(
                'names are compared as they are written; {{ and }} stand for braces',
                loracomp.did_you_mean(col, ARRAY(
                    SELECT a.attname::text FROM pg_attribute AS a
                    WHERE a.attrelid = check_source.source AND a.attnum > 0 AND NOT a.attisdropped
                ))
            );
    END IF;
    SELECT k.name INTO col FROM jsonb_object_keys(check_source.filter) AS k (name)
    JOIN pg_attribute AS a ON a.attrelid = check_source.source AND a.attname = k.name AND a.attgenerated = 'v' LIMIT 1;
    IF col IS NOT NULL THEN -- if its expression fails for one row, the view would raise for all, with the row's text
        RAISE EXCEPTION 'filter, column %: a filter can''t compare a virtual column', quote_ident(col)
            USING ERRCODE = 'wrong_object_type', HINT = 'use a stored generated column: GENERATED ALWAYS AS (...) STORED';
    END IF;
    PERFORM loracomp.check_text(check_source.source, d.columns), loracomp.check_enum_values(check_source.source, check_source.filter);
    d.source := check_source.source;
    d.prompt := check_source.prompt;
    d.filter := loracomp.fixed_filter(check_source.source, check_source.filter);
    d.names := loracomp.source_names(d.source, d.columns || d.key_columns);
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.check_source IS
'Raises unless the caller owns the table and its rows can be answered. Returns the declaration as far as its table decides it.';

-- Reads only the catalog. The view and the keeper parse the filter's values in different sessions, so a time without a time zone, a date such as
-- 01/02/2026 and the word today would otherwise mean different things to them.
CREATE FUNCTION loracomp.fixed_filter(source regclass, filter jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
SET datestyle = 'ISO, MDY'
SET timezone = 'UTC'
SET intervalstyle = 'postgres'
SET extra_float_digits = 1
AS $$
DECLARE
    col record;
    fixed text[];
BEGIN
    PERFORM loracomp.check_filter_types(fixed_filter.source, fixed_filter.filter);
    FOR col IN SELECT f.* FROM loracomp.filter_values(fixed_filter.source, fixed_filter.filter) AS f WHERE f.type IS NOT NULL LOOP
        EXECUTE format('SELECT %L::pg_catalog.%I[]::pg_catalog.text[]', col.allowed, col.type) INTO fixed;
        filter := filter || jsonb_build_object(col.key, to_jsonb(CASE WHEN col.value @> 'null' THEN fixed || NULL::text ELSE fixed END));
    END LOOP;
    RETURN filter;
EXCEPTION WHEN data_exception THEN
    RAISE EXCEPTION 'filter, column %: %', quote_ident(col.key), sqlerrm USING ERRCODE = sqlstate;
END
$$;
COMMENT ON FUNCTION loracomp.fixed_filter IS
'The filter with its values as Postgres writes them with ISO dates and UTC. Raises if the type of a column doesn''t have such a value.';

-- Reads only the catalog. Enums, and arrays of them, are compared as text. If one of their values is renamed, no row would pass the filter any
-- more. Other types are left out, a domain is read as the enum below it, and values are compared with the enum's labels, because reading a value may
-- run a user's code: a domain's CHECK would run with the rights of loracomp's owner.
CREATE FUNCTION loracomp.check_enum_values(source regclass, filter jsonb) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    col name;
    type oid;
    unknown text;
BEGIN
    SELECT a.attname, e.type, v.value INTO col, type, unknown
    FROM loracomp.filter_values(check_enum_values.source, check_enum_values.filter) AS f
    JOIN pg_attribute AS a ON a.attrelid = check_enum_values.source AND a.attname = f.key
    JOIN pg_type AS t ON t.oid = loracomp.base_type(a.atttypid)
    CROSS JOIN LATERAL (
        SELECT i.oid, t.typoutput = 'array_out'::regproc AS is_array, CASE t.typoutput WHEN 'array_out'::regproc THEN i.typarray ELSE i.oid END AS type
        FROM pg_type AS i
        WHERE i.typtype = 'e' AND i.oid = CASE t.typoutput WHEN 'array_out'::regproc THEN loracomp.base_type(t.typelem) ELSE t.oid END
    ) AS e
    CROSS JOIN LATERAL unnest(f.allowed) AS v (value)
    WHERE EXISTS (
        SELECT FROM unnest(
            CASE WHEN NOT e.is_array THEN ARRAY[v.value] WHEN pg_input_is_valid(v.value, 'text[]') THEN v.value::text[] ELSE '{""}' END
        ) AS o (label)
        WHERE NOT EXISTS (SELECT FROM pg_enum AS l WHERE l.enumtypid = e.oid AND l.enumlabel = o.label) AND o.label IS NOT NULL
    )
    ORDER BY a.attnum, v.value LIMIT 1;
    IF col IS NOT NULL THEN
        RAISE EXCEPTION 'filter, column %: type % has no value %: give another filter', quote_ident(col), format_type(type, NULL), left(unknown, 100)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_enum_values IS 'Raises if a filter has a value that the enum of its column doesn''t have.';

-- Reads only the catalog. The view compares other columns by their text with its reader's settings. A type whose output function is not immutable
-- writes its text by these settings, except enums, whose text depends only on the catalog. Some types depend on settings although their output
-- functions are called immutable: intervals, and all that contain numbers of floating point, such as points. What an extension's own function
-- depends on can't be known; citext has a function of Postgres.
CREATE FUNCTION loracomp.check_filter_types(source regclass, filter jsonb) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    col pg_attribute;
BEGIN
    SELECT a.* INTO col
    FROM loracomp.filter_values(check_filter_types.source, check_filter_types.filter) AS f
    JOIN pg_attribute AS a ON a.attrelid = check_filter_types.source AND a.attname = f.key
    JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_type AS e ON e.oid = t.typelem AND t.typoutput = 'array_out'::regproc
    JOIN pg_proc AS p ON p.oid = coalesce(e.typoutput, t.typoutput)
    JOIN pg_language AS l ON l.oid = p.prolang
    WHERE f.type IS NULL AND p.oid <> 'enum_out'::regproc AND (
        p.provolatile <> 'i' OR l.lanname <> 'internal' OR p.oid = ANY (
            '{float4out,float8out,interval_out,point_out,line_out,lseg_out,box_out,path_out,poly_out,circle_out}'::regproc[]
        )
    )
    ORDER BY a.attnum LIMIT 1;
    IF col.attname IS NOT NULL THEN
        RAISE EXCEPTION 'filter, column %: a filter can''t compare values of type %, because their text depends on the settings of the session',
            quote_ident(col.attname), format_type(col.atttypid, NULL)
            USING ERRCODE = 'wrong_object_type', HINT = 'filter by a column of another type, such as text, a number or a time';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_filter_types IS 'Raises if a filter''s column has a type whose text depends on the settings of a session.';

CREATE FUNCTION loracomp.check_parent(source regclass) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = check_parent.source) THEN
        RAISE EXCEPTION 'table % is part of another table, and statements that name that table would not be noticed', check_parent.source
            USING ERRCODE = 'wrong_object_type', HINT = 'declare the partitioned table; a filter can choose its rows';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_parent IS 'Raises if a table is a partition of another, or inherits from it.';

-- Reads only the catalog. A domain has the output function of its base type, also if it is a domain over another domain.
CREATE FUNCTION loracomp.check_text(source regclass, columns smallint[]) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    col CONSTANT name := (
        SELECT min(a.attname) FROM pg_attribute AS a JOIN pg_type AS t ON a.atttypid = t.oid OR a.atttypid = t.typarray
        WHERE a.attrelid = check_text.source AND a.attnum = ANY (check_text.columns) AND t.typoutput = 'byteaout'::regproc
    );
BEGIN
    IF col IS NOT NULL THEN
        RAISE EXCEPTION 'column % is bytea, which is no text', col USING ERRCODE = 'wrong_object_type', HINT = 'name another column';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_text IS 'Raises if one of these columns of a table is bytea.';

-- Reads only memberships. The table's owner must be a submitter, because the jobs are submitted under its name. Loracomp's owner must be able to
-- act as the table's owner, because it makes a view and a function that the table's owner will own.
CREATE FUNCTION loracomp.check_owner(owner name) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF NOT pg_has_role(check_owner.owner, 'loracomp_submitter', 'usage') AND NOT pg_has_role(check_owner.owner, 'loracomp_admin', 'usage') THEN
        RAISE EXCEPTION '% is not a submitter', check_owner.owner
            USING ERRCODE = 'insufficient_privilege', HINT = format('GRANT loracomp_submitter TO %I', check_owner.owner);
    END IF;
    IF NOT pg_has_role(current_user, check_owner.owner, 'usage') THEN
        RAISE EXCEPTION 'loracomp''s owner % may not act as %, with whose rights it would read the rows', current_user, check_owner.owner
            USING ERRCODE = 'insufficient_privilege', HINT = format('GRANT %I TO %I', check_owner.owner, current_user);
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_owner IS 'Raises unless a table''s owner is a submitter, and loracomp''s owner may act as it.';

CREATE FUNCTION loracomp.check_certain(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF d.certain NOT BETWEEN 0.5 AND 0.99 THEN
        RAISE EXCEPTION 'certain must be a share from 0.5 to 0.99, not %', d.certain
            USING ERRCODE = 'invalid_parameter_value', HINT = '0.95 means: 95 % of the answers that are called certain are right';
    ELSIF d.certain IS NOT NULL AND d.choices IS NULL THEN
        RAISE EXCEPTION 'certain is for answers that are chosen, because generated texts have no confidence'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'give choices, or leave certain out; alter_answers takes a promise back with certain => 0';
    ELSIF d.certain_of IS NOT NULL AND (d.certain IS NULL OR NOT d.certain_of <@ d.choices OR d.certain_of = '{}') THEN
        RAISE EXCEPTION 'certain_of must be some of the choices, and needs certain'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'without certain_of ({} in alter_answers), the promise holds for all answers together';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_certain IS 'Raises if certain is not a share that can be shown, or if certain_of are not some of the choices.';

-- It inserts a job and rolls that back. The error is the name of the constraint that refused the job, because these names are sentences.
CREATE FUNCTION loracomp.check_request(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    constraint_name text;
    column_name text;
BEGIN
    INSERT INTO loracomp.job (prompt, choices, descriptions, max_new_tokens, policy, priority, tags, submitted_by)
    VALUES ('a row', d.choices, d.descriptions, d.max_new_tokens, d.policy, d.priority, d.tags, d.owner);
    RAISE EXCEPTION USING ERRCODE = 'LC001';
EXCEPTION
    WHEN SQLSTATE 'LC001' OR configuration_limit_exceeded THEN
        NULL;
    WHEN check_violation OR not_null_violation THEN
        GET STACKED DIAGNOSTICS constraint_name = CONSTRAINT_NAME, column_name = COLUMN_NAME;
        IF sqlstate = '23502' AND column_name = '' THEN -- look_up_names says it in words
            RAISE;
        END IF;
        RAISE EXCEPTION '%', CASE sqlstate
            WHEN '23502' THEN format('%s must not be null', column_name) ELSE loracomp.constraint_in_words(constraint_name)
        END USING ERRCODE = sqlstate;
END
$$;
COMMENT ON FUNCTION loracomp.check_request IS 'Raises if a declaration''s jobs would be refused.';

-- Declarations: made, changed and dropped by people.
--   create_answers
--     check_source              who may declare, and for which tables
--       check_owner
--       check_text              also for columns that have changed since: 40_ask.sql
--       check_code              25_code.sql
--     check_request             whether a job of this kind would be accepted at all
--     make_parts, make_view, add_triggers
--   alter_answers
--     find_answers              the declaration of a view, if the caller may change it
--     check_source, check_request
--     begin_scan                40_ask.sql
--     label_again               makes the examples of the corrected rows again, in the new words
--   drop_answers
--     find_answers
--     forget_answers            removes a declaration with all that it made

-- Raises unless the caller owns the table, and its rows can be answered. Returns the declaration, as far as the table decides it.
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
        OR relation.relnamespace::regnamespace::text IN ('loracomp', 'loracomp_parts', 'bi', 'pg_catalog')
    THEN
        RAISE EXCEPTION 'source % is not a table of yours that lasts', check_source.source
            USING ERRCODE = 'wrong_object_type', HINT = 'for a view, keep its rows in a table, which a trigger or a job fills';
    END IF;
    IF EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = check_source.source) THEN
        RAISE EXCEPTION 'table % is part of another table, whose statements would not be noticed', check_source.source
            USING ERRCODE = 'wrong_object_type', HINT = 'declare the partitioned table; a filter can choose its rows';
    END IF;
    IF NOT pg_has_role(loracomp.caller(), relation.relowner, 'usage') THEN
        RAISE EXCEPTION 'table % is not yours', check_source.source
            USING ERRCODE = 'insufficient_privilege', HINT = format('it belongs to %I', relation.relowner::regrole::text);
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
            OR a.attname IN ('answer', 'confidence', 'status', 'reason', 'answered_by', 'answered_at', 'correct')
        );
    IF col IS NOT NULL THEN
        RAISE EXCEPTION 'column % of the primary key has a name, type or collation that keys of answers can''t have', col
            USING ERRCODE = 'feature_not_supported', HINT = 'numbers, texts, uuid, boolean, dates and timestamps can be; collations must '
                'be deterministic, and names others than those of the view''s columns';
    END IF;
    named := ARRAY(SELECT p.col FROM loracomp.prompt_pieces(check_source.prompt) AS p WHERE p.col IS NOT NULL ORDER BY p.ordinal);
    IF named = '{}' THEN
        RAISE EXCEPTION 'prompt names no column'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'write the name of a column in braces, such as {subject}';
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
    PERFORM loracomp.check_text(check_source.source, d.columns);
    d.source := check_source.source;
    d.prompt := check_source.prompt;
    d.filter := check_source.filter;
    d.names := loracomp.source_names(d.source, d.columns || d.key_columns);
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.check_source IS 'A declaration as far as its table decides it. Raises if the table is not the caller''s or can''t be.';

-- Reads only the catalog. A domain has the output function of the type that it is made of, however many domains are between.
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

-- Reads only memberships. Jobs run under the owner's name, so it must be a submitter; and our own role must be able to act as it, for the
-- functions and views that it will own.
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
        RAISE EXCEPTION 'loracomp''s owner % may not act as %, whose rights read the rows', current_user, check_owner.owner
            USING ERRCODE = 'insufficient_privilege', HINT = format('GRANT %I TO %I', check_owner.owner, current_user);
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_owner IS 'Raises unless a table''s owner is a submitter as which loracomp''s owner may act.';

-- Changes nothing: it inserts a job and takes it back. So what a job refuses is refused in its words.
CREATE FUNCTION loracomp.check_request(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    INSERT INTO loracomp.job (prompt, choices, max_new_tokens, policy, priority, tags, submitted_by)
    VALUES ('a row', d.choices, d.max_new_tokens, d.policy, d.priority, d.tags, d.owner);
    RAISE EXCEPTION USING ERRCODE = 'LC001';
EXCEPTION WHEN SQLSTATE 'LC001' OR configuration_limit_exceeded THEN
    NULL;
END
$$;
COMMENT ON FUNCTION loracomp.check_request IS 'Raises if a declaration''s jobs would be refused.';

-- A row that row security hides from the reader is left out. The key's columns keep their types as long as the view is there.
CREATE FUNCTION loracomp.make_view(d loracomp.declaration, schema name, name name) RETURNS regclass
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    view CONSTANT text := format('%I.%I', schema, name);
BEGIN
    EXECUTE format(
        'CREATE VIEW %1$s WITH (security_barrier) AS
        SELECT
            %2$s, a.answer, a.confidence,
            coalesce(a.status, CASE WHEN pg_column_size(%5$s) <= 2600 THEN ''waiting'' ELSE ''refused'' END) AS status,
            coalesce(a.reason, CASE WHEN pg_column_size(%5$s) > 2600 THEN ''the key is longer than 2600 bytes'' END) AS reason,
            a.answered_by, a.answered_at, a.correct
        FROM %3$s LEFT JOIN loracomp_parts.answers_%4$s AS a ON a.key = %5$s
        WHERE %6$s AND (
            NOT (SELECT row_security_active(%7$L::regclass))
            OR loracomp_parts.sees_row((SELECT loracomp_parts.sees_statement(%4$s)), %5$s)
        );
        CREATE TRIGGER loracomp_correct INSTEAD OF UPDATE ON %1$s FOR EACH ROW EXECUTE FUNCTION loracomp_parts.correct(%4$s);
        ALTER VIEW %1$s OWNER TO %8$I;
        COMMENT ON VIEW %1$s IS %9$L',
        view, loracomp.key_columns(d), loracomp.source_sql(d), d.id, loracomp.key_array(d), loracomp.filter_condition(d), d.names[1],
        d.owner, format('Answers to the rows of %s, made by loracomp.create_answers.', d.names[1])
    );
    RETURN view;
END
$$;
COMMENT ON FUNCTION loracomp.make_view IS 'Makes a declaration''s view, with its trigger, for the owner of the table.';

CREATE FUNCTION loracomp.create_answers(
    name text,
    source regclass,
    prompt text,
    choices text[] DEFAULT NULL,
    max_new_tokens integer DEFAULT NULL,
    policy text DEFAULT 'default',
    priority integer DEFAULT 0,
    tags jsonb DEFAULT '{}',
    backfill boolean DEFAULT TRUE,
    filter jsonb DEFAULT '{}'
) RETURNS regclass
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.declaration;
    parts text[];
    schema name;
BEGIN
    BEGIN
        parts := parse_ident(create_answers.name);
        IF (cardinality(parts) <= 2) IS NOT TRUE THEN
            RAISE invalid_parameter_value;
        END IF;
    EXCEPTION WHEN invalid_parameter_value THEN
        RAISE EXCEPTION 'name must be that of a view, with its schema or without, not %', left(create_answers.name, 100)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'put names with other than letters, digits and _ into double quotes';
    END;
    d := loracomp.check_source(create_answers.source, create_answers.prompt, create_answers.filter);
    schema := coalesce(parts[cardinality(parts) - 1], (
        SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = d.source
    ));
    IF NOT has_schema_privilege(d.owner, schema::text, 'create') THEN
        RAISE EXCEPTION '% may not create a view in schema %', d.owner, schema
            USING ERRCODE = 'insufficient_privilege', HINT = 'grant CREATE on the schema to the table''s owner';
    END IF;
    IF to_regclass(format('%I.%I', schema, parts[cardinality(parts)])) IS NOT NULL THEN
        RAISE EXCEPTION 'there is a table or view % in schema % already', parts[cardinality(parts)], schema
            USING ERRCODE = 'duplicate_table', HINT = 'give another name, or change the declaration by loracomp.alter_answers';
    END IF;
    d.choices := create_answers.choices;
    d.max_new_tokens := create_answers.max_new_tokens;
    d.policy := create_answers.policy;
    d.priority := create_answers.priority;
    d.tags := create_answers.tags;
    PERFORM loracomp.check_request(d);
    d.id := nextval(pg_get_serial_sequence('loracomp.declaration', 'id'));
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', d.names[1]);
    PERFORM loracomp.make_parts(d);
    d.view := loracomp.make_view(d, schema, parts[cardinality(parts)]);
    PERFORM loracomp.add_triggers(d);
    IF d.names <> loracomp.source_names(d.source, d.columns || d.key_columns) THEN
        RAISE EXCEPTION 'table % was renamed meanwhile', d.names[1] USING HINT = 'try again';
    END IF;
    -- Only now, because its view is unique: two sessions that wrote rows without one would wait for each other.
    INSERT INTO loracomp.declaration (
        id, view, source, source_oid, owner, prompt, columns, key_columns, names, filter, choices, max_new_tokens, policy, priority, tags, scan, scan_skips
    ) OVERRIDING SYSTEM VALUE VALUES (
        d.id, d.view, d.source, d.source, d.owner, d.prompt, d.columns, d.key_columns, d.names, d.filter, d.choices,
        d.max_new_tokens, d.policy, d.priority, d.tags, 'rows', create_answers.backfill IS FALSE
    );
    PERFORM loracomp.notify('loracomp_keep', '');
    RETURN d.view;
END
$$;
COMMENT ON FUNCTION loracomp.create_answers IS 'Declares that each row of a table gets an answer, now and whenever it is written; makes the view.';

-- Locks the declaration. Members of the owner's role and administrators may change it; another prompt only the table's owner may give.
CREATE FUNCTION loracomp.find_answers(name regclass) RETURNS loracomp.declaration
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.declaration;
BEGIN
    SELECT a.* INTO d FROM loracomp.declaration AS a WHERE a.view = find_answers.name FOR UPDATE;
    IF d.id IS NULL OR NOT (
        loracomp.caller_is_admin() OR coalesce(pg_has_role(loracomp.caller(), to_regrole(quote_ident(d.owner)), 'usage'), FALSE)
        OR pg_has_role(loracomp.caller(), (SELECT c.relowner FROM pg_class AS c WHERE c.oid = d.source), 'usage')
    ) THEN
        RAISE EXCEPTION '% is not a declaration of yours', find_answers.name
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.list_answers() lists them';
    END IF;
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.find_answers IS 'The declaration of a view, locked. Raises unless the caller may change it.';

-- Null leaves a setting as it is. With a new prompt or new choices, a row is asked again if its prompt or choices are other ones now.
CREATE FUNCTION loracomp.alter_answers(
    name regclass,
    prompt text DEFAULT NULL,
    choices text[] DEFAULT NULL,
    policy text DEFAULT NULL,
    priority integer DEFAULT NULL,
    paused boolean DEFAULT NULL,
    again boolean DEFAULT FALSE
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.declaration := loracomp.with_current_names(loracomp.find_answers(alter_answers.name));
    checked loracomp.declaration;
    is_reworded CONSTANT boolean := num_nonnulls(alter_answers.prompt, alter_answers.choices) > 0;
BEGIN
    IF alter_answers.prompt IS NOT NULL THEN
        checked := loracomp.check_source(d.source, alter_answers.prompt, d.filter);
        d.prompt := checked.prompt;
        d.columns := checked.columns;
        d.names := checked.names;
    END IF;
    d.choices := coalesce(alter_answers.choices, d.choices);
    d.policy := coalesce(alter_answers.policy, d.policy);
    d.priority := coalesce(alter_answers.priority, d.priority);
    PERFORM loracomp.check_request(d);
    UPDATE loracomp.declaration AS a SET
        prompt = d.prompt, filter = d.filter, columns = d.columns, names = d.names, choices = d.choices, policy = d.policy,
        priority = d.priority, paused = coalesce(alter_answers.paused, a.paused), round = a.round + coalesce(alter_answers.again, FALSE)::integer,
        trouble = NULL, retry_at = '-infinity'
    WHERE a.id = d.id;
    IF alter_answers.again OR is_reworded THEN
        PERFORM loracomp.begin_scan(d.id);
    END IF;
    IF is_reworded THEN
        PERFORM loracomp.label_again(d);
    END IF;
    PERFORM loracomp.notify('loracomp_keep', '');
END
$$;
COMMENT ON FUNCTION loracomp.alter_answers IS 'Changes a declaration; with `again`, all rows are asked again, behind new ones.';

CREATE FUNCTION loracomp.drop_answers(name regclass) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM loracomp.forget_answers(loracomp.find_answers(drop_answers.name));
END
$$;
COMMENT ON FUNCTION loracomp.drop_answers IS 'Drops a declaration with its view and its answers; its waiting jobs are erased.';

-- Works even if the table or the view is gone. An adapter that was trained on the corrections is retired, and stays for replay.
CREATE FUNCTION loracomp.forget_answers(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    waiting CONSTANT bigint[] := ARRAY(
        SELECT j.id FROM loracomp.answer_row AS r JOIN loracomp.job AS j ON j.id = r.job_id AND j.finished_at IS NULL
        WHERE r.declaration_id = d.id
    );
BEGIN
    PERFORM loracomp.drop_parts(d);
    DELETE FROM loracomp.declaration AS a WHERE a.id = d.id;
    DELETE FROM loracomp.answer_hint AS h WHERE h.declaration_id = d.id;
    DELETE FROM loracomp.scan_request AS q WHERE q.declaration_id = d.id;
    PERFORM loracomp.delete_jobs(waiting);
    UPDATE loracomp.adapter AS a SET status = 'retired', retired_at = now() WHERE a.task_id = d.task_id AND a.status <> 'retired';
    DELETE FROM loracomp.task AS t
    WHERE t.id = d.task_id AND NOT EXISTS (SELECT FROM loracomp.adapter AS a WHERE a.task_id = t.id);
END
$$;
COMMENT ON FUNCTION loracomp.forget_answers IS 'Removes a declaration with all that it made.';

-- Declares that the rows of a table get answers.
--   create_answers
--     check_source, check_certain, check_request     28_check.sql
--     make_parts, add_triggers        20_parts.sql
--     make_view                       alter_answers and bring_view_back call it too
--     answers_channel                 notify_answers and list_answers call it too
--     view_definition                 alter_answers, bring_view_back and answers_since call it too
--     lock_source
--       lock_tables                   24_locks.sql
--     add_own_task                    70_learn.sql
--     parts_hash                      37_scan.sql

-- By number, because a view's name can change, may need quotes, and may be too long for a channel.
CREATE FUNCTION loracomp.answers_channel(declaration_id integer) RETURNS text
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT 'loracomp_answers_' || answers_channel.declaration_id;
END;
COMMENT ON FUNCTION loracomp.answers_channel IS 'Channel of the notifications that a declaration has new answers.';

-- take_answers and ask_together call it.
CREATE FUNCTION loracomp.notify_answers(declaration_ids integer[]) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    SELECT pg_notify(c.channel, a.view::text) FROM loracomp.declaration AS a
    CROSS JOIN LATERAL (VALUES ('loracomp_answers'), (loracomp.answers_channel(a.id))) AS c (channel)
    WHERE a.id = ANY (notify_answers.declaration_ids) AND pg_notification_queue_usage() < 0.5;
$$;
COMMENT ON FUNCTION loracomp.notify_answers IS 'Notifies listeners that these declarations have new answers or refusals.';

-- The view reads the filter's values as the keeper does: fixed_filter has written them with these settings. It leaves out rows that row security
-- hides from the reader. If the declaration has its view already, the view keeps its oid, its grants and its column names. Otherwise no existing
-- view is replaced, because it might be somebody else's.
CREATE FUNCTION loracomp.make_view(d loracomp.declaration, schema name, name name) RETURNS regclass
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET datestyle = 'ISO, MDY'
SET timezone = 'UTC'
SET intervalstyle = 'postgres'
AS $$
DECLARE
    view CONSTANT text := format('%I.%I', schema, name);
    columns text;
    shown bigint;
    reader name;
BEGIN
    SELECT '(' || string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) || ')', count(*) INTO columns, shown
    FROM pg_attribute AS a WHERE a.attrelid = d.view AND a.attrelid = to_regclass(view) AND a.attnum > 0;
    IF shown > cardinality(d.key_columns) + 8 THEN
        RAISE EXCEPTION 'view % has columns that its owner has added', view
            USING ERRCODE = 'feature_not_supported', HINT = 'put them into a view of your own over it, and declare again';
    END IF;
    EXECUTE format(
        'CREATE %9$s VIEW %1$s %10$s WITH (security_barrier) AS
        SELECT
            %2$s, a.answer, a.confidence, a.certain,
            coalesce(a.status, CASE WHEN pg_column_size(%5$s) <= 2600 THEN ''waiting'' ELSE ''refused'' END) AS status,
            coalesce(a.reason, CASE WHEN pg_column_size(%5$s) > 2600 THEN ''the key is longer than 2600 bytes'' END) AS reason,
            a.answered_by, a.answered_at, a.correct
        FROM %3$s LEFT JOIN loracomp_parts.answers_%4$s AS a ON a.key = %5$s
        WHERE %6$s AND (
            NOT (SELECT row_security_active(%7$L::regclass))
            OR loracomp_parts.sees_row((SELECT loracomp_parts.sees_statement(%4$s)), %5$s)
        );
        CREATE OR REPLACE TRIGGER loracomp_correct INSTEAD OF UPDATE ON %1$s FOR EACH ROW EXECUTE FUNCTION loracomp_parts.correct(%4$s);
        COMMENT ON VIEW %1$s IS %8$L',
        view, loracomp.key_columns(d), loracomp.source_sql(d), d.id, loracomp.key_array(d), loracomp.filter_condition(d), d.names[1],
        format('Answers to the rows of %s, made by loracomp.create_answers. LISTEN %s: new answers.', d.names[1], loracomp.answers_channel(d.id)),
        CASE WHEN columns IS NOT NULL THEN 'OR REPLACE' END, columns
    );
    IF columns IS NULL THEN
        -- Default privileges of loracomp's owner are meant for tables of its own.
        FOR reader IN
            SELECT DISTINCT CASE WHEN g.grantee > 0 THEN pg_get_userbyid(g.grantee) END
            FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS g
            WHERE c.oid = view::regclass AND g.grantee <> c.relowner
        LOOP
            EXECUTE format('REVOKE ALL ON %s FROM %s', view, coalesce(quote_ident(reader), 'PUBLIC'));
        END LOOP;
        EXECUTE format('ALTER VIEW %s OWNER TO %I', view, d.owner);
    END IF;
    RETURN view;
END
$$;
COMMENT ON FUNCTION loracomp.make_view IS
'Makes a declaration''s view with its trigger, for the owner of the table, or replaces the definition of the view that it has.';

-- Reads only the catalog. The definition must be the same text in every session, so the settings that decide how Postgres writes names and the
-- filter's values are fixed. It must also stay the same when the table is renamed, so the table has no name in it.
CREATE FUNCTION loracomp.view_definition(view regclass, source regclass) RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
SET datestyle = 'ISO'
SET timezone = 'UTC'
SET intervalstyle = 'postgres'
SET extra_float_digits = 1
SET quote_all_identifiers = off
SET standard_conforming_strings = on
AS $$
    SELECT concat(
        replace(
            replace(pg_get_viewdef(c.oid), format('%s s', source), '(the source) s'), format('%L::regclass', source), '(the source)::regclass'
        ),
        ' WITH ', c.reloptions
    )
    FROM pg_class AS c WHERE c.oid = view_definition.view;
$$;
COMMENT ON FUNCTION loracomp.view_definition IS 'Definition and options of a view over a declared table, to tell whether its owner has changed them.';

-- It gives up the lock for which it waits, and tries again, so that whoever wants to write meanwhile waits for two seconds at most. The caller must not
-- have locked the table in a weaker mode: an application that waits for that lock, and has written to the table, would wait in a circle.
CREATE FUNCTION loracomp.lock_source(source regclass) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    until CONSTANT timestamptz := clock_timestamp() + interval '10 seconds';
BEGIN
    LOOP
        BEGIN
            PERFORM loracomp.lock_tables(
                lock_source.source || ARRAY(SELECT p.part FROM loracomp.parts_of(lock_source.source) AS p), 'SHARE ROW EXCLUSIVE'
            );
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            IF clock_timestamp() > until THEN
                RAISE EXCEPTION 'table % is being vacuumed, or a transaction that is open has written to it', lock_source.source
                    USING ERRCODE = 'lock_not_available', HINT = 'try again when it has ended; pg_stat_activity shows who has one open';
            END IF;
        END;
        PERFORM pg_sleep(0.05);
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.lock_source IS
'Waits until all transactions that have written to a table have ended, and keeps others from writing. Raises after ten seconds.';

CREATE FUNCTION loracomp.create_answers(
    name text,
    source regclass,
    prompt text,
    choices text[] DEFAULT NULL,
    descriptions text[] DEFAULT NULL,
    max_new_tokens integer DEFAULT NULL,
    policy text DEFAULT 'default',
    priority integer DEFAULT 0,
    tags jsonb DEFAULT '{}',
    backfill boolean DEFAULT TRUE,
    filter jsonb DEFAULT '{}',
    certain double precision DEFAULT NULL,
    certain_of text[] DEFAULT NULL
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
        RAISE EXCEPTION 'name must be a name for a view, with or without a schema, not %', left(create_answers.name, 100)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'put a name that has other characters than letters, digits and _ into double quotes';
    END;
    d := loracomp.check_source(create_answers.source, create_answers.prompt, create_answers.filter);
    -- The keeper looks at each declaration for everybody. Sessions that don't see each other's declarations can't take the same number. It is drawn,
    -- because otherwise all of them would try the same one, and wait for the first.
    d.owners_number := (
        SELECT n FROM generate_series(1, 500) AS n
        WHERE n NOT IN (SELECT a.owners_number FROM loracomp.declaration AS a WHERE a.owner = d.owner) ORDER BY random() LIMIT 1
    );
    IF d.owners_number IS NULL THEN
        RAISE EXCEPTION '% has 500 declarations, and may not have more', d.owner
            USING ERRCODE = 'configuration_limit_exceeded', HINT = 'drop one that is not needed (loracomp.drop_answers), or declare one table for all';
    END IF;
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
    d.descriptions := create_answers.descriptions;
    d.max_new_tokens := create_answers.max_new_tokens;
    d.policy := create_answers.policy;
    d.priority := create_answers.priority;
    d.tags := create_answers.tags;
    d.certain := create_answers.certain;
    d.certain_of := create_answers.certain_of;
    PERFORM loracomp.check_certain(d);
    PERFORM loracomp.check_request(d);
    d.id := nextval(pg_get_serial_sequence('loracomp.declaration', 'id'));
    PERFORM loracomp.lock_source(d.source);
    PERFORM loracomp.make_parts(d);
    d.view := loracomp.make_view(d, schema, parts[cardinality(parts)]);
    d.task_id := loracomp.add_own_task(d);
    PERFORM loracomp.add_triggers(d);
    IF d.names <> loracomp.source_names(d.source, d.columns || d.key_columns) THEN
        RAISE EXCEPTION 'table % was renamed meanwhile', d.names[1] USING HINT = 'try again';
    END IF;
    -- The row is inserted last, because its view must be unique, and two sessions that inserted first would wait for each other.
    INSERT INTO loracomp.declaration (
        id, view, view_definition, source, source_identity, owner, owners_number, prompt, columns, key_columns, names, filter, choices, descriptions,
        max_new_tokens, policy, priority, tags, certain, certain_of, task_id, scan, is_first_scan, backfill, parts
    ) OVERRIDING SYSTEM VALUE VALUES (
        d.id, d.view, loracomp.view_definition(d.view, d.source), d.source, loracomp.identity_of(d.source), d.owner, d.owners_number, d.prompt,
        d.columns, d.key_columns, d.names, d.filter, d.choices, d.descriptions, d.max_new_tokens, d.policy, d.priority, d.tags, d.certain, d.certain_of, d.task_id, 'rows', TRUE,
        create_answers.backfill IS NOT FALSE, loracomp.parts_hash(d.source)
    );
    PERFORM loracomp.notify('loracomp_keep', '');
    RETURN d.view;
END
$$;
COMMENT ON FUNCTION loracomp.create_answers IS 'Declares that each row of a table gets an answer, now and whenever it is written; makes the view.';

-- Changes the type of a key column of a declared table, for example from integer to bigint.
--   alter_key
--     view_grants         reads who has which privilege on a view
--     lock_views          locks the declarations; refuses a view that its owner has changed, or whose table was given away
--       lock_to_alter     32_alter.sql
--     bring_view_back     makes a declaration's view again

-- Reads only the catalog. It returns column numbers, because column names may differ after the view is made again.
CREATE FUNCTION loracomp.view_grants(view regclass)
RETURNS TABLE (number smallint, privilege text, grantee text, is_grantable boolean)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT r.number, g.privilege_type, CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END, g.is_grantable
    FROM (
        SELECT 0::smallint AS number, c.relacl AS acl FROM pg_class AS c WHERE c.oid = view_grants.view
        UNION ALL
        SELECT a.attnum, a.attacl FROM pg_attribute AS a WHERE a.attrelid = view_grants.view
    ) AS r
    CROSS JOIN LATERAL aclexplode(r.acl) AS g
    WHERE g.grantee <> g.grantor;
$$;
COMMENT ON FUNCTION loracomp.view_grants IS 'The privileges on a view that its owner has granted to others: on the whole view (number 0), or on a column.';

-- Works only in the transaction that dropped the view: once that is committed, the keeper removes the declaration. All rows are scanned afterwards,
-- because a key of another type may be written as another text.
CREATE FUNCTION loracomp.bring_view_back(
    view oid, schema name, name name, key_column name, old_type regtype
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET lock_timeout = '2s' -- everybody waits for the table meanwhile
AS $$
DECLARE
    d loracomp.declaration := (SELECT a FROM loracomp.declaration AS a WHERE a.view::oid = bring_view_back.view);
    made regclass;
    keeps text;
    gone bigint[];
BEGIN
    IF d.id IS NULL OR NOT loracomp.may_alter_answers(d) OR EXISTS (SELECT FROM pg_class AS c WHERE c.oid = d.view) THEN
        RAISE EXCEPTION 'no view of a declaration of yours is missing' USING ERRCODE = 'no_data_found', HINT = 'call loracomp.alter_key';
    END IF;
    d := loracomp.with_current_names(d);
    d.filter := (loracomp.check_source(d.source, d.prompt, d.filter)).filter; -- with its values as the new type is written
    IF NOT has_schema_privilege(d.owner, schema::text, 'create') OR to_regclass(format('%I.%I', schema, name)) IS NOT NULL THEN
        RAISE EXCEPTION '% may not create view % in schema %', d.owner, name, schema USING ERRCODE = 'insufficient_privilege';
    END IF;
    made := loracomp.make_view(d, schema, name);
    UPDATE loracomp.declaration AS a SET view = made, view_definition = loracomp.view_definition(made, d.source), filter = d.filter WHERE a.id = d.id;
    PERFORM loracomp.begin_scan(d.id);
    -- A row keeps its answer only if its key is the same text after the conversion that ALTER TABLE has made in this session, which may depend on
    -- TimeZone; the scan finds the other rows. format_type is called with -1, because with null it would write bpchar as character, which holds a
    -- single letter.
    SELECT string_agg(format(
        'CASE WHEN pg_input_is_valid(r.key[%1$s], %2$L) THEN %3$s = r.key[%1$s] ELSE FALSE END',
        k.ordinal, t.name, format(k.written, format('CAST(%s AS %s)', format(f.read, format('r.key[%s]', k.ordinal)), t.name))
    ), ' AND ') INTO keeps
    FROM loracomp.key_columns_of(d) AS k
    JOIN pg_attribute AS a ON a.attrelid = d.source AND a.attname = k.name
    CROSS JOIN LATERAL (SELECT format_type(a.atttypid, -1) AS name) AS t
    CROSS JOIN LATERAL loracomp.key_forms(CASE WHEN k.name = bring_view_back.key_column THEN old_type ELSE a.atttypid END) AS f;
    EXECUTE format('DELETE FROM loracomp.answer_hint AS r WHERE r.declaration_id = $1 AND NOT (%s)', keeps) USING d.id;
    EXECUTE format(
        'WITH gone AS (
            DELETE FROM loracomp.answer_row AS r WHERE r.declaration_id = $1 AND NOT (%s) RETURNING r.earlier_jobs || r.job_id AS jobs
        )
        SELECT coalesce(array_agg(u.job_id), ''{}'') FROM gone AS g CROSS JOIN LATERAL unnest(g.jobs) AS u (job_id)', keeps
    ) INTO gone USING d.id;
    PERFORM loracomp.delete_jobs(gone);
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'a transaction that is open has drawn rows of %', name
        USING ERRCODE = 'lock_not_available', HINT = 'try again when it has ended; pg_stat_activity shows who has one open';
END
$$;
COMMENT ON FUNCTION loracomp.bring_view_back IS 'Makes the view of a declaration again. For alter_key.';

-- The table is locked only afterwards, because its readers and writers would otherwise wait for whoever has corrected a row.
CREATE FUNCTION loracomp.lock_views(source regclass) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.declaration;
    views regclass[] := '{}';
BEGIN
    FOR d IN SELECT a.* FROM loracomp.declaration AS a WHERE a.source = lock_views.source AND loracomp.may_alter_answers(a) LOOP
        PERFORM loracomp.check_same_owner(d);
        IF loracomp.view_definition(d.view, d.source) <> d.view_definition THEN
            RAISE EXCEPTION 'view % was changed since it was declared, and would be made again without the change', d.view
                USING ERRCODE = 'object_not_in_prerequisite_state',
                    HINT = 'give the declaration''s filter to loracomp.alter_answers, which makes the view again';
        END IF;
        views := views || d.view;
    END LOOP;
    PERFORM loracomp.lock_to_alter(views);
END
$$;
COMMENT ON FUNCTION loracomp.lock_views IS
'Locks the caller''s declarations of a table with their corrections. Raises if the owner has changed one of their views, or if the table belongs to another '
'role now. For alter_key.';

-- It runs with the caller's rights, because ALTER TABLE may run code of the table's owner; the caller must own the table. Postgres doesn't change
-- the type of a column that a view uses, so the views of the table's declarations are dropped and made again. A text becomes another type only by an
-- explicit cast; between other types that would cut values.
CREATE FUNCTION loracomp.alter_key(source regclass, key_column name, type regtype) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = '2s' -- whoever uses the table waits behind this call
AS $$
DECLARE
    views CONSTANT jsonb := (
        SELECT jsonb_agg(jsonb_build_object('view', c.oid, 'schema', n.nspname, 'name', c.relname, 'grants', (
            SELECT coalesce(jsonb_agg(g), '[]') FROM loracomp.view_grants(c.oid) AS g
        )))
        FROM loracomp.list_answers(counted => FALSE) AS a
        JOIN pg_class AS c ON c.oid = a.name JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE a.source = alter_key.source
    );
    old_type CONSTANT regtype := (
        SELECT a.atttypid FROM pg_attribute AS a WHERE a.attrelid = alter_key.source AND a.attname = key_column AND a.attnum > 0
    );
    each record;
    statement text;
BEGIN
    IF views IS NULL THEN
        RAISE EXCEPTION 'table % has no declaration of yours', alter_key.source USING ERRCODE = 'no_data_found', HINT = 'ALTER TABLE';
    END IF;
    IF old_type IS NULL THEN
        RAISE EXCEPTION 'key_column: table % has no column %', alter_key.source, coalesce(quote_ident(key_column), 'null')
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF alter_key.type IS NULL THEN
        RAISE EXCEPTION 'type must not be null: give the column''s new type, for example bigint' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM loracomp.lock_views(alter_key.source);
    BEGIN
        FOR each IN SELECT v.* FROM jsonb_to_recordset(views) AS v (view oid, schema name, name name) LOOP
            EXECUTE format('DROP VIEW %I.%I', each.schema, each.name);
        END LOOP;
        EXECUTE format(
            'ALTER TABLE %s ALTER %I TYPE %s %s %s', alter_key.source, key_column, alter_key.type,
            (
                SELECT format('COLLATE %s', a.attcollation::regcollation)
                FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = alter_key.type
                WHERE a.attrelid = alter_key.source AND a.attname = key_column AND 0 NOT IN (a.attcollation, t.typcollation)
            ),
            (
                SELECT format('USING %I::%s', key_column, alter_key.type) FROM pg_type AS o JOIN pg_type AS t ON t.oid = alter_key.type
                WHERE o.oid = old_type AND o.typcategory = 'S' AND t.typcategory <> 'S'
            )
        );
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'a transaction that is open has read or written table % or the view of one of its declarations', alter_key.source
            USING ERRCODE = 'lock_not_available', HINT = 'try again when it has ended; pg_stat_activity shows who has one open';
    END;
    FOR each IN SELECT v.* FROM jsonb_to_recordset(views) AS v (view oid, schema name, name name, grants jsonb) LOOP
        PERFORM loracomp.bring_view_back(each.view, each.schema, each.name, key_column, old_type);
        FOR statement IN
            SELECT format(
                'GRANT %s %s ON %I.%I TO %s %s', g.privilege, '(' || quote_ident(a.attname) || ')', each.schema, each.name, g.grantee,
                CASE WHEN g.is_grantable THEN 'WITH GRANT OPTION' END
            )
            FROM jsonb_to_recordset(each.grants) AS g (number smallint, privilege text, grantee text, is_grantable boolean)
            LEFT JOIN pg_attribute AS a ON a.attrelid = to_regclass(format('%I.%I', each.schema, each.name)) AND a.attnum = nullif(g.number, 0)
            WHERE g.number = 0 OR a.attname IS NOT NULL
        LOOP
            EXECUTE statement;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.alter_key IS
'Changes the type of a key column of a declared table, and keeps the answers, the corrections, and the privileges on the views.';

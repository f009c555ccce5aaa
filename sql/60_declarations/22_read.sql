-- Rows with their prompts, for ask_of, for corrections and for try_prompts.
--   read_rows           calls read_ID, with the rights of the table's owner
--     renamed, make_reader  20_parts.sql
--   read_body           the body of read_ID; make_reader calls it

-- Reads rows with the rights of the table's owner: those with these keys, or (null) the next ones after a key, in the order of the keys.
-- Each key that was read has an element, in their order; the last ones may have been left for next time. Its row `passes` if it is there
-- and passes the filter. A row that can't be asked has the reason as its `fault`.
CREATE FUNCTION loracomp.read_rows(
    d loracomp.declaration, keys jsonb DEFAULT NULL, last text[] DEFAULT NULL, most integer DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    now_named CONSTANT loracomp.declaration := loracomp.renamed(d);
    read jsonb;
BEGIN
    IF d.view IS NOT NULL AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = d.view) THEN -- it keeps the types of the key's columns
        RAISE EXCEPTION 'the rows of % can''t be read: its view was dropped', d.names[1] USING ERRCODE = 'undefined_table';
    END IF;
    IF now_named.names <> d.names THEN -- a correction comes before the claim that follows a renamed table or column
        PERFORM loracomp.make_reader(now_named);
    END IF;
    EXECUTE format('SELECT loracomp_parts.read_%s($1, $2, $3)', d.id) INTO read USING keys, last, most;
    RAISE EXCEPTION USING ERRCODE = 'LC001';
EXCEPTION
    WHEN SQLSTATE 'LC001' THEN -- what else it may have done, such as a change of settings, is undone
        RETURN read;
    WHEN SQLSTATE 'LC002' THEN -- a column has another type than when the function was made
        PERFORM loracomp.make_reader(now_named);
        RETURN loracomp.read_rows(d, keys, last, most);
END
$$;
COMMENT ON FUNCTION loracomp.read_rows IS 'Rows of a declaration''s table with their prompts, as a JSON array.';

-- An array of rows with these keys, or (keys null) the next ones in the order of the key after `last`; see read_rows. Rows are read
-- together if they have little text and no virtual column, whose expression may fail or take long; otherwise one by one.
CREATE FUNCTION loracomp.read_body(d loracomp.declaration) RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $make$
    SELECT format($body$
        #variable_conflict use_variable
        DECLARE
            began CONSTANT pg_catalog.timestamptz := pg_catalog.clock_timestamp();
            too_long CONSTANT pg_catalog.text := 'the prompt is longer than 1000000 characters';
            next_keys pg_catalog.refcursor;
            bytes pg_catalog.float8 := 0;
            found_rows pg_catalog.jsonb;
            one_by_one pg_catalog.jsonb[] := '{}';
            wanted pg_catalog.text[];
            is_passing pg_catalog.bool;
            prompt pg_catalog.text;
            fault pg_catalog.text;
        BEGIN
            IF current_user OPERATOR(pg_catalog.<>) %1$L::pg_catalog.name THEN
                RAISE EXCEPTION 'the function that reads the rows must run with the rights of its owner';
            END IF;
            IF ARRAY(
                SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid OPERATOR(pg_catalog.=) %2$L::pg_catalog.regclass
                    AND a.attname OPERATOR(pg_catalog.=) ANY (%3$L::pg_catalog.name[])
                    AND a.atttypid OPERATOR(pg_catalog.=) ANY ('{25,1042,1043}'::pg_catalog.oid[]) -- text, character, character varying
                ORDER BY a.attname::pg_catalog.text COLLATE pg_catalog."C"
            ) OPERATOR(pg_catalog.<>) %4$L::pg_catalog.text[] THEN -- a conversion to text may be code of its owner
                RAISE EXCEPTION 'a column of %% has another type now', %2$L USING ERRCODE = 'LC002';
            END IF;
            IF keys IS NULL THEN
                IF last IS NULL THEN
                    OPEN next_keys FOR SELECT %5$s FROM %6$s ORDER BY %7$s LIMIT most;
                ELSE
                    OPEN next_keys FOR SELECT %5$s FROM %6$s WHERE (%7$s) OPERATOR(pg_catalog.>) (%8$s) ORDER BY %7$s LIMIT most;
                END IF;
                WHILE bytes OPERATOR(pg_catalog.<=) 1000000 LOOP
                    FETCH next_keys INTO wanted;
                    EXIT WHEN NOT found;
                    one_by_one := pg_catalog.array_append(one_by_one, pg_catalog.jsonb_build_object('key', wanted));
                    bytes := bytes OPERATOR(pg_catalog.+) pg_catalog.pg_column_size(wanted);
                END LOOP;
                CLOSE next_keys;
                keys := pg_catalog.to_jsonb(one_by_one);
                one_by_one := '{}';
            END IF;
            IF NOT %9$L::pg_catalog.bool THEN
                BEGIN
                    bytes := (
                        SELECT coalesce(pg_catalog.sum(%10$s), 0)
                        FROM pg_catalog.jsonb_to_recordset(keys) AS k (key pg_catalog.text[]) JOIN %6$s ON %11$s
                    );
                    IF bytes OPERATOR(pg_catalog.<=) 1000000 THEN
                        RETURN (
                            SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                                'key', k.key, 'passes', coalesce(%12$s, false), 'prompt', CASE WHEN %12$s AND %13$s THEN %14$s END
                            ) ORDER BY k.place), '[]')
                            FROM ROWS FROM (pg_catalog.jsonb_to_recordset(keys) AS (key pg_catalog.text[])) WITH ORDINALITY AS k (key, place)
                            LEFT JOIN %6$s ON %11$s
                        );
                    END IF;
                EXCEPTION WHEN %15$s THEN NULL; -- one by one, then
                END;
            END IF;
            bytes := 0;
            FOR wanted IN SELECT k.key FROM pg_catalog.jsonb_to_recordset(keys) AS k (key pg_catalog.text[]) LOOP
                EXIT WHEN bytes OPERATOR(pg_catalog.>) 1000000 OR pg_catalog.cardinality(one_by_one) OPERATOR(pg_catalog.>) 0
                    AND pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) (began OPERATOR(pg_catalog.+) '0.1 seconds'::pg_catalog.interval);
                prompt := NULL;
                fault := NULL;
                BEGIN
                    SELECT %12$s, CASE WHEN %16$s OPERATOR(pg_catalog.>) 4000000 THEN too_long END INTO is_passing, fault
                    FROM %6$s CROSS JOIN (SELECT wanted AS key) AS k WHERE %11$s;
                    IF is_passing AND fault IS NULL THEN
                        SELECT %14$s INTO prompt FROM %6$s CROSS JOIN (SELECT wanted AS key) AS k WHERE %11$s;
                        IF pg_catalog.char_length(prompt) OPERATOR(pg_catalog.>) 1000000 THEN
                            prompt := NULL;
                            fault := too_long;
                        ELSE
                            SELECT prompt INTO prompt FROM %6$s CROSS JOIN (SELECT wanted AS key) AS k WHERE %11$s AND %13$s;
                        END IF;
                    END IF;
                EXCEPTION WHEN %15$s THEN -- the view's readers must not learn the values that an error quotes
                    is_passing := true;
                    prompt := NULL;
                    fault := pg_catalog.concat(
                        'its prompt can''t be made: ', pg_catalog."left"(pg_catalog.regexp_replace(sqlerrm, '".*"', '...'), 200)
                    );
                END;
                one_by_one := pg_catalog.array_append(one_by_one, pg_catalog.jsonb_build_object(
                    'key', wanted, 'passes', coalesce(is_passing, false), 'prompt', prompt, 'fault', fault
                ));
                bytes := bytes OPERATOR(pg_catalog.+) coalesce(pg_catalog.octet_length(prompt), 0);
            END LOOP;
            RETURN pg_catalog.to_jsonb(one_by_one);
        END
        $body$,
        d.owner, d.names[1], p.named, p.texts,
        format('ARRAY[%s]', loracomp.key_list(d, '%2$s')), loracomp.from_source(d),
        loracomp.key_list(d, '%1$s'), loracomp.key_list(d, '%3$s', key => 'last'),
        EXISTS (SELECT FROM pg_attribute AS v WHERE v.attrelid = d.source AND v.attnum = ANY (d.columns) AND v.attgenerated = 'v'),
        p.likely_size, loracomp.key_list(d, '%1$s OPERATOR(pg_catalog.=) %3$s', separator => ' AND '),
        concat_ws(
            ' AND ', loracomp.key_list(d, '%1$s IS NOT NULL', separator => ' AND '), loracomp.key_fits(d, 'k.key'),
            loracomp.filter_condition(d)
        ),
        format('%s OPERATOR(pg_catalog.~) ''[^ \t\r\n]''', p.given), p.prompt,
        'data_exception OR integrity_constraint_violation OR program_limit_exceeded OR internal_error OR out_of_memory OR feature_not_supported',
        p.least_size
    )
    FROM (
        SELECT
            string_agg(coalesce(v.value, quote_literal(t.literal)), ' OPERATOR(pg_catalog.||) ' ORDER BY t.place) AS prompt,
            string_agg(v.value, ' OPERATOR(pg_catalog.||) ') AS given,
            -- Neither reads the values, which may be a hundred times as long as they are stored. That is only known of texts; what
            -- is stored of other types is compressed to a fourth, if at all, and their texts have half as many letters at least.
            string_agg(coalesce(v.length, '(' || v.stored || ' OPERATOR(pg_catalog.*) 4)'), ' OPERATOR(pg_catalog.+) ') AS likely_size,
            string_agg(coalesce(v.length, '(' || v.stored || ' OPERATOR(pg_catalog./) 2)'), ' OPERATOR(pg_catalog.+) ') AS least_size,
            array_remove(array_agg(t.col), NULL) AS named,
            coalesce(array_agg(DISTINCT t.col COLLATE "C") FILTER (WHERE v.length IS NOT NULL), '{}') AS texts
        FROM loracomp.prompt_pieces(d.prompt) AS t
        LEFT JOIN pg_attribute AS a ON a.attrelid = d.source AND a.attname = t.col
        CROSS JOIN LATERAL (
            SELECT
                'pg_catalog.concat(s.' || quote_ident(t.col) || ')' AS value,
                CASE WHEN a.atttypid = ANY ('{text,varchar,bpchar}'::regtype[])
                    THEN 'coalesce(pg_catalog.octet_length(s.' || quote_ident(t.col) || ')::pg_catalog.float8, 0)'
                END AS length,
                'coalesce(pg_catalog.pg_column_size(s.' || quote_ident(t.col) || ')::pg_catalog.float8, 0)' AS stored
        ) AS v
    ) AS p;
$make$;
COMMENT ON FUNCTION loracomp.read_body IS 'The body of the function that reads a declaration''s rows.';

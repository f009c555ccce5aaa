-- Asking: a claim turns what hints name, and the pages of a look at all rows, into jobs.
--   ask_rows                    called by claim_jobs
--     look_at_all               begins a look at all rows; loracomp init calls it too
--     ask_of                    one declaration: its hints, then the next page of its look at all rows
--       follow_source           notices what became of the table: renamed, restored, dropped, another owner
--         forget_answers, check_owner, check_code, check_text, make_parts
--       take_hints              the keys that hints name
--       read_rows               rows with their prompts, read with the rights of the table's owner
--       ask_found               jobs for the rows whose prompt is new; what is gone is erased

-- One session at a time asks for a declaration; others pass over it. What fails is undone, noted, and tried again later.
CREATE FUNCTION loracomp.ask_rows() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = '200ms'
AS $$
DECLARE
    d loracomp.declaration;
    most integer;
    newest_miss CONSTANT bigint := (
        SELECT m.last_value FROM loracomp.missed_hint AS m
        WHERE m.last_value < pg_snapshot_xmin(pg_current_snapshot())::text::bigint -- that transaction has ended
    );
BEGIN
    FOR d IN
        SELECT a.* FROM loracomp.declaration AS a
        WHERE a.retry_at <= clock_timestamp() AND (
            EXISTS (SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = a.id AND h.written_in >= a.hints_from)
            OR (SELECT count(*) FROM pg_class AS c WHERE c.oid IN (a.source, a.view)) < 2
            OR NOT a.paused AND (
                newest_miss >= a.looked_from OR a.looked_at < now() - interval '1 day' -- triggers miss some: COPY by replication, a new partition
                OR a.sweep IS NOT NULL AND NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = a.page_job AND j.status = 'queued')
                OR a.source_oid <> a.source
            )
        )
        ORDER BY random() -- so that none is left out for long where many have much to ask
        FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        EXIT WHEN clock_timestamp() > statement_timestamp() + interval '1 second'; -- the claim waits
        FOREACH most IN ARRAY '{200,20,1}'::integer[] LOOP -- the owner's share of the queue may have less room
            BEGIN
                PERFORM loracomp.ask_of(CASE
                    WHEN newest_miss >= d.looked_from OR d.looked_at < now() - interval '1 day' THEN loracomp.look_at_all(d.id)
                    ELSE d
                END, most);
                EXIT;
            EXCEPTION WHEN OTHERS THEN -- soon again if the queue is full, or the table is being vacuumed or gets an index
                UPDATE loracomp.declaration AS a SET
                    trouble = sqlerrm,
                    retry_at = clock_timestamp() + make_interval(secs => CASE WHEN sqlstate IN ('53400', '55P03') THEN 1 ELSE 10 END)
                WHERE a.id = d.id;
                EXIT WHEN sqlstate <> '53400';
            END;
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.ask_rows IS 'Asks for the rows of declarations that were written since the last call. For claim_jobs.';

-- From the start. The look `skip` stays one.
CREATE FUNCTION loracomp.look_at_all(declaration_id integer) RETURNS loracomp.declaration
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    UPDATE loracomp.declaration AS a
    SET sweep = coalesce(nullif(a.sweep, 'answers'), 'source'), swept_to = NULL, looked_at = now(),
        looked_from = pg_snapshot_xmin(pg_current_snapshot())::text::bigint
    WHERE a.id = look_at_all.declaration_id
    RETURNING a.*;
$$;
COMMENT ON FUNCTION loracomp.look_at_all IS 'Begins a look at all rows of a declaration.';

-- A look at all rows reads the table in the order of its key, then the answers, because the rows of some may be gone.
CREATE FUNCTION loracomp.ask_of(d loracomp.declaration, most integer) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    oldest CONSTANT bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    found_by text;
    keys jsonb;
    found_rows jsonb;
    is_last boolean;
    asked bigint;
BEGIN
    d := loracomp.follow_source(d);
    IF d.id IS NULL THEN
        RETURN;
    END IF;
    IF d.paused THEN -- one hint a row is enough; once a minute, as this reads them all
        DELETE FROM loracomp.answer_hint AS h
        WHERE h.declaration_id = d.id AND h.ctid NOT IN (
            SELECT max(n.ctid) FROM loracomp.answer_hint AS n WHERE n.declaration_id = d.id GROUP BY n.key
        );
        UPDATE loracomp.declaration AS a SET retry_at = clock_timestamp() + interval '1 minute' WHERE a.id = d.id;
        RETURN;
    END IF;
    FOR part IN 1..10 LOOP -- several if they have nothing to ask; the claim that called waits
        keys := loracomp.take_hints(d, most);
        found_by := CASE
            WHEN keys IS NOT NULL THEN 'hint'
            WHEN NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = d.page_job AND j.status = 'queued') THEN d.sweep
        END;
        EXIT WHEN found_by IS NULL;
        IF found_by = 'answers' THEN
            keys := (
                SELECT coalesce(jsonb_agg(jsonb_build_object('key', p.key) ORDER BY p.key), '[]') FROM (
                    SELECT r.key FROM loracomp.answer_row AS r
                    WHERE r.declaration_id = d.id AND r.key > coalesce(d.swept_to, '{}') ORDER BY r.key LIMIT most
                ) AS p
            );
        END IF;
        found_rows := loracomp.read_rows(d, keys, d.swept_to, most);
        keys := coalesce(keys, found_rows, '[]');
        asked := loracomp.ask_found(d, keys, found_rows, found_by);
        IF found_by <> 'hint' THEN
            is_last := jsonb_array_length(keys) < most;
            UPDATE loracomp.declaration AS a SET
                sweep = CASE WHEN NOT is_last THEN found_by WHEN found_by <> 'answers' THEN 'answers' END,
                swept_to = CASE WHEN NOT is_last THEN ARRAY(SELECT jsonb_array_elements_text(keys -> -1 -> 'key')) END,
                page_job = asked
            WHERE a.id = d.id;
        END IF;
        EXIT WHEN asked > 0;
        SELECT a.* INTO d FROM loracomp.declaration AS a WHERE a.id = d.id;
    END LOOP;
    -- Handled hints leave dead entries, which stay while any session has an old snapshot: next time they are passed over. Transactions
    -- before oldest have ended, so no hint of theirs can still come. Not at each call, as this leaves a dead row as well.
    IF d.trouble IS NOT NULL OR oldest > d.hints_from + 100 THEN
        UPDATE loracomp.declaration AS a SET
            trouble = NULL, retry_at = '-infinity',
            hints_from = CASE WHEN EXISTS (
                SELECT FROM loracomp.answer_hint AS h
                WHERE h.declaration_id = a.id AND h.written_in >= a.hints_from AND h.written_in < oldest
            ) THEN a.hints_from ELSE oldest END
        WHERE a.id = d.id;
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.ask_of IS 'Asks for rows of a declaration: those that hints name, and a page of a look at all rows.';

-- The declaration as it now is; null if its table or view is gone, and then it is forgotten. Raises if nothing may be read.
CREATE FUNCTION loracomp.follow_source(d loracomp.declaration) RETURNS loracomp.declaration
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    owner name;
    now_names text[];
    users text;
BEGIN
    IF d.source_oid <> d.source THEN -- restored from a dump, with other numbers of columns and transactions
        UPDATE loracomp.answer_row AS r SET changed_in = 0 WHERE r.declaration_id = d.id;
        UPDATE loracomp.declaration AS a SET
            source_oid = a.source, looked_from = 0, hints_from = 0,
            columns = loracomp.numbers_of(a.source, a.names[2 : cardinality(a.columns) + 1]),
            key_columns = loracomp.numbers_of(a.source, a.names[cardinality(a.columns) + 2 :])
        WHERE a.id = d.id RETURNING a.* INTO d;
        PERFORM loracomp.make_parts(d);
    END IF;
    SELECT pg_get_userbyid(s.relowner), loracomp.source_names(d.source, d.columns || d.key_columns) INTO owner, now_names
    FROM pg_class AS s JOIN pg_class AS v ON v.oid = d.view WHERE s.oid = d.source;
    IF owner IS NULL THEN
        BEGIN
            PERFORM loracomp.forget_answers(d);
        EXCEPTION WHEN dependent_objects_still_exist THEN -- pg_restore --clean of the user's schema alone made its view again
            GET STACKED DIAGNOSTICS users = PG_EXCEPTION_DETAIL;
            RAISE EXCEPTION 'the table or view of this declaration was dropped, but %: drop that, then declare again', users;
        END;
        RETURN NULL;
    END IF;
    IF owner <> d.owner THEN
        RAISE EXCEPTION 'table % belongs to % now, who may drop this declaration and make another', d.names[1], owner;
    END IF;
    PERFORM loracomp.check_owner(owner), loracomp.check_code(d.source);
    IF num_nulls(VARIADIC now_names) > 0 THEN
        RAISE EXCEPTION 'column % was dropped: give another prompt by alter_answers', (
            SELECT string_agg(quote_ident(o.name), ', ') FROM unnest(d.names, now_names) AS o (name, now) WHERE o.now IS NULL
        );
    END IF;
    PERFORM loracomp.check_text(d.source, d.columns);
    IF loracomp.key_of(d.source) <> d.key_columns THEN
        RAISE EXCEPTION 'table % no longer has the primary key (%): add it again, or drop this declaration and make another',
            d.names[1], array_to_string(now_names[cardinality(d.columns) + 2 :], ', ');
    END IF;
    IF now_names <> d.names THEN
        d := loracomp.renamed(d);
        UPDATE loracomp.declaration AS a SET prompt = d.prompt, filter = d.filter, names = d.names WHERE a.id = d.id;
        d := loracomp.look_at_all(d.id);
        PERFORM loracomp.make_parts(d);
    END IF;
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.follow_source IS 'Follows what became of a declaration''s table: renamed columns are renamed in the prompt.';

-- An array of objects; null if there are no hints. One without a key says that the table was emptied.
CREATE FUNCTION loracomp.take_hints(d loracomp.declaration, most integer) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    keys jsonb;
    is_emptied boolean;
BEGIN
    WITH taken AS (
        DELETE FROM loracomp.answer_hint AS h
        WHERE h.ctid = ANY (ARRAY(
            SELECT n.ctid FROM loracomp.answer_hint AS n
            WHERE n.declaration_id = d.id AND n.written_in >= d.hints_from ORDER BY n.written_in LIMIT most
        ))
        RETURNING h.key
    )
    SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_object('key', t.key)) FILTER (WHERE t.key <> '{}'), '[]'), bool_or(t.key = '{}')
    INTO keys, is_emptied FROM taken AS t HAVING count(*) > 0;
    IF is_emptied THEN
        PERFORM loracomp.look_at_all(d.id);
    END IF;
    RETURN keys;
END
$$;
COMMENT ON FUNCTION loracomp.take_hints IS 'The keys of rows that hints name; the hints are deleted.';

-- Reads rows with the rights of the table's owner: those with these keys, or (null) the next ones after a key, in the order of the keys.
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
EXCEPTION WHEN SQLSTATE 'LC001' THEN -- what else it may have done, such as a change of settings, is undone
    RETURN read;
END
$$;
COMMENT ON FUNCTION loracomp.read_rows IS 'Rows of a declaration''s table with their prompts, as a JSON array.';

-- Returns a job from the middle of those that it asked. A row whose newest prompt is the one that was asked is left as it is. by: what
-- found the rows, a hint or a look at all rows. The look `skip` only notes the rows that were there: without backfill, they are asked
-- once a hint says that they have changed.
CREATE FUNCTION loracomp.ask_found(d loracomp.declaration, keys jsonb, found_rows jsonb, by text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    of_jobs CONSTANT text := loracomp.policy_of(d);
    skipped CONSTANT text := 'it was there before the declaration';
    passing bigint;
    obsolete bigint[];
    new_jobs bigint[];
BEGIN
    WITH given AS MATERIALIZED (
        SELECT
            f.key, f.prompt,
            sha256(convert_to(jsonb_build_array(d.round, d.max_new_tokens, d.choices, f.prompt)::text, 'UTF8')) AS prompt_hash,
            CASE
                WHEN f.prompt IS NULL OR loracomp.is_blank(f.prompt) THEN 'all columns of the prompt are empty'
                WHEN char_length(f.prompt) > 1000000 THEN 'the prompt is longer than 1000000 characters'
                WHEN by = 'skip' THEN skipped
            END AS reason
        FROM jsonb_to_recordset(found_rows) AS f (key text[], prompt text, passes boolean)
        WHERE f.passes
    ),
    changed AS MATERIALIZED (
        SELECT
            g.*, CASE WHEN g.reason IS NULL THEN nextval('loracomp.job_id_seq') END AS job_id,
            (SELECT j.id FROM loracomp.job AS j WHERE j.id = r.job_id AND j.finished_at IS NULL) AS obsolete
        FROM given AS g
        LEFT JOIN LATERAL ( -- looked up for each, as the plan may be of a time when there were few rows
            SELECT o.* FROM loracomp.answer_row AS o WHERE o.declaration_id = d.id AND o.key = g.key LIMIT 1
        ) AS r ON TRUE
        WHERE r.prompt_hash IS DISTINCT FROM g.prompt_hash OR by = 'hint' AND r.reason = skipped
    ),
    queued AS (
        INSERT INTO loracomp.job (id, prompt, choices, max_new_tokens, policy, priority, tags, submitted_by)
        OVERRIDING SYSTEM VALUE
        SELECT c.job_id, c.prompt, d.choices, d.max_new_tokens, of_jobs,
            CASE by WHEN 'hint' THEN d.priority ELSE least(d.priority, -1) END, d.tags, d.owner
        FROM changed AS c WHERE c.job_id IS NOT NULL ORDER BY c.job_id
    ),
    written AS (
        INSERT INTO loracomp.answer_row AS r (declaration_id, key, status, reason, job_id, prompt_hash, changed_in)
        SELECT
            d.id, c.key, CASE WHEN c.reason IS NULL THEN 'asked' ELSE 'refused' END, c.reason, c.job_id, c.prompt_hash,
            pg_current_xact_id()::text::bigint
        FROM changed AS c
        ON CONFLICT ON CONSTRAINT a_row_has_one_answer DO UPDATE SET
            status = excluded.status, reason = excluded.reason, job_id = excluded.job_id, prompt_hash = excluded.prompt_hash,
            answer = CASE excluded.status WHEN 'asked' THEN r.answer END, changed_in = excluded.changed_in
    )
    SELECT
        (SELECT count(*) FROM given AS g), array_agg(c.obsolete),
        array_agg(c.job_id ORDER BY c.job_id) FILTER (WHERE c.job_id IS NOT NULL)
    INTO passing, obsolete, new_jobs FROM changed AS c;
    IF passing < jsonb_array_length(keys) THEN
        WITH gone AS (
            DELETE FROM loracomp.answer_row AS r
            USING (
                SELECT k.key FROM jsonb_to_recordset(keys) AS k (key text[])
                EXCEPT SELECT f.key FROM jsonb_to_recordset(found_rows) AS f (key text[], passes boolean) WHERE f.passes
            ) AS k
            WHERE r.declaration_id = d.id AND r.key = k.key
            RETURNING r.job_id
        )
        SELECT obsolete || array_agg(g.job_id) INTO obsolete FROM gone AS g;
    END IF;
    IF num_nulls(VARIADIC obsolete) < cardinality(obsolete) THEN
        PERFORM loracomp.delete_jobs(obsolete);
    END IF;
    RETURN new_jobs[(cardinality(new_jobs) + 1) / 2];
END
$$;
COMMENT ON FUNCTION loracomp.ask_found IS 'Inserts jobs for rows whose prompt is new, and erases what was asked for keys that were not found.';

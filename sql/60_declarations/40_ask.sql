-- Asking: the keeper turns what hints name, and the pages of a look at all rows, into jobs.
--   ask_rows                    a step of the keeper
--     must_look                 whether triggers may have missed rows
--     look_at_all               begins a look at all rows; loracomp init calls it too
--     ask_of                    one declaration: its hints, then the next page of its look at all rows
--       follow_source           notices what became of the table: renamed, restored, dropped, another owner
--         forget_some, check_owner, check_code, check_text, make_parts
--       hinted_keys             the keys that hints name
--       read_rows               rows with their prompts, read with the rights of the table's owner: 22_read.sql
--       ask_these               as many of these rows as can be asked together; a row that can't be asked is marked
--         ask_found             jobs for the rows whose prompt is new; what is gone is erased
--   rows_wait                   whether there is something to ask; a worker with --drain waits for it
--
-- The rows of all declarations wait for what is asked here. So a call asks for 0.2 s, and begins no page after that; read_ID ends a page at a megabyte or after 0.1 s, and marks a row that can't be read; and a declaration whose rows still take more than
-- a second to read, as a virtual column can, is left out for five times as long.

-- One session at a time asks for a declaration; others pass over it. What fails is undone, noted, and tried again later.
CREATE FUNCTION loracomp.ask_rows() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET lock_timeout = '20ms'
-- As in claim_jobs, statements are planned once a session, for index scans that stop early.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    d loracomp.declaration;
    deadline CONSTANT timestamptz := clock_timestamp() + interval '0.2 seconds'; -- other declarations wait
    handled integer := 0;
    oldest CONSTANT bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
BEGIN
    FOR d IN
        SELECT a.* FROM (
            SELECT o.id, row_number() OVER (PARTITION BY o.owner ORDER BY random()) AS turn FROM loracomp.declaration AS o
            WHERE o.retry_at <= clock_timestamp() AND (
                EXISTS (SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = o.id AND h.written_in >= o.hints_from)
                OR (SELECT count(*) FROM pg_class AS c WHERE c.oid IN (o.source, o.view)) < 2
                OR NOT o.paused AND (
                    loracomp.must_look(o, oldest)
                    OR o.sweep IS NOT NULL AND NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = o.page_job AND j.status = 'queued')
                    OR o.source_oid <> o.source
                )
            )
        ) AS n
        JOIN loracomp.declaration AS a ON a.id = n.id
        ORDER BY n.turn, random() -- so that no owner is left out for long where others have many tables, or much to ask
        FOR NO KEY UPDATE OF a SKIP LOCKED
    LOOP
        EXIT WHEN clock_timestamp() > deadline;
        handled := handled + 1;
        BEGIN
            PERFORM loracomp.ask_of(CASE WHEN loracomp.must_look(d, oldest) THEN loracomp.look_at_all(d.id) ELSE d END, deadline);
        EXCEPTION WHEN OTHERS THEN -- soon again if the queue is full, or the table is being vacuumed or gets an index
            UPDATE loracomp.declaration AS a SET
                trouble = left(sqlerrm, 1000),
                retry_at = clock_timestamp() + make_interval(secs => CASE WHEN sqlstate IN ('53400', '55P03') THEN 1 ELSE 10 END)
            WHERE a.id = d.id;
        END;
    END LOOP;
    RETURN handled;
END
$$;
COMMENT ON FUNCTION loracomp.ask_rows IS
'Asks for the rows of declarations that were written since the last call; returns of how many declarations. For the keeper.';

-- Reads only. What can't be asked because of a fault that only a person mends does not count, but what is tried again within a second
-- does: the table may just be being vacuumed.
CREATE FUNCTION loracomp.rows_wait() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET jit = off
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM loracomp.declaration AS a
        WHERE NOT a.paused AND (a.trouble IS NULL OR a.retry_at < clock_timestamp() + interval '1.5 seconds') AND (
            a.sweep IS NOT NULL OR EXISTS (
                SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = a.id AND h.written_in >= a.hints_from
            )
        )
    );
END;
COMMENT ON FUNCTION loracomp.rows_wait IS 'Whether rows of declarations wait to be asked.';

-- Reads only. A look that is under way is ended first, or it might never end where triggers miss rows all the time. `oldest`: the
-- transaction that missed a hint must have ended. Triggers also miss what they don't see: COPY by replication, a new partition. Whoever is
-- dropping the declaration has locked its sequence until the transaction ends. No other declaration may wait for that.
CREATE FUNCTION loracomp.must_look(d loracomp.declaration, oldest bigint) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
SET lock_timeout = '1ms'
AS $$
BEGIN
    RETURN d.sweep IS NULL AND (
        d.looked_at < now() - interval '1 day' OR coalesce(
            pg_sequence_last_value(to_regclass(format('loracomp_parts.missed_%s', d.id))) BETWEEN d.looked_from AND must_look.oldest - 1,
            FALSE
        )
    );
EXCEPTION WHEN lock_not_available OR undefined_table OR internal_error THEN -- it is being dropped, or has been meanwhile
    RETURN FALSE;
END
$$;
COMMENT ON FUNCTION loracomp.must_look IS 'Whether triggers may have missed rows of a declaration since the last look at all rows began.';

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
CREATE FUNCTION loracomp.ask_of(d loracomp.declaration, deadline timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    most CONSTANT integer := 200;
    oldest CONSTANT bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    hints tid[];
    found_by text;
    keys jsonb;
    found_rows jsonb;
    asked bigint;
    began timestamptz;
    slowest interval := '0';
BEGIN
    d := loracomp.follow_source(d);
    IF d.id IS NULL THEN
        RETURN;
    END IF;
    IF d.paused THEN -- one hint a row is enough; once a minute, and of the first 20,000, as this reads them all
        DELETE FROM loracomp.answer_hint AS h
        WHERE h.ctid IN (
            SELECT n.ctid FROM (
                SELECT o.ctid, row_number() OVER (PARTITION BY o.key ORDER BY o.ctid DESC) AS place FROM (
                    SELECT f.ctid, f.key FROM loracomp.answer_hint AS f
                    WHERE f.declaration_id = d.id AND f.written_in >= d.hints_from ORDER BY f.written_in LIMIT 20000
                ) AS o
            ) AS n WHERE n.place > 1
        );
        UPDATE loracomp.declaration AS a SET retry_at = clock_timestamp() + interval '1 minute' WHERE a.id = d.id;
        RETURN;
    END IF;
    FOR part IN 1..10 LOOP -- several if they have nothing to ask
        EXIT WHEN part > 1 AND clock_timestamp() > deadline;
        hints := ARRAY(
            SELECT h.ctid FROM loracomp.answer_hint AS h
            WHERE h.declaration_id = d.id AND h.written_in >= d.hints_from ORDER BY h.written_in LIMIT most
        );
        found_by := CASE
            WHEN hints <> '{}' THEN 'hint'
            WHEN NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = d.page_job AND j.status = 'queued') THEN d.sweep
        END;
        EXIT WHEN found_by IS NULL;
        keys := CASE found_by WHEN 'hint' THEN loracomp.hinted_keys(d, hints) WHEN 'answers' THEN (
            SELECT coalesce(jsonb_agg(jsonb_build_object('key', p.key) ORDER BY p.key), '[]') FROM (
                SELECT r.key FROM loracomp.answer_row AS r
                WHERE r.declaration_id = d.id AND r.key > coalesce(d.swept_to, '{}') ORDER BY r.key LIMIT most
            ) AS p
        ) END;
        began := clock_timestamp();
        found_rows := loracomp.read_rows(d, keys, d.swept_to, most);
        slowest := greatest(slowest, clock_timestamp() - began);
        SELECT a.asked, a.rows INTO asked, found_rows FROM loracomp.ask_these(d, found_rows, found_by) AS a;
        IF found_by = 'hint' THEN -- rows that were not read this time keep theirs
            DELETE FROM loracomp.answer_hint AS h
            WHERE h.ctid = ANY (hints)
                AND (h.key = '{}' OR h.key IN (SELECT f.key FROM jsonb_to_recordset(found_rows) AS f (key text[])));
        ELSE
            UPDATE loracomp.declaration AS a SET
                sweep = CASE WHEN found_rows <> '[]' THEN found_by WHEN found_by <> 'answers' THEN 'answers' END,
                swept_to = CASE WHEN found_rows <> '[]' THEN ARRAY(SELECT jsonb_array_elements_text(found_rows -> -1 -> 'key')) END,
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
    IF slowest > interval '1 second' THEN
        UPDATE loracomp.declaration AS a SET retry_at = clock_timestamp() + 5 * slowest WHERE a.id = d.id;
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.ask_of IS 'Asks for rows of a declaration: those that hints name, and a page of a look at all rows.';

-- Millions of answers are deleted by many calls.
CREATE FUNCTION loracomp.forget_some(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    most CONSTANT integer := 2000;
    jobs bigint[];
BEGIN
    WITH gone AS (
        DELETE FROM loracomp.answer_row AS r
        WHERE r.ctid = ANY (ARRAY(SELECT o.ctid FROM loracomp.answer_row AS o WHERE o.declaration_id = d.id LIMIT most))
        RETURNING r.job_id
    )
    SELECT array_agg(g.job_id) INTO jobs FROM gone AS g;
    PERFORM loracomp.delete_jobs(ARRAY(SELECT j.id FROM loracomp.job AS j WHERE j.id = ANY (jobs) AND j.finished_at IS NULL));
    IF (cardinality(jobs) = most) IS NOT TRUE THEN
        PERFORM loracomp.forget_answers(d);
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.forget_some IS 'Deletes answers of a declaration whose table or view is gone, and the declaration with the last of them.';

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
            PERFORM loracomp.forget_some(d);
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

-- An array of objects. A hint without a key says that the table was emptied.
CREATE FUNCTION loracomp.hinted_keys(d loracomp.declaration, hints tid[]) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    keys jsonb;
    is_emptied boolean;
BEGIN
    SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_object('key', h.key)) FILTER (WHERE h.key <> '{}'), '[]'), bool_or(h.key = '{}')
    INTO keys, is_emptied FROM loracomp.answer_hint AS h WHERE h.ctid = ANY (hinted_keys.hints);
    IF is_emptied THEN
        PERFORM loracomp.look_at_all(d.id);
    END IF;
    RETURN keys;
END
$$;
COMMENT ON FUNCTION loracomp.hinted_keys IS 'The keys of rows that hints name.';

-- Returns a job from the middle of those that it asked. A row whose newest prompt is the one that was asked is left as it is. by: what
-- found the rows, a hint or a look at all rows. The look `skip` only notes the rows that were there: without backfill, they are asked
-- once a hint says that they have changed.
CREATE FUNCTION loracomp.ask_found(d loracomp.declaration, found_rows jsonb, by text) RETURNS bigint
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
            sha256(convert_to(
                coalesce(f.fault, jsonb_build_array(d.round, d.max_new_tokens, d.choices, f.prompt)::text), 'UTF8'
            )) AS prompt_hash,
            CASE
                WHEN f.fault IS NOT NULL THEN f.fault
                WHEN f.prompt IS NULL OR loracomp.is_blank(f.prompt) THEN 'all columns of the prompt are empty'
                WHEN char_length(f.prompt) > 1000000 THEN 'the prompt is longer than 1000000 characters'
                WHEN by = 'skip' THEN skipped
            END AS reason
        FROM jsonb_to_recordset(found_rows) AS f (key text[], prompt text, passes boolean, fault text)
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
    IF passing < jsonb_array_length(found_rows) THEN
        WITH gone AS (
            DELETE FROM loracomp.answer_row AS r
            USING (
                SELECT f.key FROM jsonb_to_recordset(found_rows) AS f (key text[], passes boolean) WHERE NOT f.passes
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

-- If a page can't be asked, half of it is tried, and so on to a single row; the other rows wait for the next call. The fault is that
-- row's own if a job without its text is accepted.
CREATE FUNCTION loracomp.ask_these(d loracomp.declaration, INOUT rows jsonb, by text, OUT asked bigint)
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    LOOP
        BEGIN
            asked := loracomp.ask_found(d, rows, by);
            RETURN;
        EXCEPTION
            WHEN configuration_limit_exceeded OR data_exception OR integrity_constraint_violation OR program_limit_exceeded
                OR internal_error OR out_of_memory
            THEN
                IF jsonb_array_length(rows) > 1 THEN
                    rows := jsonb_path_query_array(rows, '$[0 to $last]', jsonb_build_object('last', jsonb_array_length(rows) / 2 - 1));
                ELSIF sqlstate = '53400' OR rows -> 0 ->> 'fault' IS NOT NULL THEN
                    RAISE;
                ELSE
                    PERFORM loracomp.check_request(d);
                    rows := jsonb_build_array((rows -> 0) - 'prompt' || jsonb_build_object(
                        'fault', 'it can''t be asked: ' || left(regexp_replace(sqlerrm, '".*"', '...'), 200)
                    ));
                END IF;
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.ask_these IS 'Asks for the first of these rows that can be asked together, and returns them with a job of theirs.';

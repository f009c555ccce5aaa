-- Asking: a claim turns what hints name, and the pages of a look at all rows, into jobs.
--   ask_rows                    called by claim_jobs
--     look_at_all               begins a look at all rows; loracomp init calls it too
--     ask_of                    one declaration: its hints, then the next page of its look at all rows
--       follow_source           notices what became of the table: renamed, restored, dropped, another owner
--         forget_answers, make_parts
--       ask_hints
--       ask_page
--         read_rows             both call these: rows with their prompts, read with the rights of the table's owner
--         ask_found             jobs for the rows whose prompt is new; what is gone is erased

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
            OR NOT a.paused AND (
                newest_miss >= a.looked_from OR a.looked_at < now() - interval '1 day' -- triggers miss some: COPY by replication, a new partition
                OR a.sweep IS NOT NULL AND NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = a.page_job AND j.status = 'queued')
                OR a.source_oid <> a.source OR (SELECT count(*) FROM pg_class AS c WHERE c.oid IN (a.source, a.view)) < 2
            )
        )
        ORDER BY random() -- so that none is left out for long where many have much to ask
        FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        EXIT WHEN clock_timestamp() > statement_timestamp() + interval '1 second'; -- the claim waits
        IF d.paused THEN -- one hint a row is enough; once a minute, as this reads them all
            DELETE FROM loracomp.answer_hint AS h
            WHERE h.declaration_id = d.id AND h.ctid NOT IN (
                SELECT max(n.ctid) FROM loracomp.answer_hint AS n WHERE n.declaration_id = d.id GROUP BY n.key
            );
            UPDATE loracomp.declaration AS a SET retry_at = clock_timestamp() + interval '1 minute' WHERE a.id = d.id;
            CONTINUE;
        END IF;
        FOREACH most IN ARRAY '{200,20,1}'::integer[] LOOP -- the owner's share of the queue may have less room
            BEGIN
                IF newest_miss >= d.looked_from OR d.looked_at < now() - interval '1 day' THEN
                    PERFORM loracomp.look_at_all(d.id);
                END IF;
                PERFORM loracomp.ask_of(d, most);
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
CREATE FUNCTION loracomp.look_at_all(declaration_id integer) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    UPDATE loracomp.declaration AS a
    SET sweep = coalesce(nullif(a.sweep, 'answers'), 'source'), swept_to = NULL, looked_at = now(),
        looked_from = pg_snapshot_xmin(pg_current_snapshot())::text::bigint
    WHERE a.id = look_at_all.declaration_id;
$$;
COMMENT ON FUNCTION loracomp.look_at_all IS 'Begins a look at all rows of a declaration.';

CREATE FUNCTION loracomp.ask_of(d loracomp.declaration, most integer) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    asked bigint;
BEGIN
    d := loracomp.follow_source(d);
    IF d.id IS NULL THEN
        RETURN;
    END IF;
    FOR part IN 1..10 LOOP -- several if they have nothing to ask; the claim that called waits
        SELECT a.* INTO d FROM loracomp.declaration AS a WHERE a.id = d.id;
        IF EXISTS (SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = d.id AND h.written_in >= d.hints_from) THEN
            asked := loracomp.ask_hints(d, most);
        ELSIF d.sweep IS NOT NULL AND NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = d.page_job AND j.status = 'queued') THEN
            asked := loracomp.ask_page(d, most);
        ELSE
            EXIT;
        END IF;
        EXIT WHEN asked > 0;
    END LOOP;
    -- Handled hints leave dead entries, which stay while any session has an old snapshot: next time they are passed over. Transactions
    -- before oldest have ended, so no hint of theirs can still come. Not at each call, as this leaves a dead row as well.
    UPDATE loracomp.declaration AS a SET
        trouble = NULL, retry_at = '-infinity',
        hints_from = CASE WHEN EXISTS (
            SELECT FROM loracomp.answer_hint AS h
            WHERE h.declaration_id = a.id AND h.written_in >= a.hints_from AND h.written_in < s.oldest
        ) THEN a.hints_from ELSE s.oldest END
    FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest) AS s
    WHERE a.id = d.id AND (a.trouble IS NOT NULL OR s.oldest > a.hints_from + 100);
END
$$;
COMMENT ON FUNCTION loracomp.ask_of IS 'Asks for rows of a declaration: those that hints name, and a page of a look at all rows.';

-- The declaration as it now is; null if its table or view is gone, and then it is forgotten. Raises if nothing may be read.
CREATE FUNCTION loracomp.follow_source(d loracomp.declaration) RETURNS loracomp.declaration
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    owner CONSTANT name := (
        SELECT pg_get_userbyid(s.relowner) FROM pg_class AS s JOIN pg_class AS v ON v.oid = d.view WHERE s.oid = d.source
    );
    names text[];
BEGIN
    IF d.source_oid <> d.source THEN -- restored from a dump, with other numbers of columns and transactions
        d.key_columns := loracomp.numbers_of(d.source, d.names[cardinality(d.columns) + 2 :]);
        d.columns := loracomp.numbers_of(d.source, d.names[2 : cardinality(d.columns) + 1]);
        UPDATE loracomp.answer_row AS r SET changed_in = 0 WHERE r.declaration_id = d.id;
        UPDATE loracomp.declaration AS a
        SET source_oid = a.source, columns = d.columns, key_columns = d.key_columns, looked_from = 0, hints_from = 0 WHERE a.id = d.id;
        PERFORM loracomp.make_parts(d);
    END IF;
    IF owner IS NULL THEN
        PERFORM loracomp.forget_answers(d);
        RETURN NULL;
    END IF;
    IF owner <> d.owner THEN
        RAISE EXCEPTION 'table % belongs to % now, who may drop this declaration and make another', d.names[1], owner;
    END IF;
    PERFORM loracomp.check_owner(owner), loracomp.check_code(d.source);
    names := loracomp.source_names(d.source, d.columns || d.key_columns);
    IF num_nulls(VARIADIC names) > 0 THEN
        RAISE EXCEPTION 'column % was dropped: give another prompt by alter_answers', (
            SELECT string_agg(quote_ident(o.name), ', ') FROM unnest(d.names, names) AS o (name, now) WHERE o.now IS NULL
        );
    END IF;
    IF names <> d.names THEN
        d.prompt := (
            SELECT string_agg(coalesce(
                replace(replace(p.literal, '{', '{{'), '}', '}}'), format('{%s}', names[array_position(d.names[2 :], p.col) + 1])
            ), '' ORDER BY p.place)
            FROM loracomp.prompt_pieces(d.prompt) AS p
        );
        d.filter := (
            SELECT coalesce(jsonb_object_agg(names[array_position(d.names[2 :], f.key) + 1], f.value), '{}') FROM jsonb_each(d.filter) AS f
        );
        d.names := names;
        PERFORM loracomp.make_parts(d);
        UPDATE loracomp.declaration AS a SET prompt = d.prompt, filter = d.filter, names = d.names WHERE a.id = d.id;
        PERFORM loracomp.look_at_all(d.id);
    END IF;
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.follow_source IS 'Follows what became of a declaration''s table: renamed columns are renamed in the prompt.';

CREATE FUNCTION loracomp.ask_hints(d loracomp.declaration, most integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
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
    INTO keys, is_emptied FROM taken AS t;
    IF is_emptied THEN
        PERFORM loracomp.look_at_all(d.id);
    END IF;
    RETURN loracomp.ask_found(d, keys, loracomp.read_rows(d, keys), 'hint');
END
$$;
COMMENT ON FUNCTION loracomp.ask_hints IS 'Asks for rows that hints name, and deletes the hints; returns one of the jobs.';

-- A look at all rows reads the table in the order of its key, then the answers, of which some may have lost their rows.
CREATE FUNCTION loracomp.ask_page(d loracomp.declaration, most integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    keys jsonb;
    found_rows jsonb;
    asked bigint;
    is_last boolean;
BEGIN
    IF d.sweep = 'answers' THEN
        keys := (
            SELECT coalesce(jsonb_agg(jsonb_build_object('key', p.key) ORDER BY p.key), '[]') FROM (
                SELECT r.key FROM loracomp.answer_row AS r
                WHERE r.declaration_id = d.id AND r.key > coalesce(d.swept_to, '{}') ORDER BY r.key LIMIT most
            ) AS p
        );
    END IF;
    found_rows := loracomp.read_rows(d, keys, d.swept_to, most);
    keys := coalesce(keys, found_rows, '[]');
    is_last := jsonb_array_length(keys) < most;
    asked := loracomp.ask_found(d, keys, found_rows, d.sweep);
    UPDATE loracomp.declaration AS a SET
        sweep = CASE WHEN NOT is_last THEN d.sweep WHEN d.sweep <> 'answers' THEN 'answers' END,
        swept_to = CASE WHEN NOT is_last THEN ARRAY(SELECT jsonb_array_elements_text(keys -> -1 -> 'key')) END,
        page_job = asked
    WHERE a.id = d.id;
    RETURN asked;
END
$$;
COMMENT ON FUNCTION loracomp.ask_page IS 'Asks for the next rows of a look at all rows, behind everything else; returns one of the jobs.';

-- Reads rows with the rights of the table's owner: those with these keys, or (null) the next ones after a key, in the order of the keys.
CREATE FUNCTION loracomp.read_rows(
    d loracomp.declaration, keys jsonb DEFAULT NULL, last text[] DEFAULT NULL, most integer DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    read jsonb;
BEGIN
    IF d.view IS NOT NULL AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = d.view) THEN -- it keeps the types of the key's columns
        RAISE EXCEPTION 'the rows of % can''t be read: its view was dropped', d.names[1] USING ERRCODE = 'undefined_table';
    END IF;
    EXECUTE format(
        'SELECT jsonb_agg(jsonb_build_object(''key'', r.row_key, ''prompt'', r.prompt, ''passes'', r.passes))
        FROM loracomp_parts.read_%s($1, $2, $3) AS r', d.id
    ) INTO read USING keys, last, most;
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
AS $$
DECLARE
    of_jobs CONSTANT text := loracomp.policy_of(d);
    skipped CONSTANT text := 'it was there before the declaration';
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
    gone AS (
        DELETE FROM loracomp.answer_row AS r
        USING (
            SELECT k.key FROM jsonb_to_recordset(keys) AS k (key text[]) EXCEPT SELECT g.key FROM given AS g
        ) AS k
        WHERE r.declaration_id = d.id AND r.key = k.key
        RETURNING r.job_id
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
        (SELECT array_agg(g.job_id) FROM gone AS g)
        || (SELECT array_agg(c.obsolete) FROM changed AS c),
        (SELECT array_agg(c.job_id ORDER BY c.job_id) FROM changed AS c WHERE c.job_id IS NOT NULL)
    INTO obsolete, new_jobs;
    IF num_nulls(VARIADIC obsolete) < cardinality(obsolete) THEN
        PERFORM loracomp.delete_jobs(obsolete);
    END IF;
    RETURN new_jobs[(cardinality(new_jobs) + 1) / 2];
END
$$;
COMMENT ON FUNCTION loracomp.ask_found IS 'Inserts jobs for rows whose prompt is new, and erases what was asked for keys that were not found.';

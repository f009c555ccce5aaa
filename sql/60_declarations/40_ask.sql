-- Asking a row means making a job of it. New and changed rows are asked. Locked rows are skipped, and a failure affects only one row or one
-- declaration.
--   ask_rows                    a step of the keeper
--     begin_waits, end_waits    39_waits.sql
--     due_declarations          declarations that have something to do
--     ask_or_mark               asks rows of one of them; notes the reason if that fails, and when to try again
--       remove_withdrawn        deletes examples whose corrections were withdrawn: 71_withdrawn.sql
--       follow_source           checks what became of the table: 45_follow.sql
--       ask_hinted              rows that triggers have noted: 36_hints.sql
--       ask_corrected           corrected rows, once corrections are used for answering: 38_corrected.sql
--       ask_scanned             a page of a full scan: 37_scan.sql
--         each: read_rows       22_read.sql
--         each: ask_page        asks as many of these rows as can be asked together
--           first_jobs          the first of the rows, as many as the limits of a page allow
--           ask_together
--             request_hash      tells whether a row must be asked again; first_answer_of calls it too
--
-- A page has at most 200 rows and a megabyte of text. Its jobs have at most a million characters of choices and descriptions together, because each
-- job has its own copy. Its rows have at most 2,000 earlier jobs, which are deleted with their rows. A call begins no new declaration after 0.2 s,
-- and no new page of a declaration after 0.2 s that were spent on it. If reading a table's rows takes more than a second, for example because of a
-- virtual column, the declaration is left out for five times as long; if the keeper's timeout ends it, for ten minutes.

CREATE FUNCTION loracomp.ask_rows() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- As in claim_jobs, each statement is planned once a session, and for index scans that stop early.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    d loracomp.declaration;
    end_at CONSTANT timestamptz := clock_timestamp() + interval '0.2 seconds';
    handled integer := 0;
BEGIN
    PERFORM loracomp.begin_waits();
    PERFORM loracomp.end_waits();
    FOR d IN
        SELECT a.* FROM loracomp.due_declarations() AS n JOIN loracomp.declaration AS a ON a.id = n.id AND a.scan_after IS DISTINCT FROM 0
        ORDER BY n.turn, random() FOR NO KEY UPDATE OF a SKIP LOCKED
    LOOP
        handled := handled + loracomp.ask_or_mark(d);
        EXIT WHEN clock_timestamp() > end_at;
    END LOOP;
    RETURN handled;
END
$$;
COMMENT ON FUNCTION loracomp.ask_rows IS
'Makes jobs of new and changed rows of declarations, and deletes the examples of withdrawn corrections; returns how many it has handled. For the '
'keeper.';

-- Reads only. Owners take turns, so that nobody waits long because another owner has many tables or many rows. A retry_at that is more than ten
-- minutes ahead was written before the server's clock went back, so it doesn't count. The same holds for measure_at.
CREATE FUNCTION loracomp.due_declarations() RETURNS TABLE (id integer, turn bigint)
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    SELECT a.id, row_number() OVER (PARTITION BY a.owner ORDER BY random())
    FROM loracomp.declaration AS a
    WHERE a.retry_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '10 minutes' AND (
        EXISTS (SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = a.id AND h.written_in >= a.hints_from)
        OR EXISTS (SELECT FROM loracomp.withdrawn_example AS w WHERE w.declaration_id = a.id)
        OR a.trouble IS NOT NULL -- it may be over
        OR loracomp.source_has_changed(a)
        OR NOT a.paused AND (
            loracomp.scan_is_due(a) OR loracomp.must_scan(a) OR loracomp.parts_are_due(a) OR loracomp.must_ask_corrected(a)
        )
    );
$$;
COMMENT ON FUNCTION loracomp.due_declarations IS 'Declarations that have something to do, each with its turn among the declarations of its owner.';

-- If one source of rows fails, the jobs of the sources before it stay. If the queue is full, or something is locked, the
-- declaration is tried again after a second, otherwise after ten.
CREATE FUNCTION loracomp.ask_or_mark(d loracomp.declaration) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    began CONSTANT timestamptz := clock_timestamp();
    handled integer := 0;
    source text;
    reason text;
    rest interval;
BEGIN
    FOREACH source IN ARRAY '{withdrawn,table,hints,corrections,scan}'::text[] LOOP
        BEGIN
            IF source = 'withdrawn' THEN -- even if the declaration is paused or its table is gone
                handled := loracomp.remove_withdrawn(d);
            ELSIF source = 'table' THEN
                d := loracomp.follow_source(d);
                IF d.id IS NULL THEN
                    RETURN 1;
                END IF;
            ELSIF d.paused THEN
                rest := interval '1 minute';
            ELSE
                handled := handled + CASE source
                    WHEN 'hints' THEN loracomp.ask_hinted(d)
                    WHEN 'corrections' THEN loracomp.ask_corrected(d)
                    WHEN 'scan' THEN loracomp.ask_scanned(d)
                END;
            END IF;
        EXCEPTION
            WHEN query_canceled THEN -- by the keeper's statement_timeout
                reason := 'reading its rows takes too long';
                rest := interval '10 minutes';
                EXIT;
            WHEN OTHERS THEN
                reason := left(sqlerrm, 1000);
                rest := make_interval(secs => CASE WHEN sqlstate IN ('53400', '55P03') THEN 1 ELSE 10 END);
                EXIT;
        END;
        -- No job is made while there may be more of these examples, because they would help to answer it.
        EXIT WHEN handled > 0 AND (source = 'withdrawn' OR clock_timestamp() > began + interval '0.2 seconds');
    END LOOP;
    IF rest >= interval '10 seconds' THEN
        BEGIN
            -- Not after statement_timeout has expired, because it cancels a statement only once.
            PERFORM loracomp.thin_hints(d) WHERE rest < interval '10 minutes';
        EXCEPTION WHEN query_canceled OR OTHERS THEN
            rest := interval '10 minutes';
        END;
    ELSIF rest IS NULL AND clock_timestamp() > began + interval '1 second' THEN
        rest := 5 * (clock_timestamp() - began);
    END IF;
    IF source = 'table' AND d.trouble IS DISTINCT FROM reason AND rest = interval '10 seconds' THEN
        -- Until this is mended, triggers may not see what is written: it may be written to the table of which this one has become a part.
        INSERT INTO loracomp.scan_request (declaration_id) VALUES (d.id);
    END IF;
    IF rest IS NOT NULL OR d.trouble IS NOT NULL THEN
        UPDATE loracomp.declaration AS a SET trouble = reason, retry_at = coalesce(clock_timestamp() + rest, '-infinity') WHERE a.id = d.id;
    END IF;
    RETURN handled;
END
$$;
COMMENT ON FUNCTION loracomp.ask_or_mark IS
'Makes jobs of rows of a declaration, and returns how many rows it has handled. If that fails, notes the reason and when to try again.';

-- A row's earlier jobs are deleted with it, so that whoever deletes the row has deleted its texts. A row may have any number of them, but a statement
-- deletes only some ten thousand jobs a second, and the keeper's timeout would cancel a longer one at each attempt. Therefore a page has a limit.
-- The first row is always taken.
CREATE FUNCTION loracomp.first_jobs(d loracomp.declaration, found_rows jsonb) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT coalesce(jsonb_agg(t.found ORDER BY t.ordinal), '[]')
    FROM (
        SELECT f.found, f.ordinal, sum(cardinality(r.earlier_jobs)) OVER (ORDER BY f.ordinal) AS jobs
        FROM jsonb_array_elements(first_jobs.found_rows) WITH ORDINALITY AS f (found, ordinal)
        LEFT JOIN LATERAL (
            SELECT o.earlier_jobs FROM loracomp.answer_row AS o
            WHERE o.declaration_id = d.id AND o.key = ARRAY(SELECT jsonb_array_elements_text(f.found -> 'key')) LIMIT 1
        ) AS r ON TRUE
    ) AS t
    WHERE t.ordinal = 1 OR (t.jobs > 2000) IS NOT TRUE AND t.ordinal * (
        coalesce(loracomp.texts_length(d.choices), 0) + coalesce(loracomp.texts_length(d.descriptions), 0)
    ) <= 1000000;
$$;
COMMENT ON FUNCTION loracomp.first_jobs IS 'The first of these rows, at least one, which have at most 2,000 earlier jobs together, and whose jobs have at most 1,000,000 characters of choices '
'and descriptions together.';

-- If a page can't be asked, its first half is tried, and so on down to a single row; the other rows wait for the next call. If a job without that
-- row's text would be accepted, the text is at fault, and the row is refused. If the queue is full, as many rows are tried as there is room for,
-- or a single one, which may need no job.
CREATE FUNCTION loracomp.ask_page(
    d loracomp.declaration,
    found_rows jsonb,
    is_scan boolean,
    OUT asked_rows jsonb,
    OUT handled integer,
    OUT middle_job bigint
)
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    fewer bigint;
BEGIN
    asked_rows := loracomp.first_jobs(d, found_rows);
    LOOP
        BEGIN
            SELECT t.middle_job, jsonb_array_length(asked_rows) - t.locked INTO middle_job, handled
            FROM loracomp.ask_together(d, asked_rows, is_scan) AS t;
            RETURN;
        EXCEPTION
            WHEN configuration_limit_exceeded OR data_exception OR integrity_constraint_violation OR program_limit_exceeded
                OR internal_error OR out_of_memory
            THEN
                IF jsonb_array_length(asked_rows) > 1 THEN
                    fewer := jsonb_array_length(asked_rows) / 2;
                    IF sqlstate = '53400' THEN
                        fewer := greatest(1, least(fewer, loracomp.left_to_limit(d.owner)));
                    END IF;
                    asked_rows := jsonb_path_query_array(asked_rows, '$[0 to $last]', jsonb_build_object('last', fewer - 1));
                ELSIF sqlstate = '53400' OR asked_rows -> 0 ->> 'fault' IS NOT NULL THEN
                    RAISE;
                ELSE
                    PERFORM loracomp.check_request(d);
                    asked_rows := jsonb_build_array((asked_rows -> 0) - 'prompt' || jsonb_build_object(
                        'fault', 'it can''t be asked: ' || left(regexp_replace(sqlerrm, '".*"', '...'), 200)
                    ));
                END IF;
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.ask_page IS
'Makes jobs of as many of these rows, from the first on, as can be asked together. Returns these rows, how many it has handled, and a job from the '
'middle of the new jobs.';

CREATE FUNCTION loracomp.request_hash(d loracomp.declaration, prompt text) RETURNS bytea
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT sha256(convert_to(
        jsonb_build_array((d).round, (d).max_new_tokens, (d).choices, (d).descriptions, request_hash.prompt)::text,
        'UTF8'
    ));
END;
COMMENT ON FUNCTION loracomp.request_hash IS
'SHA-256 of all that decides a row''s answer: its prompt, and the declaration''s choices, descriptions, length and round.';

-- A row is asked if its prompt has changed since it was asked last, or if its job is gone without an outcome. Without backfill, the first scan
-- skips the rows that nobody has written since the declaration, and so do later scans; a row that is written afterwards has a hint, and is asked. A
-- corrected row isn't skipped, because its correction goes with the prompt of a job. A correction in an open
-- transaction locks its row: such rows are left out now, and get another hint.
CREATE FUNCTION loracomp.ask_together(
    d loracomp.declaration, found_rows jsonb, is_scan boolean, OUT middle_job bigint, OUT locked integer
)
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    corrections_answer CONSTANT boolean := loracomp.corrections_answer(d);
    margins CONSTANT record := loracomp.prompt_margins(d.prompt);
    new_jobs bigint[];
    obsolete bigint[];
    has_refused boolean;
BEGIN
    WITH given AS MATERIALIZED (
        SELECT
            f.key, f.passes, f.prompt,
            CASE WHEN f.fault IS NULL THEN loracomp.request_hash(d, f.prompt) ELSE sha256(convert_to(f.fault, 'UTF8')) END AS prompt_hash,
            coalesce(f.fault, CASE WHEN f.prompt IS NULL THEN 'all columns of the prompt are empty' END) AS fault
        FROM jsonb_to_recordset(found_rows) AS f (key text[], passes boolean, prompt text, fault text)
    ),
    changed AS MATERIALIZED (
        SELECT
            g.*, r.key IS NOT NULL AS is_known,
            is_scan AND NOT d.backfill AND r.example_id IS NULL AND coalesce(r.status = 'skipped', d.is_first_scan) AS is_skipped,
            CASE WHEN NOT g.passes THEN r.earlier_jobs || r.job_id WHEN j.finished_at IS NULL THEN ARRAY[j.id] END AS obsolete
        FROM given AS g
        LEFT JOIN LATERAL ( -- looked up for each row, because the plan may have been made when there were few rows
            SELECT o.* FROM loracomp.answer_row AS o WHERE o.declaration_id = d.id AND o.key = g.key LIMIT 1
        ) AS r ON TRUE
        LEFT JOIN LATERAL (SELECT o.id, o.finished_at FROM loracomp.job AS o WHERE o.id = r.job_id LIMIT 1) AS j ON TRUE
        WHERE CASE WHEN g.passes THEN
            r.prompt_hash IS DISTINCT FROM g.prompt_hash
            OR r.status = 'waiting' AND j.id IS NULL
            OR r.status = 'skipped' AND NOT is_scan
            OR corrections_answer AND r.example_id IS NOT NULL AND r.job_id IS NOT NULL AND NOT r.uses_corrections
        ELSE r.key IS NOT NULL END
    ),
    free AS MATERIALIZED (
        SELECT r.key FROM changed AS c
        CROSS JOIN LATERAL (
            SELECT o.key FROM loracomp.answer_row AS o WHERE o.declaration_id = d.id AND o.key = c.key LIMIT 1 FOR UPDATE SKIP LOCKED
        ) AS r
        WHERE c.is_known
    ),
    postponed AS (
        INSERT INTO loracomp.answer_hint (declaration_id, key)
        SELECT d.id, c.key FROM changed AS c WHERE c.is_known AND c.key NOT IN (SELECT f.key FROM free AS f)
        RETURNING key
    ),
    handled AS MATERIALIZED (
        SELECT
            c.*, CASE WHEN c.fault IS NOT NULL THEN 'refused' WHEN c.is_skipped THEN 'skipped' ELSE 'waiting' END AS status,
            CASE WHEN c.is_skipped THEN coalesce(c.fault, 'it was there before the declaration') ELSE c.fault END AS reason,
            CASE WHEN c.passes AND c.fault IS NULL AND NOT c.is_skipped THEN nextval('loracomp.job_id_seq') END AS job_id
        FROM changed AS c WHERE NOT c.is_known OR c.key IN (SELECT f.key FROM free AS f)
    ),
    queued AS (
        INSERT INTO loracomp.job (
            id, prompt, choices, descriptions, text_at, max_new_tokens, policy, labelled_task, priority, tags, submitted_by, watched
        )
        OVERRIDING SYSTEM VALUE
        SELECT
            h.job_id, h.prompt, d.choices, d.descriptions,
            CASE WHEN d.choices IS NOT NULL THEN int4range(1 + margins.before, 1 + char_length(h.prompt) - margins.after) END,
            d.max_new_tokens, CASE WHEN corrections_answer THEN 'measured' ELSE d.policy END, d.task_id,
            CASE WHEN is_scan THEN least(d.priority, -1) ELSE d.priority END, d.tags, d.owner, TRUE
        FROM handled AS h WHERE h.job_id IS NOT NULL ORDER BY h.job_id
    ),
    written AS (
        INSERT INTO loracomp.answer_row AS r (declaration_id, key, status, reason, job_id, prompt_hash, uses_corrections, changed_in)
        SELECT d.id, h.key, h.status, h.reason, h.job_id, h.prompt_hash, corrections_answer, pg_current_xact_id()::text::bigint
        FROM handled AS h WHERE h.passes
        ON CONFLICT ON CONSTRAINT a_row_has_one_answer DO UPDATE SET
            status = excluded.status, reason = excluded.reason, job_id = excluded.job_id, prompt_hash = excluded.prompt_hash,
            uses_corrections = excluded.uses_corrections,
            (answer, confidence, answered_by, corrections, setup, answered_at) = (
                SELECT r.answer, r.confidence, r.answered_by, r.corrections, r.setup, r.answered_at WHERE excluded.status = 'waiting'
            ),
            earlier_jobs = ARRAY(
                SELECT j.id FROM loracomp.job AS j WHERE j.id = ANY (r.earlier_jobs || r.job_id) AND j.finished_at IS NOT NULL
            ),
            changed_in = excluded.changed_in
    ),
    deleted AS (
        DELETE FROM loracomp.answer_row AS r USING handled AS h WHERE NOT h.passes AND r.declaration_id = d.id AND r.key = h.key
    )
    SELECT
        (SELECT array_agg(h.job_id ORDER BY h.job_id) FROM handled AS h WHERE h.job_id IS NOT NULL),
        (SELECT array_agg(o.job_id) FROM handled AS h CROSS JOIN LATERAL unnest(h.obsolete) AS o (job_id)),
        (SELECT count(*) FROM postponed),
        EXISTS (SELECT FROM handled AS h WHERE h.passes AND h.status = 'refused')
    INTO new_jobs, obsolete, locked, has_refused;
    PERFORM loracomp.notify_answers(ARRAY[d.id]) WHERE has_refused;
    IF obsolete <> '{}' THEN
        PERFORM loracomp.delete_jobs(obsolete);
    END IF;
    middle_job := new_jobs[(cardinality(new_jobs) + 1) / 2];
END
$$;
COMMENT ON FUNCTION loracomp.ask_together IS
'Inserts jobs for rows whose prompt is new, and deletes the answers of rows that are gone or don''t pass the filter. Returns a job from '
'the middle of the new jobs, and the number of rows that were locked.';

-- Copies the outcomes of declarations' jobs to answer_row, where they stay when the jobs are purged.
--   take_answers                a step of the keeper; purge_jobs calls it too
--     copy_outcomes             copies the outcomes of these jobs
--     answers_channel         30_declare.sql
--   ask_again                   has rows asked again, if their jobs are purged before their answers were copied; purge_jobs calls it
--   clear_answers               clears answers of jobs that are erased: 85_administration/20_erase.sql
--   answers_since               answers that came after a cursor
--     oldest_writer           37_scan.sql
--     timeline
--     view_definition         30_declare.sql
--     first_hidden            22_read.sql

-- Handled rows of ended_job leave dead tuples, which VACUUM can't remove while any session has an old snapshot. Therefore reading begins at
-- ended_jobs_from: all transactions before it have ended, and their rows are handled. ended_jobs_from is a sequence, which keeps its value if the
-- transaction is rolled back, whereas deleted rows come back. Therefore it is moved only in a transaction that has not written anything:
-- purge_jobs calls this repeatedly. After a restore from another server its value is meaningless, and reading begins at 0. A row that a correction
-- in an open transaction has locked is skipped, and stays in ended_job. There may be hundreds of thousands of such rows, so a call looks at some
-- 10,000 notes that it draws at random and, if there are more, at the 10,000 newest.
CREATE FUNCTION loracomp.take_answers() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- As in claim_jobs, each statement is planned once a session, and for index scans that stop early. That may be while there are few rows, so what
-- belongs to a note is looked up for each note: a join in the other order would later go through all rows.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
DECLARE
    running_from CONSTANT bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    noted_from bigint := (SELECT s.last_value FROM loracomp.ended_jobs_from AS s);
    unhandled bigint;
    looked_at tid[];
    notes tid[];
    jobs bigint[];
    written integer[];
BEGIN
    IF noted_from > running_from THEN
        noted_from := 0;
    END IF;
    IF running_from > noted_from + 100 AND pg_current_xact_id_if_assigned() IS NULL
        AND NOT EXISTS (SELECT FROM loracomp.ended_job AS e WHERE e.written_in >= noted_from AND e.written_in < running_from)
    THEN
        PERFORM setval('loracomp.ended_jobs_from', running_from);
        noted_from := running_from;
    END IF;
    unhandled := (SELECT count(*) FROM loracomp.ended_job AS e WHERE e.written_in >= noted_from);
    looked_at := ARRAY(SELECT e.ctid FROM loracomp.ended_job AS e WHERE e.written_in >= noted_from AND random() * unhandled < 10000)
        || CASE WHEN unhandled > 10000 THEN ARRAY(
            SELECT e.ctid FROM loracomp.ended_job AS e WHERE e.written_in >= noted_from ORDER BY e.written_in DESC LIMIT 10000
        ) END;
    SELECT array_agg(t.ctid), array_agg(DISTINCT t.job_id) INTO notes, jobs
    FROM (
        SELECT e.ctid, f.job_id
        FROM loracomp.ended_job AS e
        CROSS JOIN LATERAL (
            SELECT r.job_id FROM loracomp.answer_row AS r WHERE r.job_id = e.job_id FOR UPDATE SKIP LOCKED
        ) AS f
        WHERE e.ctid = ANY (looked_at) LIMIT 1000
    ) AS t;
    DELETE FROM loracomp.ended_job AS e
    WHERE e.ctid = ANY (notes || ARRAY( -- and notes about jobs that no longer belong to a row
        SELECT o.ctid FROM loracomp.ended_job AS o
        LEFT JOIN LATERAL (SELECT TRUE AS is_there FROM loracomp.answer_row AS r WHERE r.job_id = o.job_id LIMIT 1) AS f ON TRUE
        WHERE o.ctid = ANY (looked_at) AND f.is_there IS NULL
    ));
    written := loracomp.copy_outcomes(jobs);
    PERFORM loracomp.notify_answers(written);
    RETURN coalesce(cardinality(jobs), 0);
END
$$;
COMMENT ON FUNCTION loracomp.take_answers IS
'Copies the outcomes of declarations'' jobs to answer_row, and notifies listeners; returns the number of jobs. For the keeper.';

-- A row that was corrected before its prompt was answered gets its first_answer here.
CREATE FUNCTION loracomp.copy_outcomes(ids bigint[]) RETURNS integer[]
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    written integer[];
BEGIN
    WITH outcome AS MATERIALIZED (
        SELECT
            r.declaration_id, r.key, j.finished_at, j.prompt, j.choices,
            CASE j.status WHEN 'succeeded' THEN 'answered' WHEN 'failed' THEN 'failed' WHEN 'cancelled' THEN 'failed' ELSE 'waiting' END AS status,
            CASE WHEN j.finished_at IS NOT NULL THEN j.error END AS reason,
            CASE WHEN j.choices IS NULL THEN ltrim(p.output, E' \t\r\n') ELSE p.output END AS answer,
            loracomp.confidence(p.choice_scores) AS confidence,
            CASE
                WHEN p.composed_tasks = '{}' THEN 'base'
                WHEN c.corrections > 0 THEN 'corrections'
                WHEN p.job_id IS NOT NULL THEN 'mix'
            END AS answered_by,
            CASE WHEN p.composed_tasks <> '{}' THEN nullif(c.corrections, 0) END AS corrections,
            coalesce(c.task = ANY (p.composed_tasks), FALSE) AS has_own_adapter,
            -- Calibration leaves the row's own correction out, but the gains of retrieved examples don't.
            r.example_id = ANY (p.example_ids) AND (c.corrections > 0) IS NOT TRUE AS has_own_example,
            hashtextextended(
                jsonb_build_array(p.base_fingerprint, p.encoder, p.policy_settings, p.composed_tasks <> '{}' AND c.corrections > 0)::text, 0
            ) AS setup
        FROM loracomp.answer_row AS r
        CROSS JOIN LATERAL (SELECT o.* FROM loracomp.job AS o WHERE o.id = r.job_id LIMIT 1) AS j
        LEFT JOIN LATERAL (SELECT o.* FROM loracomp.prediction AS o WHERE o.job_id = r.job_id LIMIT 1) AS p ON TRUE
        CROSS JOIN LATERAL (
            SELECT t.name AS task, CASE WHEN j.labelled_task = t.id THEN cardinality(p.calibration_examples) END AS corrections
            FROM loracomp.declaration AS a LEFT JOIN loracomp.task AS t ON t.id = a.task_id WHERE a.id = r.declaration_id
        ) AS c
        WHERE r.job_id = ANY (copy_outcomes.ids) AND (j.finished_at IS NOT NULL OR r.status = 'failed')
    ),
    ended AS (
        UPDATE loracomp.answer_row AS r SET
            status = o.status, reason = o.reason, answer = o.answer, confidence = o.confidence, answered_by = o.answered_by,
            corrections = o.corrections, setup = CASE WHEN (o.has_own_adapter OR o.has_own_example) IS NOT TRUE THEN o.setup END,
            answered_at = o.finished_at,
            changed_in = pg_current_xact_id()::text::bigint,
            first_answer = coalesce(r.first_answer, CASE WHEN o.corrections IS NULL AND NOT o.has_own_adapter THEN (
                SELECT o.answer FROM loracomp.example AS e
                WHERE e.id = r.example_id AND (e.prompt, e.choices) IS NOT DISTINCT FROM (o.prompt, o.choices)
            ) END)
        FROM outcome AS o
        WHERE r.job_id = ANY (copy_outcomes.ids) AND r.declaration_id = o.declaration_id AND r.key = o.key
        RETURNING r.declaration_id
    )
    SELECT array_agg(DISTINCT e.declaration_id) INTO written FROM ended AS e;
    RETURN written;
END
$$;
COMMENT ON FUNCTION loracomp.copy_outcomes IS 'Copies the outcomes of these jobs to answer_row; returns the declarations that they belong to.';

-- take_answers skips a row that somebody has locked. It appends hints only, so that it waits for nobody.
CREATE FUNCTION loracomp.ask_again(jobs bigint[]) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    INSERT INTO loracomp.answer_hint (declaration_id, key)
    SELECT r.declaration_id, r.key FROM loracomp.answer_row AS r WHERE r.job_id = ANY (ask_again.jobs) AND r.status = 'waiting';
$$;
COMMENT ON FUNCTION loracomp.ask_again IS 'Has new jobs made for rows that still wait for one of these jobs, because these jobs are being deleted. For purge_jobs.';

-- Keys and corrections stay, because they are the user's own data. They go when the row is deleted from the table.
CREATE FUNCTION loracomp.clear_answers(jobs bigint[]) RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    WITH cleared AS (
        UPDATE loracomp.answer_row AS r SET
            status = 'refused', reason = 'its job was erased', job_id = NULL, answer = NULL, confidence = NULL, answered_by = NULL,
            corrections = NULL, setup = NULL, answered_at = NULL, first_answer = NULL, changed_in = pg_current_xact_id()::text::bigint
        WHERE r.job_id = ANY (clear_answers.jobs)
        RETURNING r.declaration_id
    )
    SELECT 'rows of declarations kept, with their keys and corrections', count(*), string_agg(DISTINCT a.view::text, ', ')
    FROM cleared AS c JOIN loracomp.declaration AS a ON a.id = c.declaration_id HAVING count(*) > 0;
$$;
COMMENT ON FUNCTION loracomp.clear_answers IS 'Clears the answers of jobs that are being erased; returns what is kept. For erase_jobs.';

-- Reads only. A standby knows a new timeline from its next checkpoint on. The cursors that it returns before then begin again afterwards.
CREATE FUNCTION loracomp.timeline() RETURNS integer
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT CASE
        WHEN pg_is_in_recovery() THEN (SELECT c.timeline_id FROM pg_control_checkpoint() AS c)
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer
    END;
$$;
COMMENT ON FUNCTION loracomp.timeline IS
'The timeline of the server: another one after each restore to a point in time, and when a standby has taken over.';

-- Reads only. Answers are ordered by transaction, so an answer is left out while an older transaction may still commit: a reader who goes on from
-- the last cursor then misses nothing. Transaction ids of another server say nothing here, so a cursor from the server that this one was restored
-- from starts from the beginning: the table's oid tells, which the keeper notes after a restore (follow_source). A standby that takes over may use
-- transaction ids again that its primary had used for other answers, so a cursor of another timeline starts from the beginning, too.
-- The feed ends before the first row that the view doesn't show, because it was deleted or doesn't pass the filter, and goes on when the keeper has
-- deleted that row's answer. If it left the row out and went on, and the row passed the filter again before the keeper came, nobody would get its
-- answer.
CREATE FUNCTION loracomp.answers_since(name regclass, since text DEFAULT NULL, most integer DEFAULT 1000)
RETURNS TABLE (
    key text[], status text, answer text, confidence double precision, reason text, answered_by text,
    answered_at timestamptz, cursor text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    d loracomp.declaration;
    last bigint;
    last_key text[];
    of_source text;
    this_source text;
    is_restored boolean;
    ended bigint;
    keys jsonb;
BEGIN
    PERFORM loracomp.check_range('most', most, 0, 2147483647);
    SELECT a.* INTO d FROM loracomp.declaration AS a
    JOIN pg_class AS c ON c.oid = a.view
    WHERE a.view = name AND has_table_privilege(loracomp.caller(), a.view, 'select')
        AND has_schema_privilege(loracomp.caller(), c.relnamespace, 'usage');
    IF d.id IS NULL THEN
        RAISE EXCEPTION '% is not a declaration that you may read', name
            USING ERRCODE = 'insufficient_privilege', HINT = 'GRANT SELECT on it, and USAGE on its schema';
    END IF;
    IF pg_has_role(loracomp.caller(), to_regrole(quote_ident(d.owner)), 'usage') IS NOT TRUE THEN -- the role may have been dropped
        IF (SELECT c.relrowsecurity FROM pg_class AS c WHERE c.oid = d.source) THEN
            RAISE EXCEPTION 'table % has row security, which this feed does not apply', d.source
                USING ERRCODE = 'insufficient_privilege', HINT = format('read the view %s, which applies it', d.view);
        END IF;
        IF loracomp.view_definition(d.view, d.source) <> d.view_definition THEN
            RAISE EXCEPTION '% was changed since it was declared, and this feed does not know which rows it shows now', d.view
                USING ERRCODE = 'insufficient_privilege',
                    HINT = 'read the view, or let its owner make it again by loracomp.alter_answers with its filter';
        END IF;
    END IF;
    BEGIN
        last := (since::jsonb -> 0)::bigint;
        last_key := ARRAY(SELECT jsonb_array_elements_text(since::jsonb -> 1));
        of_source := since::jsonb ->> 2;
        IF since IS NOT NULL AND num_nulls(last, of_source) > 0 THEN
            RAISE data_exception; -- other JSON, such as {}
        END IF;
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION 'since is not a cursor that answers_since has returned: %', left(since, 100)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'give the cursor of the last row that you have, or null for all';
    END;
    -- After a restore, transaction ids are those of another server until the keeper has seen the table.
    this_source := concat_ws('/', d.source_identity, loracomp.timeline());
    is_restored := d.source_identity <> loracomp.identity_of(d.source);
    ended := CASE WHEN is_restored THEN 9223372036854775807 ELSE loracomp.oldest_writer() END;
    IF since IS NULL OR of_source <> this_source
        OR last >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint AND NOT is_restored
    THEN
        last := 0;
        last_key := '{}';
    END IF;
    keys := (
        SELECT jsonb_agg(to_jsonb(f)) FROM (
            SELECT r.key FROM loracomp.answer_row AS r
            WHERE r.declaration_id = d.id AND r.status NOT IN ('waiting', 'skipped') AND r.changed_in < ended
                AND (r.changed_in, r.key) > (last, last_key)
            ORDER BY r.changed_in, r.key LIMIT most
        ) AS f
    );
    RETURN QUERY
    SELECT
        r.key, r.status, r.answer, r.confidence, r.reason,
        CASE WHEN r.corrections IS NULL THEN r.answered_by ELSE format('%s corrections', r.corrections) END, r.answered_at,
        jsonb_build_array(r.changed_in, r.key, this_source)::text
    FROM loracomp.answer_row AS r
    WHERE r.declaration_id = d.id AND r.status NOT IN ('waiting', 'skipped') AND r.changed_in < ended
        AND (r.changed_in, r.key) > (last, last_key)
    ORDER BY r.changed_in, r.key LIMIT least(most, loracomp.first_hidden(loracomp.with_current_names(d), keys) - 1);
END
$$;
COMMENT ON FUNCTION loracomp.answers_since IS 'Answers and refusals that came after a cursor (null: all), each with the cursor to go on from.';

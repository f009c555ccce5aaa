-- What becomes of the jobs of declarations, copied to answer_row, where it stays when the jobs are purged.
--   trigger take_answers        after an update of jobs
--     copy_outcomes             what became of these jobs
--   take_late_answers           a step of the keeper: what could not be copied then
--   trigger lose_answers        after jobs were erased
--   answers_since               the answers that came since a cursor

-- Waits for nobody: a submitter may have corrected a row and left the transaction open, and a worker that waited for her could record
-- nobody's answers. Returns the jobs whose row is locked. A row that was corrected before it had an answer to its prompt gets its
-- first answer here.
CREATE FUNCTION loracomp.copy_outcomes(ids bigint[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    free CONSTANT bigint[] := ARRAY(
        SELECT r.job_id FROM loracomp.answer_row AS r JOIN loracomp.job AS n ON n.id = r.job_id
        WHERE r.job_id = ANY (ids) AND n.id = ANY (ids)
            AND (n.finished_at IS NOT NULL OR r.status = 'failed') -- a failed job may be queued again
        FOR UPDATE OF r SKIP LOCKED
    );
    written integer[];
BEGIN
    WITH outcome AS MATERIALIZED (
        SELECT
            r.declaration_id, r.key, n.finished_at, n.prompt, n.choices,
            CASE n.status WHEN 'succeeded' THEN 'answered' WHEN 'failed' THEN 'failed' WHEN 'cancelled' THEN 'failed' ELSE 'asked' END AS status,
            CASE WHEN n.finished_at IS NOT NULL THEN n.error END AS reason,
            CASE WHEN n.choices IS NULL THEN ltrim(p.output, E' \t\r\n') ELSE p.output END AS answer,
            loracomp.confidence(p.choice_scores) AS confidence,
            CASE
                WHEN p.composed_tasks = '{}' THEN 'base'
                WHEN p.example_tasks[1] = (
                    SELECT t.name FROM loracomp.declaration AS a JOIN loracomp.task AS t ON t.id = a.task_id WHERE a.id = r.declaration_id
                ) AND p.calibration_examples <> '{}' THEN format('%s corrections', cardinality(p.calibration_examples))
                WHEN p.job_id IS NOT NULL THEN 'mix'
            END AS answered_by
        FROM loracomp.answer_row AS r
        JOIN loracomp.job AS n ON n.id = r.job_id AND n.id = ANY (free)
        LEFT JOIN loracomp.prediction AS p ON p.job_id = n.id AND p.job_id = ANY (free)
        WHERE r.job_id = ANY (free)
    ),
    ended AS (
        UPDATE loracomp.answer_row AS r SET
            status = o.status, reason = o.reason, answer = o.answer, confidence = o.confidence, answered_by = o.answered_by,
            answered_at = o.finished_at, changed_in = pg_current_xact_id()::text::bigint,
            first_answer = coalesce(r.first_answer, CASE WHEN r.correct IS NOT NULL AND o.answered_by NOT LIKE '% corrections' THEN (
                SELECT o.answer FROM loracomp.example AS e
                WHERE e.id = r.example_id AND (e.prompt, e.choices) IS NOT DISTINCT FROM (o.prompt, o.choices)
            ) END)
        FROM outcome AS o
        WHERE r.declaration_id = o.declaration_id AND r.key = o.key
        RETURNING r.declaration_id
    )
    SELECT array_agg(DISTINCT e.declaration_id) INTO written FROM ended AS e;
    PERFORM pg_notify('loracomp_answers', a.view::text) FROM loracomp.declaration AS a
    WHERE a.id = ANY (written) AND pg_notification_queue_usage() < 0.5;
    RETURN ARRAY(
        SELECT r.job_id FROM loracomp.answer_row AS r JOIN loracomp.job AS n ON n.id = r.job_id
        WHERE r.job_id = ANY (ids) AND n.id = ANY (ids) AND (n.finished_at IS NOT NULL OR r.status = 'failed')
        EXCEPT SELECT u.id FROM unnest(free) AS u (id)
    );
END
$$;
COMMENT ON FUNCTION loracomp.copy_outcomes IS
'Copies what became of declarations'' jobs to answer_row, and notifies listeners; returns the jobs whose row another session has locked.';

CREATE FUNCTION loracomp.take_answers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    ids CONSTANT bigint[] := ARRAY(SELECT n.id FROM new_job AS n WHERE n.status <> 'running');
BEGIN
    IF ids <> '{}' AND EXISTS (SELECT FROM loracomp.declaration) THEN
        INSERT INTO loracomp.late_answer (job_id) SELECT u.id FROM unnest(loracomp.copy_outcomes(ids)) AS u (id)
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.take_answers IS 'Trigger: copies what became of declarations'' jobs, and notes in late_answer what it could not copy.';

CREATE TRIGGER take_answers AFTER UPDATE ON loracomp.job
REFERENCING NEW TABLE AS new_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.take_answers();
COMMENT ON TRIGGER take_answers ON loracomp.job IS 'Copies what became of declarations'' jobs.';

-- A hundred at a time, from where the last call ended, so that rows that stay locked hold up no other.
CREATE FUNCTION loracomp.take_late_answers() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- As in claim_jobs, statements are planned once a session, for index scans that stop early.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    seen CONSTANT bigint := (SELECT s.last_value FROM loracomp.late_answer_seen AS s);
    late CONSTANT bigint[] := ARRAY(
        SELECT l.job_id FROM loracomp.late_answer AS l WHERE l.job_id > seen ORDER BY l.job_id LIMIT 100 FOR UPDATE SKIP LOCKED
    );
    copied integer := 0;
BEGIN
    IF seen > 0 OR cardinality(late) = 100 THEN
        PERFORM setval('loracomp.late_answer_seen', coalesce(late[100], 0));
    END IF;
    IF late <> '{}' THEN
        DELETE FROM loracomp.late_answer AS l
        USING (SELECT u.id FROM unnest(late) AS u (id) EXCEPT SELECT u.id FROM unnest(loracomp.copy_outcomes(late)) AS u (id)) AS done
        WHERE l.job_id = done.id AND l.job_id = ANY (late);
        GET DIAGNOSTICS copied = ROW_COUNT;
    END IF;
    RETURN copied;
END
$$;
COMMENT ON FUNCTION loracomp.take_late_answers IS 'Copies answers whose row was locked when they were recorded. For the keeper.';

-- Purged jobs leave their answers; erased ones don't.
CREATE FUNCTION loracomp.lose_answers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF current_setting('loracomp.purging', true) IS DISTINCT FROM 'on' THEN
        UPDATE loracomp.answer_row AS r SET
            status = 'refused', reason = 'its job was erased', job_id = NULL, answer = NULL, confidence = NULL, answered_by = NULL,
            answered_at = NULL, changed_in = pg_current_xact_id()::text::bigint
        FROM old_job AS o WHERE r.job_id = o.id;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.lose_answers IS 'Trigger: clears the answers of erased jobs.';

CREATE TRIGGER lose_answers AFTER DELETE ON loracomp.job
REFERENCING OLD TABLE AS old_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.lose_answers();
COMMENT ON TRIGGER lose_answers ON loracomp.job IS 'Clears the answers of erased jobs.';

-- Reads only. It leaves out transactions that others may still commit before, so that a reader who goes on from the last cursor misses
-- nothing. A cursor of another server, from which this one was restored, begins from the start.
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
    ended CONSTANT bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
BEGIN
    SELECT a.* INTO d FROM loracomp.declaration AS a
    WHERE a.view = name AND has_table_privilege(loracomp.caller(), a.view, 'select');
    IF d.id IS NULL THEN
        RAISE EXCEPTION '% is not a declaration that you may read', name USING ERRCODE = 'insufficient_privilege', HINT = 'GRANT SELECT on it';
    END IF;
    IF (SELECT c.relrowsecurity FROM pg_class AS c WHERE c.oid = d.source) AND NOT pg_has_role(loracomp.caller(), d.owner, 'usage') THEN
        RAISE EXCEPTION 'table % has row security, which this feed does not know', d.source
            USING ERRCODE = 'insufficient_privilege', HINT = format('read %s, which does', d.view);
    END IF;
    BEGIN
        last := coalesce((since::jsonb -> 0)::bigint, 0);
        last_key := ARRAY(SELECT jsonb_array_elements_text(since::jsonb -> 1));
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION 'since is no cursor of answers_since: %', left(since, 100)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'give the cursor of the last row that you have, or null for all';
    END;
    IF last >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint THEN -- of a database that was restored since
        last := 0;
        last_key := '{}';
    END IF;
    RETURN QUERY
    SELECT
        r.key, r.status, r.answer, r.confidence, r.reason, r.answered_by, r.answered_at,
        jsonb_build_array(r.changed_in, r.key)::text
    FROM loracomp.answer_row AS r
    WHERE r.declaration_id = d.id AND r.status <> 'asked' AND r.changed_in < ended
        AND (r.changed_in, r.key) > (last, last_key)
    ORDER BY r.changed_in, r.key LIMIT most;
END
$$;
COMMENT ON FUNCTION loracomp.answers_since IS 'Answers and refusals that came since a cursor (null: all), each with the cursor to go on from.';

-- Erasure: deletes examples or jobs on request, together with all rows that contain their text.
--   erase_example               an example, the jobs that were made from it, and the correction that it was made from
--     clear_corrections         60_declarations/70_learn.sql
--   erase_submitter             all jobs and declarations of a submitter
--     erase_declaration         a declaration with its answers, keys and corrections
--   erase_jobs                  deletes the given jobs, or the jobs with given tags, for their submitter or an administrator
--     lock_jobs                 the caller's jobs with these ids or tags: 30_queue/60_cancel_and_retry.sql
--     erase_sums                deletes the counts that reports have for a tag
--     clear_answers             deletes these jobs' answers from declarations: 60_declarations/50_outcome.sql
--     each: delete_jobs         deletes jobs in any status, with answers and traces: 30_queue/72_delete_jobs.sql

-- Deletes an example with its embedding and measurements. Jobs that were made from it (to test policies, or to measure) contain its
-- text, so they are deleted with their answers. Traces keep the example's id and similarity, and the audit keeps its id. The result names
-- adapters that may have been trained on it; they are not changed. It first locks what an open correction may have locked, in the order of a
-- correction, and then what purge_jobs and others wait for.
CREATE FUNCTION loracomp.erase_example(example_id bigint) RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET lock_timeout = '10s'
AS $$
#variable_conflict use_column
DECLARE
    before CONSTANT text := loracomp.give_reason('erase_example');
    old loracomp.example;
BEGIN
    BEGIN
        PERFORM FROM loracomp.answer_row AS r WHERE r.example_id = erase_example.example_id ORDER BY r.key FOR UPDATE;
        PERFORM FROM loracomp.example AS e WHERE e.id = erase_example.example_id FOR UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'an open transaction has locked example %, as a correction does, so nothing was erased', erase_example.example_id
            USING ERRCODE = 'lock_not_available', HINT = 'try again when it has ended; pg_stat_activity shows who has one open';
    END;
    LOCK TABLE loracomp.report_day IN SHARE ROW EXCLUSIVE MODE; -- before the jobs, as purge_jobs does
    DELETE FROM loracomp.example AS e WHERE e.id = erase_example.example_id RETURNING e.* INTO old;
    IF old.id IS NULL THEN
        RAISE EXCEPTION 'there is no example %', erase_example.example_id USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM loracomp.give_reason(before);
    RETURN QUERY
    VALUES ('example deleted', 1::bigint, old.source_ref)
    UNION ALL
    SELECT d.* FROM loracomp.delete_jobs(ARRAY(
        SELECT j.id FROM loracomp.job AS j WHERE j.example_id = old.id
    ), 'erase_example') AS d
    UNION ALL
    SELECT 'corrections cleared, which it was made from', c.cleared, NULL
    FROM loracomp.clear_corrections(old.id) AS c (cleared) WHERE c.cleared > 0
    UNION ALL
    SELECT 'traces kept, which name its id', count(*), NULL FROM loracomp.prediction AS p
    WHERE p.example_ids @> ARRAY[old.id] OR p.calibration_examples @> ARRAY[old.id]
    UNION ALL
    SELECT
        'adapters of its task kept, which may have been trained on it',
        count(*),
        string_agg(format('%s@%s (%s)', a.name, a.version, a.status), ', ' ORDER BY a.name, a.version)
    FROM loracomp.adapter AS a
    WHERE a.task_id = old.task_id AND old.split = 'train';
END
$$;
COMMENT ON FUNCTION loracomp.erase_example IS
'Deletes an example with its embedding, its measurements and the jobs that were made from it; returns what was deleted, and '
'the rows that refer to it and were kept. Importing the data set again would bring it back.';

-- Deletes a declaration and returns null. If this fails, because other objects depend on its view or somebody has locked its table, it pauses the
-- declaration, deletes everything that is stored about its rows, and returns the reason. It raises if somebody is just correcting a row, because
-- this row can't be deleted then.
CREATE FUNCTION loracomp.erase_declaration(d loracomp.declaration) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = '2s'
AS $$
BEGIN
    PERFORM loracomp.forget_answers(d);
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    BEGIN
        DELETE FROM loracomp.answer_row AS r WHERE r.declaration_id = d.id;
        PERFORM loracomp.forget_examples(ARRAY(SELECT e.id FROM loracomp.example AS e WHERE e.task_id = d.task_id));
        DELETE FROM loracomp.withdrawn_example AS w WHERE w.declaration_id = d.id;
        DELETE FROM loracomp.answer_hint AS h WHERE h.declaration_id = d.id;
        UPDATE loracomp.declaration AS a SET
            paused = TRUE, scan = 'rows', scan_position = NULL, scan_rows = 0, scan_job = NULL, trouble = NULL
        WHERE a.id = d.id;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'an open transaction has locked rows of %, as a correction does, so nothing was erased', d.view
            USING ERRCODE = 'lock_not_available', HINT = 'try again when it has ended; pg_stat_activity shows who has one open';
    END;
    RETURN sqlerrm;
END
$$;
COMMENT ON FUNCTION loracomp.erase_declaration IS
'Deletes a declaration with its answers and corrections, for erase_submitter; returns null, or the reason why it could only be emptied '
'and paused.';

-- Two reports contain data of a submitter: jobs_by_day has its name, and answers_by_tag has texts of tags and choices. The rows of the
-- submitter's days are deleted from both immediately, and the next refresh computes these days from the remaining jobs. Rows of
-- answers_by_tag for closed days stay, because they are sums over the jobs of all submitters and can't be computed again.
CREATE FUNCTION loracomp.erase_submitter(submitter name) RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET lock_timeout = '10s' -- somebody may keep rows locked, and purge_jobs and refresh_reports lock report_day for seconds
AS $$
#variable_conflict use_column
DECLARE
    reported bigint;
    by_tag bigint;
    own_days date[];
    own_tasks integer[];
    d loracomp.declaration;
    view text;
    reason text;
    deleted text[] := '{}';
    emptied text[] := '{}';
BEGIN
    LOCK TABLE loracomp.report_day IN SHARE ROW EXCLUSIVE MODE; -- before the jobs, as purge_jobs does
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = erase_submitter.submitter)
        AND NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.submitted_by = erase_submitter.submitter)
        AND NOT EXISTS (SELECT FROM loracomp.jobs_by_day AS b WHERE b.submitted_by = erase_submitter.submitter)
        AND NOT EXISTS (SELECT FROM loracomp.declaration AS a WHERE a.owner = erase_submitter.submitter)
    THEN
        RAISE WARNING 'there is no role %, and there are no jobs or declarations under that name', erase_submitter.submitter
            USING HINT = 'bi.jobs_by_day lists the roles that have jobs';
    END IF;
    -- Lock the declarations, so that no more jobs are inserted for their rows.
    PERFORM FROM loracomp.declaration AS a WHERE a.owner = erase_submitter.submitter ORDER BY a.id FOR NO KEY UPDATE;
    own_tasks := ARRAY(
        SELECT a.task_id FROM loracomp.declaration AS a WHERE a.owner = erase_submitter.submitter AND a.task_id IS NOT NULL
    );
    -- Jobs that administrators made from corrected rows contain the rows' texts too.
    RETURN QUERY
    SELECT e.* FROM loracomp.delete_jobs(
        ARRAY(
            SELECT j.id FROM loracomp.job AS j
            WHERE j.submitted_by = erase_submitter.submitter
                OR j.example_id IN (SELECT e.id FROM loracomp.example AS e WHERE e.task_id = ANY (own_tasks))
        ),
        'erase_submitter', erase_submitter.submitter
    ) AS e;
    own_days := ARRAY(SELECT DISTINCT b.day FROM loracomp.jobs_by_day AS b WHERE b.submitted_by = erase_submitter.submitter);
    DELETE FROM loracomp.jobs_by_day AS b WHERE b.submitted_by = erase_submitter.submitter;
    GET DIAGNOSTICS reported = ROW_COUNT;
    DELETE FROM loracomp.answers_by_tag AS t USING loracomp.report_day AS o
    WHERE t.day = ANY (own_days) AND o.day = t.day AND NOT o.is_closed;
    GET DIAGNOSTICS by_tag = ROW_COUNT;
    UPDATE loracomp.report_day AS o SET jobs = NULL WHERE o.day = ANY (own_days) AND NOT o.is_closed;
    FOR d IN SELECT a.* FROM loracomp.declaration AS a WHERE a.owner = erase_submitter.submitter ORDER BY a.id LOOP
        view := d.view;
        reason := loracomp.erase_declaration(d);
        IF reason IS NULL THEN
            deleted := deleted || view;
        ELSE
            emptied := emptied || format('%s (%s)', view, reason);
        END IF;
    END LOOP;
    DELETE FROM loracomp.example AS e WHERE e.task_id = ANY (own_tasks);
    RETURN QUERY
    VALUES
        ('rows of reports deleted', reported, CASE WHEN reported > 0 THEN 'bi.jobs_by_day' END),
        ('rows of reports deleted until they are refreshed', by_tag, CASE WHEN by_tag > 0 THEN 'bi.answers_by_tag' END)
    UNION ALL
    SELECT
        'rows of reports of closed days kept, with tags and choices of all submitters', count(*),
        CASE WHEN count(*) > 0 THEN 'bi.answers_by_tag' END
    FROM loracomp.answers_by_tag AS t WHERE t.day = ANY (own_days)
    UNION ALL
    VALUES
        (
            'declarations deleted, with their answers and corrections', cardinality(deleted)::bigint,
            nullif(array_to_string(deleted, ', '), '')
        ),
        (
            'declarations kept, but emptied and paused', cardinality(emptied)::bigint,
            nullif(array_to_string(emptied, ', '), '')
        )
    UNION ALL
    SELECT
        'adapters kept, which were trained on its corrections', count(*),
        string_agg(format('%s@%s', a.name, a.version), ', ' ORDER BY a.name, a.version)
    FROM loracomp.adapter AS a WHERE a.task_id = ANY (own_tasks)
    UNION ALL
    SELECT 'corrections kept, which it made in others'' declarations', count(*), string_agg(DISTINCT e.entity_name, ', ')
    FROM loracomp.audit_event AS e
    JOIN loracomp.declaration AS o ON o.id = e.entity_id AND o.owner <> e.actor
    WHERE e.entity = 'declaration' AND e.actor = erase_submitter.submitter AND e.reason IN ('corrected', 'corrected otherwise')
    UNION ALL
    SELECT
        'adapters kept, which it registered', count(*),
        string_agg(format('%s@%s', a.name, a.version), ', ' ORDER BY a.name, a.version)
    FROM loracomp.adapter AS a WHERE a.created_by = erase_submitter.submitter;
END
$$;
COMMENT ON FUNCTION loracomp.erase_submitter IS
'Deletes all jobs of a submitter with their answers and traces, and its declarations with their answers, keys and corrections; returns '
'what was deleted, and what refers to the submitter or may have its texts and was kept.';

CREATE FUNCTION loracomp.erase_jobs(ids bigint[] DEFAULT NULL, tags jsonb DEFAULT NULL)
RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET lock_timeout = '10s' -- somebody may keep rows locked, and purge_jobs and refresh_reports lock report_day for seconds
AS $$
#variable_conflict use_column
DECLARE
    picked bigint[];
BEGIN
    IF loracomp.caller_is_admin() THEN
        LOCK TABLE loracomp.report_day IN SHARE ROW EXCLUSIVE MODE; -- before the jobs, as purge_jobs does
    END IF;
    picked := loracomp.lock_jobs(erase_jobs.ids, erase_jobs.tags);
    IF erase_jobs.tags IS NOT NULL AND picked = '{}' THEN
        -- The message leaves out the tags' values, because warnings go into the server's log.
        RAISE WARNING 'no job has these tags (%)',
            (SELECT string_agg(k.key, ', ') FROM jsonb_object_keys(erase_jobs.tags) AS k (key));
    END IF;
    RETURN QUERY
    SELECT d.* FROM loracomp.delete_jobs(picked, 'erase_jobs') AS d
    UNION ALL
    SELECT 'ids that no job of yours has', count(*), string_agg(g.id::text, ', ' ORDER BY g.id)
    FROM (SELECT DISTINCT u.id FROM unnest(erase_jobs.ids) AS u (id) WHERE u.id <> ALL (picked)) AS g
    UNION ALL
    SELECT c.* FROM loracomp.clear_answers(picked) AS c;
    -- Only an administrator may delete rows of reports, because they are sums over all submitters' jobs.
    IF loracomp.caller_is_admin() THEN
        RETURN QUERY SELECT e.* FROM loracomp.erase_sums(erase_jobs.tags) AS e;
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.erase_jobs IS
'Deletes the jobs with these ids, or with all of these tags, together with their answers and traces. Returns what was deleted and what '
'was kept, such as corrections in declarations, which are deleted with their row of the declared table. Submitters may erase their own '
'jobs, administrators all jobs.';

-- Deletes this tag's rows of closed days from the report answers_by_tag, and returns what it kept. If the caller gives several tags, it
-- deletes nothing, because the report counts by single tags, and only jobs with all of the tags are erased.
CREATE FUNCTION loracomp.erase_sums(tags jsonb) RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    DELETE FROM loracomp.answers_by_tag AS a
    USING jsonb_each_text(erase_sums.tags) AS g, loracomp.report_day AS d
    WHERE a.tag = g.key AND a.value = left(g.value, 200) AND a.day = d.day AND d.is_closed
        AND (SELECT count(*) FROM jsonb_object_keys(erase_sums.tags)) = 1;
    SELECT
        CASE WHEN d.is_closed THEN 'rows of reports of closed days kept' ELSE 'rows of reports until they are refreshed' END,
        count(*), 'bi.answers_by_tag'
    FROM loracomp.answers_by_tag AS a
    JOIN jsonb_each_text(erase_sums.tags) AS g ON a.tag = g.key AND a.value = left(g.value, 200)
    LEFT JOIN loracomp.report_day AS d ON a.day = d.day AND d.is_closed
    GROUP BY d.is_closed;
$$;
COMMENT ON FUNCTION loracomp.erase_sums IS
'Deletes the rows that reports have for a tag on closed days, if it is the only tag given; returns what was kept.';

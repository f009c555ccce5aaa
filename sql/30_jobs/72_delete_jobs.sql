-- Deletes jobs with their answers and traces, whatever their status. A worker that is running one of them
-- will not record its answer. If a worker is just writing an answer, it waits for that. It doesn't wait for reports: claims and submitters call
-- it too, and a refresh that counts a job which is deleted meanwhile counts its day again the next time. Functions for administrators lock
-- report_day before they call it, so that no closed day counts these jobs. The jobs' audit events stay, because
-- they contain only ids, states and roles; one more event says who erased how many, or whom.
CREATE FUNCTION loracomp.delete_jobs(ids bigint[], reason text DEFAULT 'delete_jobs', submitter name DEFAULT NULL)
RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    before CONSTANT text := loracomp.give_reason(delete_jobs.reason);
    -- Reset it, because a caller's session may have set it, and the audit would then write one event, as for purge_jobs.
    purging CONSTANT text := set_config('loracomp.purging', 'off', true);
    deleted bigint[];
    unfinished bigint;
    answers bigint;
BEGIN
    -- Lock the jobs in the same order as workers do, to avoid deadlocks.
    SELECT coalesce(array_agg(l.id), '{}'), count(*) FILTER (WHERE l.finished_at IS NULL) INTO deleted, unfinished
    FROM (
        SELECT j.id, j.finished_at FROM loracomp.job AS j WHERE j.id = ANY (delete_jobs.ids) ORDER BY j.id FOR UPDATE
    ) AS l;
    answers := (SELECT count(*) FROM loracomp.prediction AS p WHERE p.job_id = ANY (deleted));
    DELETE FROM loracomp.job AS j WHERE j.id = ANY (deleted);
    INSERT INTO loracomp.audit_event (actor, entity, entity_name, action, reason, before)
    VALUES (
        loracomp.caller(), CASE WHEN submitter IS NULL THEN 'job' ELSE 'submitter' END, submitter, 'delete',
        delete_jobs.reason, jsonb_build_object('rows', cardinality(deleted), 'predictions', answers)
    );
    PERFORM loracomp.give_reason(before);
    RETURN QUERY
    VALUES
        ('jobs deleted', cardinality(deleted)::bigint, NULL::text),
        ('of them unfinished', unfinished, NULL),
        ('answers with their traces deleted', answers, NULL)
    UNION ALL
    SELECT 'events of these jobs kept, without words', count(*), NULL
    FROM loracomp.audit_event AS e WHERE e.entity = 'job' AND e.entity_id = ANY (deleted);
END
$$;
COMMENT ON FUNCTION loracomp.delete_jobs IS
'Deletes jobs with their answers and traces, and notes that in the audit; returns what was deleted and what was kept.';

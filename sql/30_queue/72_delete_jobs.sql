-- Deletes jobs in any state with their answers and traces. A worker that is running one of them can't record its answer any more; if it is
-- just recording the answer, this function waits for that. The jobs' audit events stay, because they contain only ids, states and roles. One
-- more event records who deleted how many jobs, and of which submitter.
--
-- It does not wait for a refresh of the reports: if a job is deleted after the refresh counted it, the next refresh counts that day again.
-- Only a closed day is never counted again, so administrators' functions lock report_day before they call this one.
CREATE FUNCTION loracomp.delete_jobs(ids bigint[], reason text DEFAULT 'delete_jobs', submitter name DEFAULT NULL)
RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    before CONSTANT text := loracomp.give_reason(delete_jobs.reason);
    -- The caller's session may have set it; the audit would then write one event for all jobs, as it does for purge_jobs.
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

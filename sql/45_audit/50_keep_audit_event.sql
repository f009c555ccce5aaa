-- Audit events are only appended.
--   trigger keep_audit_event          refuses changes; lets purge_jobs delete
--   trigger keep_events_of_others     lets purge_jobs delete only events of jobs that no longer exist

-- Refuses UPDATE, DELETE and TRUNCATE of the audit. Only purge_jobs may delete, and only events of jobs.
CREATE FUNCTION loracomp.keep_audit_event() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF tg_op = 'DELETE' AND current_setting('loracomp.purging', true) = 'on' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION '% of loracomp.audit_event: events are only appended', tg_op
        USING ERRCODE = 'insufficient_privilege', CONSTRAINT = 'audit_event_is_append_only',
            HINT = 'loracomp.purge_jobs removes the events of old jobs with their jobs';
END
$$;
COMMENT ON FUNCTION loracomp.keep_audit_event IS 'Trigger: keeps audit_event append-only.';

CREATE TRIGGER keep_audit_event BEFORE UPDATE OR DELETE OR TRUNCATE ON loracomp.audit_event
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.keep_audit_event();
COMMENT ON TRIGGER keep_audit_event ON loracomp.audit_event IS 'Events are only appended.';

CREATE FUNCTION loracomp.keep_events_of_others() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF EXISTS (
        SELECT FROM old_event AS e
        WHERE e.entity <> 'job' OR e.entity_id IS NULL OR EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = e.entity_id)
    ) THEN
        RAISE EXCEPTION 'DELETE of loracomp.audit_event: only events of jobs that are gone may go'
            USING ERRCODE = 'insufficient_privilege', CONSTRAINT = 'audit_event_is_append_only',
                HINT = 'loracomp.purge_jobs removes the events of old jobs with their jobs';
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.keep_events_of_others IS 'Trigger: allows deleting only events of deleted jobs.';

CREATE TRIGGER keep_events_of_others AFTER DELETE ON loracomp.audit_event
REFERENCING OLD TABLE AS old_event
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.keep_events_of_others();
COMMENT ON TRIGGER keep_events_of_others ON loracomp.audit_event IS 'Only events of deleted jobs may be deleted.';

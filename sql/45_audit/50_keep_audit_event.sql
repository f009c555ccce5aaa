-- Refuses UPDATE, DELETE and TRUNCATE of the audit, where events are only appended. Only purge_jobs may delete events, those of its jobs.
CREATE FUNCTION loracomp.keep_audit_event() RETURNS trigger
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
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

-- The audit log. The audit triggers of each room's tables call the functions in this file.
--   trigger audit_row           writes an event with the row before and after the change
--     caller, caller_is_admin
--   give_reason                 sets the reason for the events of this transaction
--   trigger keep_audit_event    refuses changes of events

-- Writes an event with the row before and after each change. It runs once for each row, so it is for tables that change rarely.
CREATE FUNCTION loracomp.audit_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    before jsonb := to_jsonb(old);
    after jsonb := to_jsonb(new);
    row_now jsonb := coalesce(after, before);
BEGIN
    IF before IS DISTINCT FROM after THEN
        INSERT INTO loracomp.audit_event (
            actor, entity, entity_id, entity_name, action, old_status, new_status, reason, before, after
        ) VALUES (
            loracomp.caller(), tg_table_name, (row_now ->> 'id')::bigint, row_now ->> 'name', lower(tg_op),
            before ->> 'status', after ->> 'status',
            CASE WHEN loracomp.caller_is_admin() THEN nullif(current_setting('loracomp.reason', true), '') END,
            before, after
        );
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.audit_row IS
'Trigger: writes changes of a row to audit_event, with the row before and after.';

-- Sets the reason that the audit triggers write in this transaction, and returns the previous reason. The caller sets that one again when
-- it is done. A SET clause would do this, but Postgres lets only superusers write unknown parameters there.
CREATE FUNCTION loracomp.give_reason(reason text) RETURNS text
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    before CONSTANT text := current_setting('loracomp.reason', true);
BEGIN
    PERFORM set_config('loracomp.reason', give_reason.reason, true);
    RETURN before;
END
$$;
COMMENT ON FUNCTION loracomp.give_reason IS
'Sets the reason that audit_event gets for changes of jobs in this transaction; returns the previous reason.';

-- Refuses UPDATE, DELETE and TRUNCATE of the audit, where events are only appended. Only purge_jobs may delete events, together with their
-- jobs.
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

-- Writes an event with the row before and after for every change of these tables. They change rarely, so a trigger for each
-- row is fast enough.
CREATE FUNCTION loracomp.audit_registry() RETURNS trigger
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
COMMENT ON FUNCTION loracomp.audit_registry IS
'Trigger: writes changes of models, tasks, adapters and policies to audit_event.';

CREATE TRIGGER audit_registry AFTER INSERT OR UPDATE OR DELETE ON loracomp.policy
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_registry();
CREATE TRIGGER audit_registry AFTER INSERT OR UPDATE OR DELETE ON loracomp.adapter
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_registry();
CREATE TRIGGER audit_registry AFTER INSERT OR UPDATE OR DELETE ON loracomp.task
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_registry();
CREATE TRIGGER audit_registry AFTER INSERT OR UPDATE OR DELETE ON loracomp.base_model
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_registry();
CREATE TRIGGER audit_registry AFTER INSERT OR UPDATE OR DELETE ON loracomp.encoder
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_registry();
CREATE TRIGGER audit_registry AFTER INSERT OR UPDATE OR DELETE ON loracomp.next_encoder
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_registry();
CREATE TRIGGER audit_registry AFTER INSERT OR UPDATE OR DELETE ON loracomp.evaluation
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_registry();
CREATE TRIGGER audit_registry AFTER INSERT OR UPDATE OR DELETE ON loracomp.queue_limit
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_registry();
CREATE TRIGGER audit_registry AFTER INSERT OR UPDATE OR DELETE ON loracomp.reported_tag
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_registry();

-- The audit of the registry.
CREATE TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON loracomp.policy
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_row();
CREATE TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON loracomp.adapter
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_row();
CREATE TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON loracomp.task
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_row();
CREATE TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON loracomp.base_model
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_row();
CREATE TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON loracomp.encoder
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_row();

-- The audit of examples: a statement that changes examples writes an event for each task, with the number of examples and at most 100 ids,
-- but no texts.
CREATE FUNCTION loracomp.audit_examples() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    INSERT INTO loracomp.audit_event (actor, entity, entity_id, entity_name, action, reason, before, after)
    SELECT
        loracomp.caller(), 'example', CASE WHEN c.rows = 1 THEN c.ids[1] END,
        (SELECT t.name FROM loracomp.task AS t WHERE t.id = c.task_id), lower(tg_op),
        CASE WHEN loracomp.caller_is_admin() THEN nullif(current_setting('loracomp.reason', true), '') END,
        CASE tg_op WHEN 'DELETE' THEN c.summary END, CASE WHEN tg_op <> 'DELETE' THEN c.summary END
    FROM (
        SELECT s.*, jsonb_strip_nulls(jsonb_build_object(
            'task_id', s.task_id, 'rows', s.rows, 'ids', CASE WHEN s.rows <= 100 THEN to_jsonb(s.ids) END
        )) AS summary
        FROM (
            SELECT e.task_id, count(*) AS rows, (array_agg(e.id ORDER BY e.id))[:100] AS ids
            FROM changed AS e GROUP BY e.task_id
        ) AS s
    ) AS c;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.audit_examples IS 'Trigger: writes to audit_event how many examples of a task changed.';

CREATE TRIGGER audit_insert AFTER INSERT ON loracomp.example REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.audit_examples();
CREATE TRIGGER audit_update AFTER UPDATE ON loracomp.example REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.audit_examples();
CREATE TRIGGER audit_delete AFTER DELETE ON loracomp.example REFERENCING OLD TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.audit_examples();

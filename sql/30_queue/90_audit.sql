-- Writes the audit of jobs: an event for every change of status, and for every deletion.
--   trigger audit_job_update
--   trigger audit_job_delete

-- Writes an event for every change of a job's status. The reason is the setting loracomp.reason of an administrator. Everybody
-- can change that setting, so for other roles the reason is derived from the change itself.
CREATE FUNCTION loracomp.audit_job_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- Rows before and after are joined by a hash join, because the planner can't know their number; join methods that the calling
-- function has disabled are enabled here.
SET enable_hashjoin = on
SET enable_nestloop = off
SET enable_mergejoin = off
AS $$
DECLARE
    actor CONSTANT name := loracomp.caller();
    login CONSTANT name := nullif(session_user, actor);
    given CONSTANT text := nullif(current_setting('loracomp.reason', true), '');
    reason CONSTANT text := CASE WHEN given IS NOT NULL THEN CASE WHEN loracomp.caller_is_admin() THEN given END END;
BEGIN
    INSERT INTO loracomp.audit_event (
        actor, login, entity, entity_id, action, old_status, new_status, attempt, worker, reason
    )
    SELECT
        actor, login, 'job', n.id, 'update', o.status, n.status, n.attempts, n.worker,
        CASE
            WHEN reason IS NOT NULL THEN reason
            -- Only two things take back an attempt that was counted: a release, and an expired lease of a job that shared its batch. The latter
            -- raises expired_leases.
            WHEN n.status = 'queued' AND n.attempts < o.attempts AND n.expired_leases = o.expired_leases
                AND o.status = 'running' THEN 'released'
            WHEN n.status IN ('queued', 'failed', 'cancelled') THEN n.error_code
        END
    FROM old_job AS o
    JOIN new_job AS n ON n.id = o.id
    WHERE n.status <> o.status;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.audit_job_update IS 'Trigger: writes changes of jobs'' status to audit_event.';

CREATE FUNCTION loracomp.audit_job_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    -- purge_jobs deletes the events of its jobs too, so one event with their number replaces them.
    IF current_setting('loracomp.purging', true) = 'on' THEN
        INSERT INTO loracomp.audit_event (actor, entity, action, reason, before)
        SELECT
            loracomp.caller(), 'job', 'delete', 'purge_jobs',
            jsonb_build_object('rows', count(*), 'from', min(o.finished_at), 'to', max(o.finished_at))
        FROM old_job AS o
        HAVING count(*) > 0;
        RETURN NULL;
    END IF;
    INSERT INTO loracomp.audit_event (actor, entity, entity_id, action, old_status, attempt, worker, reason)
    SELECT
        loracomp.caller(), 'job', o.id, 'delete', o.status, o.attempts, o.worker,
        CASE WHEN loracomp.caller_is_admin() THEN nullif(current_setting('loracomp.reason', true), '') END
    FROM old_job AS o;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.audit_job_delete IS 'Trigger: writes deletions of jobs to audit_event.';

CREATE TRIGGER audit_job_update AFTER UPDATE ON loracomp.job
REFERENCING OLD TABLE AS old_job NEW TABLE AS new_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.audit_job_update();

CREATE TRIGGER audit_job_delete AFTER DELETE ON loracomp.job
REFERENCING OLD TABLE AS old_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.audit_job_delete();

CREATE TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON loracomp.queue_limit
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_row();

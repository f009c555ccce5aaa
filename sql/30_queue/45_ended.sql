-- Jobs whose end another room waits for: `watched` is set when they are inserted.
--   trigger note_ended          after an update of jobs: notes those that have ended, or were queued again

-- It only appends rows, so a worker that records an answer never waits for somebody who reads them.
CREATE FUNCTION loracomp.note_ended() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- As in audit_job_update: rows before and after are joined by a hash join, because the planner can't know their number.
SET enable_hashjoin = on
SET enable_nestloop = off
SET enable_mergejoin = off
AS $$
BEGIN
    -- Not after other updates: if a policy is renamed, for example, all of its jobs are updated, and their answers stay as they are.
    INSERT INTO loracomp.ended_job (job_id)
    SELECT n.id FROM new_job AS n JOIN old_job AS o ON o.id = n.id
    WHERE n.watched AND n.finished_at IS DISTINCT FROM o.finished_at;
    IF found THEN
        PERFORM loracomp.notify('loracomp_keep', '');
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.note_ended IS 'Trigger: notes in ended_job which watched jobs have ended, and wakes the keeper.';

CREATE TRIGGER note_ended AFTER UPDATE ON loracomp.job
REFERENCING OLD TABLE AS old_job NEW TABLE AS new_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.note_ended();

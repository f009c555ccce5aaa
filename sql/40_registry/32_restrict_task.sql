-- drop: DROP FUNCTION IF EXISTS loracomp.restrict_task(text, name)
-- Changes who may retrieve a task: members of the role, or everybody where it is null. Raises if there is no such task. Notes who they are.
CREATE FUNCTION loracomp.restrict_task(task text, reader_role name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    LOCK TABLE loracomp.task IN SHARE ROW EXCLUSIVE MODE; -- as note_readers does: two calls would deadlock later
    PERFORM loracomp.check_role_exists(reader_role);
    UPDATE loracomp.task AS t SET reader_role = restrict_task.reader_role WHERE t.name = restrict_task.task;
    IF NOT found THEN
        RAISE EXCEPTION 'there is no task %', task
            USING ERRCODE = 'no_data_found', HINT = 'loracomp task list names those that there are';
    END IF;
    PERFORM loracomp.note_readers();
END
$$;
COMMENT ON FUNCTION loracomp.restrict_task IS 'Lets only members of the role retrieve the task; null lets everybody.';

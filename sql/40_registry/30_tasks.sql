-- Tasks, and who may read them.
--   add_task
--     check_role_exists
--   restrict_task
--     check_role_exists
--     note_readers
--   list_tasks

-- Adds a task unless its name is taken, and returns whether it did; a task that stands there stays as it is.
CREATE FUNCTION loracomp.add_task(
    name text, family text DEFAULT 'other', description text DEFAULT '', reader_role name DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM loracomp.check_role_exists(reader_role);
    INSERT INTO loracomp.task (name, family, description, reader_role)
    VALUES (add_task.name, add_task.family, add_task.description, add_task.reader_role)
    ON CONFLICT ON CONSTRAINT task_name_is_taken DO NOTHING;
    RETURN found;
END
$$;
COMMENT ON FUNCTION loracomp.add_task IS 'Adds a task; false, and nothing changed, where the name is taken.';

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

-- Raises if there is no such role: a task with a misspelt reader_role could be read by nobody.
CREATE FUNCTION loracomp.check_role_exists(role name) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF role IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = role) THEN
        RAISE EXCEPTION 'reader_role: there is no role %', role
            USING ERRCODE = 'no_data_found', HINT = 'CREATE ROLE makes one';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_role_exists IS 'Raises where the role does not exist; null is fine.';

-- Reads tasks with what they have.
CREATE FUNCTION loracomp.list_tasks()
RETURNS TABLE (
    name text,
    family text,
    description text,
    reader_role name,
    train bigint,
    validation bigint,
    test bigint,
    embedded bigint,
    without_text bigint,
    active_adapters bigint
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT
    t.name,
    t.family,
    t.description,
    t.reader_role,
    count(e.id) FILTER (WHERE e.split = 'train'),
    count(e.id) FILTER (WHERE e.split = 'validation'),
    count(e.id) FILTER (WHERE e.split = 'test'),
    (SELECT count(*) FROM loracomp.example_embedding AS v WHERE v.task_id = t.id),
    count(e.id) FILTER (WHERE e.prompt IS NULL),
    (SELECT count(*) FROM loracomp.adapter AS a WHERE a.task_id = t.id AND a.status = 'active')
FROM loracomp.task AS t
LEFT JOIN loracomp.example AS e ON t.id = e.task_id
GROUP BY t.id
ORDER BY t.family, t.name;
END;
COMMENT ON FUNCTION loracomp.list_tasks IS 'Tasks with their numbers of examples, embeddings and active adapters.';

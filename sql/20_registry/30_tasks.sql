-- Tasks, and who may read them.
--   add_task
--     check_role_exists
--   restrict_task
--     check_role_exists
--   delete_examples
--     each: find_task
--       check_task_exists       raises an error if the task does not exist
--   list_tasks
--   generating_tasks            which of these tasks have adapters that have learnt to write text
--   readable_tasks              tasks that the caller's jobs may use
--     readable_roles            the roles whose tasks a role may know of
--   check_tasks_exist           raises an error if some of the names are not tasks that the caller may know of
--     readable_roles

-- Adds a task unless the name exists, and returns whether it was added; an existing task is not changed.
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
COMMENT ON FUNCTION loracomp.add_task IS 'Adds a task. Returns false and changes nothing if the name exists.';

-- Changes whose jobs may use a task: jobs of the role's members and of administrators, or everybody's jobs if the role is null. Raises if
-- there is no such task.
CREATE FUNCTION loracomp.restrict_task(task text, reader_role name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    target CONSTANT integer := loracomp.find_task(restrict_task.task);
BEGIN
    PERFORM loracomp.check_role_exists(reader_role);
    UPDATE loracomp.task AS t SET reader_role = restrict_task.reader_role WHERE t.id = target;
END
$$;
COMMENT ON FUNCTION loracomp.restrict_task IS 'Lets only jobs of the role''s members and of administrators use the task; null: everybody''s jobs may.';

-- Deletes examples of a task, of one split or of all, with their embeddings. Traces keep their ids.
CREATE FUNCTION loracomp.delete_examples(task text, split text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    target CONSTANT integer := loracomp.find_task(delete_examples.task);
    deleted bigint;
BEGIN
    IF delete_examples.split NOT IN ('train', 'validation', 'test') THEN
        RAISE EXCEPTION 'split must be train, validation or test, not %', delete_examples.split
            USING ERRCODE = 'invalid_parameter_value', HINT = 'leave it out for all of them';
    END IF;
    DELETE FROM loracomp.example AS e
    WHERE e.task_id = target AND e.split = coalesce(delete_examples.split, e.split);
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$$;
COMMENT ON FUNCTION loracomp.delete_examples IS
'Deletes a task''s examples, of one split or of all, with their embeddings; returns how many.';

-- Locks the task, so that two calls which change it wait for each other.
CREATE FUNCTION loracomp.find_task(task text) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    found_id CONSTANT integer := (SELECT t.id FROM loracomp.task AS t WHERE t.name = find_task.task FOR NO KEY UPDATE);
BEGIN
    IF found_id IS NULL THEN
        PERFORM loracomp.check_task_exists(coalesce(find_task.task, 'null'));
    END IF;
    RETURN found_id;
END
$$;
COMMENT ON FUNCTION loracomp.find_task IS 'The id of a task, which is locked until the transaction ends. Raises if there is no such task.';

-- Raises an error if the role does not exist, because nobody could read a task with a misspelt reader_role.
CREATE FUNCTION loracomp.check_role_exists(role name) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF role IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = role) THEN
        RAISE EXCEPTION 'reader_role: there is no role %', role
            USING ERRCODE = 'no_data_found', HINT = 'create the role with CREATE ROLE';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_role_exists IS 'Raises if the role does not exist; null is accepted.';

-- Reads tasks with their numbers of examples, embeddings and active adapters.
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

-- Reads an entry of the index example_of_text for each task; for EXISTS the planner might read the whole index. An example that a library
-- brought without its text may have had choices, so it counts only when its text has been imported.
CREATE FUNCTION loracomp.generating_tasks(tasks integer[]) RETURNS integer[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(array_agg(u.id ORDER BY u.id), '{}')
    FROM unnest(tasks) AS u (id)
    WHERE (
        SELECT e.task_id FROM loracomp.example AS e
        WHERE e.task_id = u.id AND e.split = 'train' AND e.prompt IS NOT NULL AND e.choices IS NULL LIMIT 1
    ) IS NOT NULL;
END;
COMMENT ON FUNCTION loracomp.generating_tasks IS
'The tasks in the array that have a train example without choices, because adapters of such tasks have learnt to write text; in order of their ids.';

-- Reads memberships, and the roles of all tasks: the rule of may_read, for many tasks at once. OFFSET 0 makes Postgres check each role
-- once, and not once for each of its tasks; is_admin is called once, because it is in a subquery.
CREATE FUNCTION loracomp.readable_roles(reader name) RETURNS SETOF name
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT d.reader_role
    FROM (SELECT DISTINCT t.reader_role FROM loracomp.task AS t WHERE t.reader_role IS NOT NULL OFFSET 0) AS d
    WHERE (SELECT loracomp.is_admin(reader))
        OR pg_has_role(to_regrole(quote_ident(reader)), to_regrole(quote_ident(d.reader_role)), 'usage');
END;
COMMENT ON FUNCTION loracomp.readable_roles IS 'The reader_roles of tasks that a role may know of, and that its jobs may use.';

-- Reads only, with its owner's rights, because row security shows tasks only to administrators.
CREATE FUNCTION loracomp.readable_tasks() RETURNS TABLE (name text, family text, description text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT t.name, t.family, t.description
    FROM loracomp.task AS t
    WHERE t.reader_role IS NULL OR t.reader_role IN (SELECT loracomp.readable_roles(loracomp.caller()))
    ORDER BY t.family, t.name;
$$;
COMMENT ON FUNCTION loracomp.readable_tasks IS 'Tasks that the caller''s jobs may use; their names can be given as tasks or exclude_tasks.';

-- Changes nothing; null passes. A task that the caller may not read is treated as unknown.
CREATE FUNCTION loracomp.check_tasks_exist(field text, names text[]) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    known CONSTANT text[] := ARRAY(
        SELECT t.name FROM loracomp.task AS t
        WHERE t.reader_role IS NULL OR t.reader_role IN (SELECT loracomp.readable_roles(loracomp.caller()))
    );
    unknown CONSTANT text := (
        SELECT string_agg(x.name || coalesce(loracomp.did_you_mean(x.name, known), ''), ', ' ORDER BY x.ordinal)
        FROM (SELECT u.name, min(u.ordinal) AS ordinal FROM unnest(names) WITH ORDINALITY AS u (name, ordinal) GROUP BY u.name) AS x
        WHERE x.name <> ALL (known)
    );
BEGIN
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION '% names tasks that do not exist: %', field, unknown
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = field || '_must_name_tasks',
                HINT = 'remove these names: a task that does not exist is never used';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_tasks_exist IS 'Raises an error if a name is not a task, or is a task that the caller may not read.';

-- Changes nothing; null passes. Without this check, listing the failures of a mistyped task would wrongly show that there are none.
CREATE FUNCTION loracomp.check_task_exists(task text) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF task IS NOT NULL AND NOT EXISTS (SELECT FROM loracomp.task AS t WHERE t.name = check_task_exists.task) THEN
        RAISE EXCEPTION 'task % does not exist', check_task_exists.task
            USING ERRCODE = 'no_data_found', HINT = concat(
                'loracomp task add creates one, loracomp task list shows the existing ones',
                loracomp.did_you_mean(check_task_exists.task, ARRAY(SELECT t.name FROM loracomp.task AS t))
            );
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_task_exists IS 'True if there is such a task, or if the name is null; otherwise raises.';

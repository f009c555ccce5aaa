-- drop: DROP FUNCTION IF EXISTS loracomp.add_task(text, text, text, name)
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

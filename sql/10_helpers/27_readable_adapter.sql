-- drop: DROP FUNCTION IF EXISTS loracomp.readable_adapter(integer)
-- Reads only. No row for an adapter that is gone, or whose task the caller may not read.
CREATE FUNCTION loracomp.readable_adapter(id integer) RETURNS TABLE (name text, version integer)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = loracomp, pg_temp
AS $$
    SELECT a.name, a.version
    FROM loracomp.adapter AS a
    INNER JOIN loracomp.task AS t ON a.task_id = t.id
    WHERE a.id = readable_adapter.id
        AND (t.reader_role IS NULL OR loracomp.may_read(loracomp.caller(), t.reader_role));
$$;
COMMENT ON FUNCTION loracomp.readable_adapter IS 'Name and version of an adapter, for readers of its task.';

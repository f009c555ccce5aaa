-- drop: DROP FUNCTION IF EXISTS loracomp.readable_tasks()
-- Reads only. A function, and not a table with row security: of rows that this hides EXPLAIN ANALYZE tells how many an index
-- found, and so by a few questions what is in it. Nothing of a caller's goes into a function with its owner's rights.
CREATE FUNCTION loracomp.readable_tasks() RETURNS TABLE (name text, family text, description text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT t.name, t.family, t.description
    FROM loracomp.task AS t
    WHERE t.reader_role IS NULL OR loracomp.may_read(loracomp.caller(), t.reader_role)
    ORDER BY t.family, t.name;
$$;
COMMENT ON FUNCTION loracomp.readable_tasks IS 'Tasks that your jobs may use; exclude_tasks takes their names.';

-- drop: DROP FUNCTION IF EXISTS loracomp.unknown_tasks(text[])
-- Reads which of these names no task has; null where each has one. What the caller may not read does not exist for it.
CREATE FUNCTION loracomp.unknown_tasks(names text[]) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT string_agg(DISTINCT coalesce(u.name, 'null'), ', ')
    FROM unnest(names) AS u (name)
    WHERE NOT EXISTS (
        SELECT FROM loracomp.task AS t
        WHERE t.name = u.name AND loracomp.may_read(loracomp.caller(), t.reader_role)
    );
END;
COMMENT ON FUNCTION loracomp.unknown_tasks IS 'Those of the names that no task has, joined by commas; null where there are none.';

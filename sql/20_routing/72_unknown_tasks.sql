-- drop: DROP FUNCTION IF EXISTS loracomp.unknown_tasks(text[])
-- Reads which of these names no task has; null where each has one. What the caller may not read does not exist for it: neither
-- in the answer, nor in the time, nor in the counters of rows read, which every session may see. So it reads all tasks, and
-- looks no name up.
CREATE FUNCTION loracomp.unknown_tasks(names text[]) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT string_agg(x.name, ', ' ORDER BY x.place)
    FROM (
        SELECT coalesce(u.name, 'null') AS name, min(u.place) AS place
        FROM unnest(names) WITH ORDINALITY AS u (name, place)
        GROUP BY coalesce(u.name, 'null')
    ) AS x
    WHERE x.name NOT IN (
        SELECT t.name FROM loracomp.task AS t
        WHERE t.reader_role IS NULL OR loracomp.may_read(loracomp.caller(), t.reader_role)
    );
END;
COMMENT ON FUNCTION loracomp.unknown_tasks IS 'Those of the names that no task has, joined by commas; null where there are none.';

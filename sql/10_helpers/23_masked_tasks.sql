-- drop: DROP FUNCTION IF EXISTS loracomp.masked_tasks(text[], jsonb)
-- Computes only.
CREATE FUNCTION loracomp.masked_tasks(tasks text[], labels jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE
        WHEN labels = '{}' THEN tasks
        ELSE ARRAY(
            SELECT coalesce(labels ->> u.task, u.task)
            FROM unnest(tasks) WITH ORDINALITY AS u (task, place) ORDER BY u.place
        )
    END;
END;
COMMENT ON FUNCTION loracomp.masked_tasks IS 'Names of tasks in their order, those that are hidden by their labels.';

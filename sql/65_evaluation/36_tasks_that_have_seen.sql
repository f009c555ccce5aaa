-- drop: DROP FUNCTION IF EXISTS loracomp.tasks_that_have_seen(text, text)
-- Reads the training records of active adapters. An adapter without one has seen its own task, as far as is known.
CREATE FUNCTION loracomp.tasks_that_have_seen(task text, base_model text) RETURNS text[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT array_agg(t.name ORDER BY t.name)
    FROM loracomp.task AS t
    WHERE t.name = tasks_that_have_seen.task OR EXISTS (
        SELECT FROM loracomp.adapter AS a JOIN loracomp.base_model AS b ON b.id = a.base_model_id
        WHERE a.task_id = t.id AND a.status = 'active' AND b.name = tasks_that_have_seen.base_model
            AND a.training -> 'tasks_seen' ? tasks_that_have_seen.task
    );
END;
COMMENT ON FUNCTION loracomp.tasks_that_have_seen IS
'The task, and those whose active adapter has learnt from its rows: its training record names it in tasks_seen, as that of '
'an adapter does which was started from another task''s.';

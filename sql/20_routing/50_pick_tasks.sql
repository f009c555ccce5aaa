-- drop: DROP FUNCTION IF EXISTS loracomp.pick_tasks(text, integer[], double precision[], integer[], integer, integer, bigint)
-- Changes nothing and reads no table. random draws by md5, which is the same on every server and release.
CREATE FUNCTION loracomp.pick_tasks(
    router text,
    tasks integer[],
    weights double precision[],
    eligible integer[],
    own_task integer,
    seed integer,
    job_id bigint
) RETURNS TABLE (task_id integer, weight double precision)
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 4
BEGIN ATOMIC
    SELECT u.task_id, u.weight
    FROM unnest(tasks, weights) AS u (task_id, weight)
    WHERE router IN ('retrieval', 'random_parameters') AND u.weight > 0
    UNION ALL
    SELECT own_task, 1.0
    WHERE router = 'own_task' AND own_task = ANY (eligible)
    UNION ALL
    SELECT drawn.task_id, kept.weight
    FROM (
        SELECT u.weight, row_number() OVER (ORDER BY u.weight DESC, u.place) AS turn
        FROM unnest(weights) WITH ORDINALITY AS u (weight, place)
        WHERE u.weight > 0
    ) AS kept
    JOIN (
        SELECT u.task_id, row_number() OVER (ORDER BY md5(concat_ws('/', seed, job_id, u.task_id))) AS turn
        FROM unnest(eligible) AS u (task_id)
    ) AS drawn USING (turn)
    WHERE router = 'random';
END;
COMMENT ON FUNCTION loracomp.pick_tasks IS
'Tasks to compose, with weights. retrieval and random_parameters: those that routing kept. own_task: the job''s own. '
'random: eligible tasks drawn by seed and job, as many and with the same weights as routing kept. base: none.';

-- Reads only, with its owner's rights.
CREATE VIEW bi.dim_task AS
SELECT
    coalesce(m.labels ->> t.name, t.name) AS task,
    t.id AS task_id,
    t.family,
    CASE WHEN NOT m.labels ? t.name THEN t.description END AS description,
    t.reader_role IS NOT NULL AS is_restricted,
    t.created_at
FROM loracomp.task AS t
CROSS JOIN loracomp.task_mask AS m;
COMMENT ON VIEW bi.dim_task IS
'Dimension: a row for every task. Facts join it by task, own_task, top_task or nearest_task; a task that was '
'removed since is in the facts alone, so keep their rows (left join).';
COMMENT ON COLUMN bi.dim_task.task IS 'Name of the task, or its label where it is hidden from the reader. Key.';
COMMENT ON COLUMN bi.dim_task.task_id IS 'Number of the task.';
COMMENT ON COLUMN bi.dim_task.description IS 'What the task asks for; null where the task is hidden from the reader.';
COMMENT ON COLUMN bi.dim_task.is_restricted IS 'Whether it is retrieved for members of one role alone.';
COMMENT ON COLUMN bi.dim_task.created_at IS 'When it was made.';

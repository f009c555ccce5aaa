-- Reads only, with its owner's rights.
CREATE VIEW bi.dim_task AS
SELECT
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> t.name, t.name) AS task,
    t.id AS task_id,
    t.family,
    CASE WHEN NOT (SELECT m.labels FROM loracomp.task_mask AS m) ? t.name THEN t.description END AS description,
    t.reader_role IS NOT NULL AS is_restricted,
    t.created_at
FROM loracomp.task AS t;
COMMENT ON VIEW bi.dim_task IS
'Dimension: a row for every task. Facts join it by task, own_task, top_task or nearest_task. Use a left join, because facts '
'keep the names of tasks that were deleted.';
COMMENT ON COLUMN bi.dim_task.task IS 'Key: name of the task, or a label if the task is hidden from the reader.';
COMMENT ON COLUMN bi.dim_task.task_id IS 'Id of the task.';
COMMENT ON COLUMN bi.dim_task.description IS 'One sentence about what the task asks for; null if the task is hidden from the reader.';
COMMENT ON COLUMN bi.dim_task.is_restricted IS 'Whether only jobs of one role''s members may use the task.';
COMMENT ON COLUMN bi.dim_task.created_at IS 'When the task was added.';
SELECT loracomp.copy_comments('bi.dim_task', 'loracomp.task');

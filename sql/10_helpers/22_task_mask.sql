-- drop: DROP VIEW IF EXISTS loracomp.task_mask
-- Reads only. One row, of whoever asks: current_user stays the reader in views that run with their owner's rights. Granted to
-- nobody, for it holds the names that it hides; views of bi join it.
CREATE VIEW loracomp.task_mask AS
-- Once a query: a plan that takes the other side for one row would work it out for each.
WITH mask AS MATERIALIZED (
    SELECT coalesce(jsonb_object_agg(r.name, r.label), '{}') AS labels
    FROM loracomp.restricted_task AS r
    WHERE NOT loracomp.may_read(current_user, r.reader_role)
)

SELECT m.labels FROM mask AS m;
COMMENT ON VIEW loracomp.task_mask IS 'Names of tasks that the reader may not know, each with what stands in its place.';
COMMENT ON COLUMN loracomp.task_mask.labels IS 'Name to label, as a JSON object; {} where nothing is hidden.';

-- Adapters that answered a job.
--   composed_adapter            a row for each
--     readable_adapter          its name and version, where the reader may read its task

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

-- Reads only. A trace outlives its adapters: name and version are null where an adapter is gone or hidden.
CREATE VIEW loracomp.composed_adapter WITH (security_invoker) AS
SELECT
    p.job_id,
    x.place::integer AS place,
    x.task,
    x.weight,
    x.adapter_id,
    a.name AS adapter,
    a.version,
    x.sha256
FROM loracomp.prediction AS p
CROSS JOIN LATERAL unnest(p.composed_tasks, p.adapter_weights, p.adapter_ids, p.adapter_sha256)
WITH ORDINALITY AS x (task, weight, adapter_id, sha256, place)
LEFT JOIN LATERAL loracomp.readable_adapter(x.adapter_id) AS a ON TRUE;
COMMENT ON VIEW loracomp.composed_adapter IS 'Adapters that were composed for each job, with their weights.';
COMMENT ON COLUMN loracomp.composed_adapter.job_id IS 'The job.';
COMMENT ON COLUMN loracomp.composed_adapter.place IS '1 is the adapter of the most probable task.';
COMMENT ON COLUMN loracomp.composed_adapter.task IS 'Task that the adapter was trained for.';
COMMENT ON COLUMN loracomp.composed_adapter.weight IS 'Its weight in the composition; a job''s weights sum to 1.';
COMMENT ON COLUMN loracomp.composed_adapter.adapter_id IS 'The adapter.';
COMMENT ON COLUMN loracomp.composed_adapter.adapter IS 'Its name.';
COMMENT ON COLUMN loracomp.composed_adapter.version IS 'Its version.';
COMMENT ON COLUMN loracomp.composed_adapter.sha256 IS 'Hash of its file.';

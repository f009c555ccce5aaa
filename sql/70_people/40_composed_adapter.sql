-- Adapters that were composed for a job.
--   composed_adapter            a row for each adapter
--     readable_adapter          an adapter's name and version, if the caller may read its task

-- Reads only. Returns no row if the adapter was deleted, or if the caller may not read its task.
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
COMMENT ON FUNCTION loracomp.readable_adapter IS 'Name and version of an adapter, if the caller may read its task.';

-- Reads only. A trace stays when its adapters are deleted. The name and version of an adapter are null if it was deleted or is hidden from
-- the reader.
CREATE VIEW loracomp.composed_adapter WITH (security_invoker) AS
SELECT
    p.job_id,
    x.ordinal::integer AS ordinal,
    x.task,
    x.weight,
    x.adapter_id,
    a.name AS adapter,
    a.version,
    x.sha256
FROM loracomp.prediction AS p
CROSS JOIN LATERAL unnest(p.composed_tasks, p.adapter_weights, p.adapter_ids, p.adapter_sha256)
WITH ORDINALITY AS x (task, weight, adapter_id, sha256, ordinal)
LEFT JOIN LATERAL loracomp.readable_adapter(x.adapter_id) AS a ON TRUE;
COMMENT ON VIEW loracomp.composed_adapter IS 'Adapters that were composed for each job, with their weights.';
COMMENT ON COLUMN loracomp.composed_adapter.ordinal IS 'Position in the composition; 1 has the largest weight.';
COMMENT ON COLUMN loracomp.composed_adapter.task IS 'Task that the adapter was trained for.';
COMMENT ON COLUMN loracomp.composed_adapter.weight IS 'Weight of the adapter, 0 to 1. The weights of a job sum to 1, unless the job itself gave them.';
COMMENT ON COLUMN loracomp.composed_adapter.adapter_id IS 'Id of the adapter.';
COMMENT ON COLUMN loracomp.composed_adapter.adapter IS 'Name of the adapter; null if the adapter was deleted or is hidden from the reader.';
COMMENT ON COLUMN loracomp.composed_adapter.version IS 'Version of the adapter; null if the name is null.';
COMMENT ON COLUMN loracomp.composed_adapter.sha256 IS 'Sha256 of the adapter''s file.';
SELECT loracomp.copy_comments('loracomp.composed_adapter', 'loracomp.job_result');

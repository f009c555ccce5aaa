-- Examples that routing retrieved for a job.
--   retrieved_example           a row for each retrieved example
--     readable_example          the example's text, if the reader may read its task

-- Reads only. Returns no row if the example was deleted, if the caller may not read its task, or if none of the caller's jobs retrieved it.
-- Without the last condition, a submitter could list all examples by trying one number after another.
CREATE FUNCTION loracomp.readable_example(job_id bigint, id bigint)
RETURNS TABLE (source_ref text, prompt text, label text)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = loracomp, pg_temp
AS $$
    SELECT e.source_ref, e.prompt, e.label
    FROM loracomp.example AS e
    INNER JOIN loracomp.task AS t ON e.task_id = t.id
    WHERE e.id = readable_example.id
        AND (t.reader_role IS NULL OR loracomp.may_read(loracomp.caller(), t.reader_role))
        AND EXISTS (
            SELECT FROM loracomp.prediction AS p
            WHERE p.job_id = readable_example.job_id AND (p.submitted_by = loracomp.caller()::text OR loracomp.caller_is_admin())
                AND (e.id = ANY (p.example_ids) OR e.id = ANY (p.calibration_examples))
        );
$$;
COMMENT ON FUNCTION loracomp.readable_example IS
'Text of a training example that one of the caller''s jobs retrieved, if the caller may read its task.';

-- Reads only. An example's text is null if the reader may not read its task, or if a library shipped the example without it.
CREATE VIEW loracomp.retrieved_example WITH (security_invoker) AS
SELECT
    p.job_id,
    x.ordinal::integer AS ordinal,
    x.example_id,
    x.task,
    x.similarity,
    e.source_ref,
    e.prompt,
    e.label
FROM loracomp.prediction AS p
CROSS JOIN LATERAL unnest(p.example_ids, p.example_tasks, p.similarities)
WITH ORDINALITY AS x (example_id, task, similarity, ordinal)
LEFT JOIN LATERAL loracomp.readable_example(p.job_id, x.example_id) AS e ON TRUE;
COMMENT ON VIEW loracomp.retrieved_example IS 'Examples that routing retrieved for each job; they decided which tasks'' adapters were used.';
COMMENT ON COLUMN loracomp.retrieved_example.ordinal IS 'Rank of the example by similarity; 1 is the nearest.';
COMMENT ON COLUMN loracomp.retrieved_example.example_id IS 'Id of the example.';
COMMENT ON COLUMN loracomp.retrieved_example.task IS 'Task of the example.';
COMMENT ON COLUMN loracomp.retrieved_example.similarity IS 'Cosine similarity of the example to the job, -1 to 1.';
COMMENT ON COLUMN loracomp.retrieved_example.source_ref IS 'Where the example came from, such as piqa/train#1532.';
COMMENT ON COLUMN loracomp.retrieved_example.prompt IS 'The example''s text; null if the reader may not read it, or if a library shipped the example without text.';
COMMENT ON COLUMN loracomp.retrieved_example.label IS 'The example''s label, which is its right answer; null if its text is null.';
SELECT loracomp.copy_comments('loracomp.retrieved_example', 'loracomp.job_result');

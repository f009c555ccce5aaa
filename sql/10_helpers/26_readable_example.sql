-- drop: DROP FUNCTION IF EXISTS loracomp.readable_example(bigint)
-- Reads only. No row for an example that is gone, or whose task the caller may not read.
CREATE FUNCTION loracomp.readable_example(id bigint) RETURNS TABLE (source_ref text, prompt text, answer text)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = loracomp, pg_temp
AS $$
    SELECT e.source_ref, e.prompt, e.answer
    FROM loracomp.example AS e
    INNER JOIN loracomp.task AS t ON e.task_id = t.id
    WHERE e.id = readable_example.id
        AND (t.reader_role IS NULL OR loracomp.may_read(loracomp.caller(), t.reader_role));
$$;
COMMENT ON FUNCTION loracomp.readable_example IS 'Text of a training example, for readers of its task.';

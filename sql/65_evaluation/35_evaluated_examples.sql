-- drop: DROP FUNCTION IF EXISTS loracomp.evaluated_examples(text, text, integer)
-- Reads the rows of a split that can be asked, in the order in which they are drawn: fewer are always among more. A row
-- that is in the index would retrieve itself, so that it is none: train rows, but for those that were never embedded.
CREATE FUNCTION loracomp.evaluated_examples(task text, split text, seed integer DEFAULT 0)
RETURNS TABLE (example_id bigint, prompt text, choices text[], answer text, place bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        e.id,
        e.prompt,
        e.choices,
        e.answer,
        row_number() OVER (ORDER BY sha256(e.content_hash || int4send(evaluated_examples.seed)), e.id)
    FROM loracomp.task AS t
    JOIN loracomp.example AS e ON e.task_id = t.id
    WHERE t.name = evaluated_examples.task AND e.split = evaluated_examples.split
        AND e.prompt IS NOT NULL AND e.answer IS NOT NULL
        AND NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.example_id = e.id);
END;
COMMENT ON FUNCTION loracomp.evaluated_examples IS
'Rows of a task''s split that an evaluation can ask, with their places in the order that a seed draws them in.';

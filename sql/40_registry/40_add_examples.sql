-- drop: DROP FUNCTION IF EXISTS loracomp.add_examples(text, jsonb)
-- Adds examples to a task; a row is known by its content_hash. A known row gets the text that is given, if any: that
-- fills in an example that a library shipped without. Where its text was another one, its embedding is removed.
-- A row that stands in another split is left alone. Says what became of each row, in order.
CREATE FUNCTION loracomp.add_examples(task text, examples jsonb)
RETURNS TABLE (outcome text, stored_split text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    target integer := (SELECT t.id FROM loracomp.task AS t WHERE t.name = add_examples.task FOR NO KEY UPDATE);
BEGIN
    IF target IS NULL THEN
        RAISE EXCEPTION 'there is no task %', add_examples.task
            USING ERRCODE = 'no_data_found', HINT = 'loracomp task add makes one';
    END IF;
    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT
            r.split, r.prompt, r.choices, r.answer, r.source_ref, r.hash_version,
            decode(r.content_hash, 'hex') AS content_hash,
            r.place,
            row_number() OVER same_row AS time,
            first_value(r.split) OVER same_row AS first_split
        FROM ROWS FROM (
            jsonb_to_recordset(examples) AS (
                split text, prompt text, choices text[], answer text,
                source_ref text, content_hash text, hash_version smallint
            )
        ) WITH ORDINALITY AS r (split, prompt, choices, answer, source_ref, content_hash, hash_version, place)
        WINDOW same_row AS (PARTITION BY r.content_hash ORDER BY r.place)
    ),
    judged AS MATERIALIZED (
        SELECT
            g.*,
            e.id,
            coalesce(e.split, g.first_split) AS stored_split,
            CASE
                WHEN coalesce(e.split, g.first_split) <> g.split THEN 'other_split'
                WHEN g.time > 1 THEN 'unchanged'
                WHEN e.id IS NULL THEN 'added'
                WHEN g.prompt IS NULL THEN 'unchanged'
                WHEN e.prompt IS NULL THEN 'filled'
                WHEN (e.prompt, e.choices, e.answer) IS DISTINCT FROM (g.prompt, g.choices, g.answer) THEN 'changed'
                ELSE 'unchanged'
            END AS outcome
        FROM given AS g
        LEFT JOIN loracomp.example AS e ON e.task_id = target AND g.content_hash = e.content_hash
    ),
    added AS (
        INSERT INTO loracomp.example
            (task_id, split, prompt, choices, answer, source_ref, content_hash, hash_version)
        SELECT target, j.split, j.prompt, j.choices, j.answer, j.source_ref, j.content_hash, coalesce(j.hash_version, 1)
        FROM judged AS j
        WHERE j.outcome = 'added'
        ORDER BY j.place
    ),
    written AS (
        UPDATE loracomp.example AS e
        SET prompt = j.prompt, choices = j.choices, answer = j.answer, source_ref = coalesce(j.source_ref, e.source_ref)
        FROM judged AS j
        WHERE e.id = j.id AND j.outcome IN ('filled', 'changed')
    ),
    outdated AS (
        DELETE FROM loracomp.example_embedding AS v
        USING judged AS j
        WHERE v.example_id = j.id AND j.outcome = 'changed'
    )
    SELECT j.outcome, j.stored_split FROM judged AS j ORDER BY j.place;
END
$$;
COMMENT ON FUNCTION loracomp.add_examples IS
'Adds examples given as a JSON array of objects (split, prompt, choices, answer, source_ref, content_hash in hex,
hash_version). Says of each whether it was added, filled, changed, unchanged, or left because of other_split.';

-- Texts that stand in the train rows of one task and the evaluated rows of another.
--   leaks_between_tasks
--     text_key                  texts that differ by case or punctuation alone have the same

-- Computes only. What spaces and punctuation are is the same on every server; the case of letters beyond ASCII is the locale's.
CREATE FUNCTION loracomp.text_key(value text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT md5(lower(regexp_replace(
    regexp_replace(value COLLATE "C", '^[' || s.spaces || ']*[^' || s.others || ']+:', ''),
    '[' || s.others || ']+', '', 'g'
)))
FROM (
    SELECT
        loracomp.white_space() AS spaces,
        -- Of ASCII and Latin 1, quotes and dashes.
        loracomp.white_space() || '!-/:-@[-`{-~\u00a1\u00ab\u00b7\u00bb\u00bf\u2010-\u2027\u2030-\u205e' AS others
) AS s;
END;
COMMENT ON FUNCTION loracomp.text_key IS
'Hash of a text without case, spaces, punctuation and a label such as Question: in front.';

-- Changes nothing; hashes every line of every example that has a text, some seconds for 100,000. Templates differ from task to
-- task, so lines are compared too, but none that is in more than a fifth of its task's rows: that is the template's own.
-- Rows of one task share passages and premises by nature, so within a task only whole prompts count.
CREATE FUNCTION loracomp.leaks_between_tasks(task text DEFAULT NULL, split text DEFAULT 'validation')
RETURNS TABLE (
    own_task text,
    example_id bigint,
    source_ref text,
    train_task text,
    train_example_id bigint,
    train_source_ref text,
    whole_prompt boolean
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
    WITH part AS MATERIALIZED (
        SELECT e.id, e.task_id, e.split, p.whole, loracomp.text_key(p.value) AS key
        FROM loracomp.example AS e
        CROSS JOIN LATERAL (
            SELECT true AS whole, e.prompt AS value
            UNION ALL
            SELECT false, l.line FROM string_to_table(e.prompt, chr(10)) AS l (line) WHERE char_length(l.line) >= 20
        ) AS p
        WHERE e.prompt IS NOT NULL AND e.split IN ('train', leaks_between_tasks.split)
    ), template AS MATERIALIZED (
        SELECT DISTINCT t.key
        FROM (
            SELECT p.key, count(*) FILTER (WHERE NOT p.whole) AS lines, sum(count(*) FILTER (WHERE p.whole)) OVER task AS rows
            FROM part AS p GROUP BY p.task_id, p.key WINDOW task AS (PARTITION BY p.task_id)
        ) AS t
        WHERE t.lines > greatest(5, t.rows / 5)
    ), leak AS (
        SELECT v.task_id, v.id, x.task_id AS train_task_id, x.id AS train_id, bool_or(v.whole) AS whole
        FROM part AS v
        JOIN part AS x ON x.key = v.key AND x.whole = v.whole AND x.id <> v.id
        WHERE v.split = leaks_between_tasks.split AND x.split = 'train' AND (v.whole OR x.task_id <> v.task_id)
            AND (v.whole OR NOT EXISTS (SELECT FROM template AS t WHERE t.key = v.key))
        GROUP BY v.task_id, v.id, x.task_id, x.id
    )
    SELECT own.name, l.id, e.source_ref, other.name, l.train_id, x.source_ref, l.whole
    FROM leak AS l
    JOIN loracomp.task AS own ON own.id = l.task_id
    JOIN loracomp.task AS other ON other.id = l.train_task_id
    JOIN loracomp.example AS e ON e.id = l.id
    JOIN loracomp.example AS x ON x.id = l.train_id
    WHERE own.name = coalesce(leaks_between_tasks.task, own.name)
    ORDER BY own.name, l.id, other.name, l.train_id;
$$;
COMMENT ON FUNCTION loracomp.leaks_between_tasks IS
'Rows of a split that have a line, or their whole prompt, in common with a train row of another task, or the whole prompt '
'with one of their own; of one task or of all (null). Rows without text can''t be looked at.';

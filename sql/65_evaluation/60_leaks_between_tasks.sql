-- Finds texts that are in train rows of one task and in evaluated rows of another.
--   leaks_between_tasks
--     text_key                  a hash that is equal for texts that differ only in case or punctuation

-- Reads no table. Spaces and punctuation are the same on every server; the case of letters outside ASCII depends on the locale.
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
        -- Punctuation of ASCII and Latin 1, quotes and dashes.
        loracomp.white_space() || '!-/:-@[-`{-~\u00a1\u00ab\u00b7\u00bb\u00bf\u2010-\u2027\u2030-\u205e' AS others
) AS s;
END;
COMMENT ON FUNCTION loracomp.text_key IS
'Hash of a text that ignores case, spaces, punctuation, and a label such as Question: at the start.';

-- Changes nothing. It hashes every line of every example with text; 100,000 examples take some seconds. Single lines are
-- compared, because templates differ between tasks; but not lines that are in more than a fifth of a task's rows, because these
-- belong to its template. Within a task only whole prompts are compared, because its rows naturally share passages.
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
    SELECT loracomp.check_task_exists(leaks_between_tasks.task);
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
'Rows of a split that share a line or the whole prompt with a train row of another task, or the whole prompt with a train row of '
'the same task; for one task or all tasks (null). Rows without text are not compared.';

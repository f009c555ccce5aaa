-- The tables of an evaluation, each by the name that it has in the pages. `python -m benchmarks.figures` runs them after report.sql;
-- so does psql, in the repository's root: \i benchmarks/evaluation/report.sql, then a query.

-- table: first-figures
\set engine `cat docs/performance/engine.json 2> /dev/null || echo '{}'`
\set faults `echo "[$(paste -s -d , docs/faults.jsonl 2> /dev/null)]"`
WITH figure (ordinal, what, measured, compared) AS (
    SELECT l.ordinal, l.label,
        format('%s %%, %s points (%s to %s)', report.share(a.accuracy), report.signed(p.difference), report.signed(p.low),
            report.signed(p.high)),
        l.other
    FROM (VALUES
        (1, 'accuracy on the library''s tasks, adapters chosen by similarity', 'library', 'default', 'base', 'the base model alone'),
        (2, 'the same', 'library', 'default', 'own_task', 'each task''s own adapter'),
        (3, 'on four other tasks, three with twins in the library', 'unseen', 'default', 'base', 'the base model alone'),
        (4, 'on five unfamiliar tasks', 'unfamiliar', 'default', 'base', 'the base model alone'),
        (5, 'on these five, policy measured, 64 labelled rows a task', 'unfamiliar_64', 'measured', 'base', 'the base model alone')
    ) AS l (ordinal, label, part, policy, rival, other)
    JOIN report.accuracy AS a ON a.part = l.part AND a.scope = 'all' AND a.policy = l.policy
    JOIN report.pair AS p ON p.part = l.part AND p.scope = 'all' AND p.policy_a = l.policy AND p.policy_b = l.rival
    UNION ALL
    SELECT l.ordinal, l.label, format('%s x (%s to %s)', round(f.ratio, 2), round(f.low, 2), round(f.high, 2)), l.other
    FROM (VALUES
        (6, '32 jobs with 32 different mixes in one batch: jobs/s', 'scoring', 'scoring cat', 'the base model alone'),
        (7, 'from text to answer, 32 jobs that all differ, policy linear: jobs/s', 'paper', 'paper', 'ChromaDB, then a PEFT merge and a pass a job'),
        (8, 'one job on an idle system, INSERT to result: time', 'latency', 'latency', 'encoding and one forward pass alone')
    ) AS l (ordinal, label, part, name, other)
    CROSS JOIN LATERAL jsonb_to_recordset(:'engine'::jsonb #> ARRAY[l.part, 'figures'])
        AS f (name text, ratio numeric, low numeric, high numeric)
    WHERE f.name = l.name
    UNION ALL
    SELECT 9, 'jobs lost, and jobs recorded twice, when workers and servers die', format('%s and %s', sum(f.lost), sum(f.doubled)),
        format('%s jobs in %s runs', to_char(sum(f.jobs), 'FM9,999,999'), count(*))
    FROM jsonb_to_recordset(:'faults'::jsonb) AS f (lost bigint, doubled bigint, jobs bigint) HAVING count(*) > 0
)
SELECT f.what, f.measured, f.compared AS "compared with" FROM figure AS f ORDER BY f.ordinal;

-- table: accuracy
WITH shown AS (
    SELECT a.policy, l.label, l.ordinal, a.accuracy, a.low, a.high, a.n
    FROM report.accuracy AS a
    JOIN (VALUES
        ('library', 1, 'own template'), ('held_out', 2, 'held-out phrasings'), ('handwritten', 3, 'by hand'), ('unseen', 4, 'twins'),
        ('unfamiliar', 5, 'unfamiliar')
    ) AS l (part, ordinal, label) ON l.part = a.part
    WHERE a.scope = 'all' AND a.policy IN ('base', 'own_task', 'default', 'linear', 'measured', 'uniform')
), line (last, row, label, cell, ordinal) AS (
    SELECT report.policy_order(s.policy), format('`%s`', s.policy), s.label, report.percent(s.accuracy, s.low, s.high), s.ordinal
    FROM shown AS s
    UNION ALL
    SELECT 99, 'rows', s.label, concat_ws(' to ', to_char(min(s.n), 'FM9,999'), to_char(nullif(max(s.n), min(s.n)), 'FM9,999')), s.ordinal FROM shown AS s GROUP BY s.label, s.ordinal
)
SELECT l.row AS policy, l.label, l.cell, l.ordinal FROM line AS l ORDER BY l.last, l.ordinal
\crosstabview policy label cell ordinal

-- table: differences
SELECT format('%s, `%s`', l.label, p.policy_a) AS "rows, policy", format('against `%s`', p.policy_b) AS versus,
    report.points(p.difference, p.low, p.high) AS cell, report.policy_order(p.policy_b) AS ordinal
FROM report.pair AS p
JOIN (VALUES ('library', 1, 'library'), ('unseen', 2, 'twins')) AS l (part, ordinal, label) ON l.part = p.part
WHERE p.scope = 'all' AND (p.policy_a = 'default' OR (p.part = 'library' AND p.policy_a IN ('linear', 'linear_rescaled', 'measured')))
    AND p.policy_b IN ('base', 'own_task', 'uniform')
ORDER BY l.ordinal, report.policy_order(p.policy_a), ordinal
\crosstabview 1 2 3 4

-- table: unfamiliar
SELECT coalesce(a.task, 'mean') AS task, l.label, CASE a.scope WHEN 'all' THEN report.percent(a.accuracy, a.low, a.high)
    ELSE report.share(a.accuracy) END AS cell, l.ordinal
FROM report.accuracy AS a
JOIN (VALUES
    (1, 'unfamiliar', 'base', '`base`'), (2, 'unfamiliar', 'default', '`default`'), (3, 'unfamiliar', 'measured', '`measured`'),
    (4, 'unfamiliar_16', 'measured', 'with 16 labelled rows'), (5, 'unfamiliar_64', 'measured', 'with 64')
) AS l (ordinal, part, policy, label) ON l.part = a.part AND l.policy = a.policy
WHERE a.scope IN ('task', 'all') ORDER BY a.task NULLS LAST, l.ordinal
\crosstabview task label cell ordinal

-- table: families
SELECT format('`%s`', a.policy) AS policy, report.percent(a.accuracy, a.low, a.high) AS "right, %",
    CASE WHEN a.policy <> 'base' THEN report.points(b.difference, b.low, b.high) END AS "minus `base`",
    CASE WHEN a.policy <> 'uniform' THEN report.points(u.difference, u.low, u.high) END AS "minus `uniform`",
    (
        SELECT coalesce(string_agg(p.task, ', ' ORDER BY p.task), 'none') FROM report.pair AS p
        WHERE p.part = a.part AND p.scope = 'task' AND p.policy_a = a.policy AND p.policy_b = 'base' AND p.difference < 0 AND p.p < 0.05
    ) AS "significantly below `base`", a.n AS rows
FROM report.accuracy AS a
LEFT JOIN report.pair AS b ON b.part = a.part AND b.scope = 'all' AND b.policy_a = a.policy AND b.policy_b = 'base'
LEFT JOIN report.pair AS u ON u.part = a.part AND u.scope = 'all' AND u.policy_a = a.policy AND u.policy_b = 'uniform'
WHERE a.part = 'families' AND a.scope = 'all' ORDER BY report.policy_order(a.policy);

-- table: goals
SELECT g.goal, g.measured, to_char(g.n, 'FM9,999') AS rows, g.reached FROM report.goal AS g ORDER BY g.ordinal;

-- table: routing
-- Questions written by hand are of no task of the library.
SELECT l.label AS prompts, nullif(round(100 * r.true_first, 1), 0) AS "true task first, %",
    round(100 * r.family_first, 1) AS "its family first, %", nullif(round(100 * r.true_inside, 1), 0) AS "true task in the mix, %",
    round(r.adapters, 2) AS "adapters a job", to_char(r.n, 'FM9,999') AS rows
FROM report.routing AS r
JOIN (VALUES
    (1, 'routing', 'the catalogue''s template'), (2, 'routing_bare', 'bare'), (3, 'routing_held_out', 'held-out phrasings'),
    (4, 'handwritten', 'written by hand')
) AS l (ordinal, part, label) ON l.part = r.part
WHERE r.scope = 'all' ORDER BY l.ordinal;

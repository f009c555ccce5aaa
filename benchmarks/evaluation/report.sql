-- Loads the raw results of an evaluation into a schema of their own, and computes its statistics. In the repository's root:
--     loracomp db psql -f benchmarks/evaluation/report.sql
-- The queries in tables.sql read this schema. loracomp_lab.accuracy computes the same statistics for an evaluation whose jobs are still in
-- the database.
DROP SCHEMA IF EXISTS report CASCADE;
CREATE SCHEMA report;

CREATE TABLE report.measured (
    part text NOT NULL,
    task text NOT NULL,
    family text NOT NULL,
    policy text NOT NULL,
    router text NOT NULL,
    is_mix integer NOT NULL,
    row integer NOT NULL,
    excluded text,
    expected_index integer,
    choice_index integer,
    correct integer,
    nearest_task text,
    nearest_similarity double precision,
    top_task text,
    mix text,
    adapters integer,
    entropy_bits double precision,
    norm_ratio double precision,
    cosine double precision,
    expected_gain double precision,
    log_probability double precision,
    device text,
    digest text NOT NULL,
    PRIMARY KEY (part, task, policy, row)
);
COMMENT ON TABLE report.measured IS 'A row for each job, as in benchmarks/evaluation/rows.';
COMMENT ON COLUMN report.measured.part IS 'Part of the evaluation, as in benchmarks/evaluation/plan.py.';
COMMENT ON COLUMN report.measured.task IS 'Task of the row.';
COMMENT ON COLUMN report.measured.router IS 'retrieval, or base or own_task, which are controls.';
COMMENT ON COLUMN report.measured.is_mix IS '1 if the policy mixes retrieved adapters by similarity; these policies are compared with controls.';
COMMENT ON COLUMN report.measured.row IS 'Number of the row in validation.jsonl, from 0.';
COMMENT ON COLUMN report.measured.excluded IS 'Tasks whose adapters and examples the job excluded.';
COMMENT ON COLUMN report.measured.expected_index IS 'Index of the right choice, from 1.';
COMMENT ON COLUMN report.measured.choice_index IS
'Index of the choice that was the answer, from 1; null if the job failed or is of kind route.';
COMMENT ON COLUMN report.measured.correct IS '1 if the answer is right, otherwise 0; null if there is no answer.';
COMMENT ON COLUMN report.measured.nearest_task IS 'Task of the most similar train example.';
COMMENT ON COLUMN report.measured.nearest_similarity IS 'Cosine similarity of that example.';
COMMENT ON COLUMN report.measured.top_task IS 'Most probable task.';
COMMENT ON COLUMN report.measured.mix IS 'The composed adapters with their weights; each adapter is named by its task.';
COMMENT ON COLUMN report.measured.entropy_bits IS 'Entropy of the tasks'' probabilities, in bits.';
COMMENT ON COLUMN report.measured.norm_ratio IS 'Norm of the merged change, divided by the norm of the exact weighted sum.';
COMMENT ON COLUMN report.measured.cosine IS 'Cosine between the merged change and the exact weighted sum.';
COMMENT ON COLUMN report.measured.expected_gain IS 'Weighted mean of the expected gains of the mix''s adapters, in nats.';
COMMENT ON COLUMN report.measured.log_probability IS 'Log-probability of the right choice among all choices, in nats.';
COMMENT ON COLUMN report.measured.digest IS 'Digest of everything on which the answer depends: models, adapters, examples, settings, rows.';
\copy report.measured FROM PROGRAM 'find benchmarks/evaluation/rows -name ''*.csv.gz'' -exec gzip -cd ''{}'' + | sed /^part,/d' WITH (FORMAT csv)

ANALYZE report.measured;

-- The order of policies in the tables; other policies follow by name.
CREATE FUNCTION report.policy_order(policy text) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
SELECT coalesce(array_position(ARRAY[
    'base', 'own_task', 'nearest', 'default', 'linear', 'linear_rescaled',
    'ties', 'magnitude_prune', 'measured', 'measured_always', 'uniform', 'uniform_linear'
], policy), 9);
$$;

CREATE VIEW report.answer AS
SELECT m.part, m.task, m.family, m.policy, m.row, m.correct FROM report.measured AS m WHERE m.correct IS NOT NULL;

-- Of each task, with Wilson's interval; means of families and of all count every task alike, and their intervals are put
-- together from the tasks' own (Zou and Donner 2008).
CREATE TABLE report.accuracy AS
WITH by_task AS (
    SELECT
        a.part, a.family, a.task, a.policy, count(*) AS n, sum(a.correct) AS correct, avg(a.correct)::double precision AS accuracy
    FROM report.answer AS a GROUP BY a.part, a.family, a.task, a.policy
)
SELECT
    t.part,
    CASE WHEN t.task IS NOT NULL THEN 'task' WHEN t.family IS NOT NULL THEN 'family' ELSE 'all' END AS scope,
    t.family, t.task, t.policy, count(*) AS tasks, sum(t.n)::bigint AS n, avg(t.accuracy) AS accuracy,
    greatest(0, avg(t.accuracy) - sqrt(sum((t.accuracy - i.low) ^ 2)) / count(*)) AS low,
    least(1, avg(t.accuracy) + sqrt(sum((i.high - t.accuracy) ^ 2)) / count(*)) AS high
FROM by_task AS t CROSS JOIN LATERAL bi.wilson_interval(t.correct, t.n) AS i
GROUP BY t.part, t.policy, GROUPING SETS ((t.family, t.task), (t.family), ());

-- Two policies on the rows that both answered. Intervals: Agresti and Min (2005), of a mean from the sum of variances. p:
-- McNemar's exact test over the rows of all tasks together.
CREATE TABLE report.pair AS
WITH by_task AS (
    SELECT
        a.part, a.family, a.task, a.policy AS policy_a, b.policy AS policy_b, count(*) AS n,
        count(*) FILTER (WHERE a.correct > b.correct) AS only_a,
        count(*) FILTER (WHERE a.correct < b.correct) AS only_b
    FROM report.answer AS a
    INNER JOIN report.answer AS b ON b.part = a.part AND b.task = a.task AND b.row = a.row AND b.policy <> a.policy
    GROUP BY a.part, a.family, a.task, a.policy, b.policy
), by_scope AS (
    SELECT
        k.part, k.family, k.task, k.policy_a, k.policy_b,
        count(*) AS tasks,
        count(*) FILTER (WHERE k.only_a > k.only_b) AS ahead,
        count(*) FILTER (WHERE k.only_a = k.only_b) AS level,
        count(*) FILTER (WHERE k.only_a < k.only_b) AS behind,
        sum(k.n)::bigint AS n, sum(k.only_a)::bigint AS only_a, sum(k.only_b)::bigint AS only_b,
        avg((k.only_a - k.only_b)::double precision / k.n) AS difference,
        avg((k.only_a - k.only_b)::double precision / (k.n + 2)) AS centre,
        sqrt(sum((k.only_a + k.only_b + 1 - (k.only_a - k.only_b)::double precision ^ 2 / (k.n + 2)) / (k.n + 2) ^ 2))
            / count(*) AS standard_error
    FROM by_task AS k
    GROUP BY k.part, k.policy_a, k.policy_b, GROUPING SETS ((k.family, k.task), (k.family), ())
)
SELECT
    s.part,
    CASE WHEN s.task IS NOT NULL THEN 'task' WHEN s.family IS NOT NULL THEN 'family' ELSE 'all' END AS scope,
    s.family, s.task, s.policy_a, s.policy_b, s.tasks, s.ahead, s.level, s.behind, s.n, s.only_a, s.only_b, s.difference,
    greatest(-1, s.centre - 1.959964 * s.standard_error) AS low,
    least(1, s.centre + 1.959964 * s.standard_error) AS high,
    loracomp.sign_test_p(s.only_a, s.only_b) AS p
FROM by_scope AS s;

-- How well retrieval found the rows' own task and family: from jobs of kind route, with the catalogue's
-- template, bare, and in phrasings that were held out; and from the answers to questions written by hand.
CREATE VIEW report.routing AS
WITH by_task AS (
    SELECT
        m.part, m.family, m.task, count(*) AS n,
        avg((m.top_task = m.task)::integer) AS true_first,
        avg((f.family = m.family)::integer) AS family_first,
        avg((position(' ' || m.task || ' ' IN ' ' || coalesce(m.mix, '')) > 0)::integer) AS true_inside,
        avg(m.adapters) AS adapters,
        avg(m.entropy_bits) AS entropy_bits,
        avg((m.nearest_similarity >= 0.95)::integer) AS near_duplicates
    FROM report.measured AS m
    LEFT JOIN (SELECT DISTINCT task, family FROM report.measured) AS f ON f.task = m.top_task
    WHERE m.part LIKE 'routing%' OR (m.part = 'handwritten' AND m.policy = 'default')
    GROUP BY m.part, m.family, m.task
)
SELECT
    k.part,
    CASE WHEN k.task IS NOT NULL THEN 'task' WHEN k.family IS NOT NULL THEN 'family' ELSE 'all' END AS scope,
    k.family, k.task, count(*) AS tasks, sum(k.n)::bigint AS n, avg(k.true_first) AS true_first,
    avg(k.family_first) AS family_first, avg(k.true_inside) AS true_inside, avg(k.adapters) AS adapters,
    avg(k.entropy_bits) AS entropy_bits, avg(k.near_duplicates) AS near_duplicates
FROM by_task AS k GROUP BY k.part, GROUPING SETS ((k.family, k.task), (k.family), ());

-- Shares, differences and intervals as the pages print them, in % and points.
CREATE FUNCTION report.signed(difference double precision) RETURNS text LANGUAGE sql IMMUTABLE AS $$
SELECT to_char(round((100 * difference)::numeric, 1), 'FMSG990.0');
$$;
CREATE FUNCTION report.share(share double precision) RETURNS text LANGUAGE sql IMMUTABLE AS $$
SELECT to_char(round((100 * share)::numeric, 1), 'FM990.0');
$$;
CREATE FUNCTION report.percent(accuracy double precision, low double precision, high double precision)
RETURNS text LANGUAGE sql IMMUTABLE AS $$
SELECT format('%s (%s to %s)', report.share(accuracy), round((100 * low)::numeric), round((100 * high)::numeric));
$$;
CREATE FUNCTION report.points(difference double precision, low double precision, high double precision)
RETURNS text LANGUAGE sql IMMUTABLE AS $$
SELECT format('%s (%s to %s)', report.signed(difference), report.signed(low), report.signed(high));
$$;

-- What was to be reached: differences in points, shares in %.
CREATE VIEW report.goal AS
WITH goal (ordinal, goal, measured, n, reached) AS (
    SELECT g.ordinal, format('%s: `%s` minus `%s`, %s points', g.rows, g.policy_a, g.policy_b, to_char(g.points, 'FMSG990.0')),
        report.points(p.difference, p.low, p.high), p.n, 100 * p.difference >= g.points
    FROM (VALUES
        (1, 'families kept out', 'families', 'default', 'base', 8.0),
        (2, 'families kept out', 'families', 'default', 'uniform', 1.0),
        (4, 'unfamiliar', 'unfamiliar', 'default', 'base', 5.0),
        (6, 'unfamiliar, 16 labelled', 'unfamiliar_16', 'measured', 'base', 15.0),
        (7, 'unfamiliar, 64 labelled', 'unfamiliar_64', 'measured', 'base', 24.0),
        (10, 'by hand', 'handwritten', 'default', 'nearest', 0.0),
        (12, 'library', 'library', 'default', 'own_task', 1.5),
        (15, 'library', 'library', 'linear_rescaled', 'default', -0.5),
        (16, 'by hand', 'handwritten', 'linear_rescaled', 'base', 3.0)
    ) AS g (ordinal, rows, part, policy_a, policy_b, points)
    JOIN report.pair AS p USING (part, policy_a, policy_b)
    WHERE p.scope = 'all'
    UNION ALL
    SELECT g.ordinal, format('%s: no task of `%s` significantly below `base`', g.rows, g.policy),
        coalesce(string_agg(p.task, ', ' ORDER BY p.task) FILTER (WHERE p.difference < 0 AND p.p < 0.05), 'none'), sum(p.n),
        count(*) FILTER (WHERE p.difference < 0 AND p.p < 0.05) = 0
    FROM (VALUES
        (3, 'families kept out', 'families', 'default'), (5, 'unfamiliar', 'unfamiliar', 'default'),
        (8, 'unfamiliar, 64 labelled', 'unfamiliar_64', 'measured')
    ) AS g (ordinal, rows, part, policy)
    JOIN report.pair AS p ON p.part = g.part AND p.policy_a = g.policy AND p.policy_b = 'base' AND p.scope = 'task'
    GROUP BY g.ordinal, g.rows, g.policy
    UNION ALL
    SELECT g.ordinal, format('%s: `%s`, %s %%', g.rows, a.policy, g.share), report.percent(a.accuracy, a.low, a.high), a.n,
        100 * a.accuracy >= g.share
    FROM (VALUES
        (9, 'by hand', 'handwritten', NULL, 62), (13, 'PIQA', 'library', 'piqa', 71), (14, 'RTE', 'library', 'rte', 78)
    ) AS g (ordinal, rows, part, task, share)
    JOIN report.accuracy AS a ON a.part = g.part AND a.policy = 'default' AND a.task IS NOT DISTINCT FROM g.task
        AND a.scope = CASE WHEN g.task IS NULL THEN 'all' ELSE 'task' END
    UNION ALL
    SELECT 11, 'held-out phrasings: `own_task` minus own template, -3.0 points', report.signed(h.accuracy - l.accuracy), h.n,
        h.accuracy - l.accuracy >= -0.03
    FROM report.accuracy AS h
    JOIN report.accuracy AS l ON (l.part, l.scope, l.policy) = ('library', 'all', h.policy)
    WHERE (h.part, h.scope, h.policy) = ('held_out', 'all', 'own_task')
)
SELECT g.ordinal, g.goal, g.measured, g.n, CASE WHEN g.reached THEN 'yes' ELSE 'no' END AS reached FROM goal AS g;

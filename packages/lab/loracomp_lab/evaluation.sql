-- name: tasks_without_rows
-- Rows with an embedding don't count, because a job made from one would retrieve itself.
SELECT t.name
FROM pg_catalog.unnest(%(tasks)s::text[]) WITH ORDINALITY AS t (name, place)
WHERE NOT EXISTS (
    SELECT FROM loracomp.example AS e JOIN loracomp.task AS k ON k.id = e.task_id
    WHERE k.name = t.name AND e.split = %(split)s AND e.prompt IS NOT NULL AND e.label IS NOT NULL
        AND NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.example_id = e.id)
)
ORDER BY t.place

-- name: submit_rows
-- Inserts a job for each drawn row and policy that has none; the first n rows are always among the first n + 1. The idempotency key keeps
-- two calls at the same time from asking a row twice.
WITH drawn AS MATERIALIZED (
    SELECT
        k.name AS task, t.place AS task_place, e.id AS example_id, e.prompt, e.choices, e.label,
        row_number() OVER (
            PARTITION BY k.id ORDER BY sha256(e.content_hash || int4send(%(seed)s::integer)), e.id
        ) AS place
    FROM pg_catalog.unnest(%(tasks)s::text[]) WITH ORDINALITY AS t (name, place)
    JOIN loracomp.task AS k ON k.name = t.name
    JOIN loracomp.example AS e ON e.task_id = k.id
    WHERE e.split = %(split)s AND e.prompt IS NOT NULL AND e.label IS NOT NULL
        AND NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.example_id = e.id)
),
asked AS MATERIALIZED (
    SELECT d.*, p.name AS policy, p.place AS policy_place, o.router
    FROM drawn AS d
    CROSS JOIN pg_catalog.unnest(%(policies)s::text[]) WITH ORDINALITY AS p (name, place)
    LEFT JOIN loracomp.policy AS o ON o.name = p.name
    WHERE d.place <= coalesce(%(rows_a_task)s::integer, d.place)
),
-- A task, and the tasks whose active adapters were trained on its rows.
saw AS MATERIALIZED (
    SELECT t.name AS task, (
        SELECT pg_catalog.array_agg(k.name ORDER BY k.name) FROM loracomp.task AS k
        WHERE k.name = t.name OR EXISTS (
            SELECT FROM loracomp.adapter AS a JOIN loracomp.base_model AS b ON b.id = a.base_model_id
            WHERE a.task_id = k.id AND a.status = 'active' AND b.name = %(base_model)s
                AND a.training -> 'tasks_seen' ? t.name
        )
    ) AS names
    FROM pg_catalog.unnest(%(tasks)s::text[]) AS t (name)
),
added AS (
    INSERT INTO loracomp.job AS j (
        kind, prompt, choices, policy, base_model, exclude_tasks, task, expected, example_id, tags, priority, idempotency_key
    )
    SELECT
        %(kind)s, a.prompt, a.choices, a.policy, %(base_model)s,
        -- Without its own task a policy with router own_task would be the base model alone.
        CASE WHEN %(exclude_own)s AND a.router <> 'own_task' THEN s.names ELSE '{}' END,
        a.task, a.label, a.example_id, %(tags)s::jsonb, -1,
        pg_catalog.format('evaluation %%s: example %%s under %%s', %(name)s::text, a.example_id, a.policy)
    FROM asked AS a JOIN saw AS s ON s.task = a.task
    WHERE NOT EXISTS (
        SELECT FROM loracomp.job AS j
        WHERE j.example_id = a.example_id AND j.policy = a.policy AND j.tags ->> 'evaluation' = %(name)s
    )
    ORDER BY a.task_place, a.policy_place, a.place
    ON CONFLICT ON CONSTRAINT idempotency_key_was_used_before DO NOTHING
    RETURNING j.task, j.policy
)
SELECT
    a.task, a.policy, count(*) AS jobs,
    (SELECT count(*) FROM added AS d WHERE (d.task, d.policy) = (a.task, a.policy)) AS added
FROM asked AS a
GROUP BY a.task, a.policy, a.task_place, a.policy_place
ORDER BY a.task_place, a.policy_place

-- name: evaluation
SELECT
    j.tags ->> 'evaluation' AS evaluation, j.tags ->> 'split' AS split, j.kind, j.base_model,
    (j.tags -> 'exclude_own')::boolean AS exclude_own, (j.tags -> 'seed')::integer AS seed,
    count(*) AS jobs,
    count(*) FILTER (WHERE j.status = 'queued') AS queued,
    count(*) FILTER (WHERE j.status = 'running') AS running,
    count(*) FILTER (WHERE j.status = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE j.status = 'failed') AS failed,
    count(*) FILTER (WHERE j.status = 'cancelled') AS cancelled
FROM loracomp.job AS j
WHERE j.example_id IS NOT NULL AND j.tags ->> 'evaluation' = %(name)s
GROUP BY 1, 2, 3, 4, 5, 6

-- name: lacking_rows
-- Calls with other policies, tasks or numbers of rows add to an evaluation, so that its policies may have been asked different rows.
WITH asked AS MATERIALIZED (
    SELECT DISTINCT j.task, j.policy, j.example_id
    FROM loracomp.job AS j
    WHERE j.example_id IS NOT NULL AND j.tags ->> 'evaluation' = %(name)s
)
SELECT t.task, p.policy, count(a.example_id) AS asked, t.of
FROM (SELECT task, count(DISTINCT example_id) AS of FROM asked GROUP BY task) AS t
CROSS JOIN (SELECT DISTINCT policy FROM asked) AS p
LEFT JOIN asked AS a ON (a.task, a.policy) = (t.task, p.policy)
GROUP BY t.task, p.policy, t.of
HAVING count(a.example_id) < t.of
ORDER BY t.task, p.policy

-- name: evaluation_outcomes
SELECT j.task, t.family, j.policy, j.example_id, j.is_correct AS is_right
FROM loracomp.job AS j JOIN loracomp.task AS t ON t.name = j.task
WHERE j.example_id IS NOT NULL AND j.tags ->> 'evaluation' = %(name)s AND j.kind = 'predict' AND j.finished_at IS NOT NULL

-- name: evaluation_rows
SELECT e.source_ref, pg_catalog.array_position(j.choices, j.expected) AS expected_index, j.example_id, p.*
FROM loracomp.job AS j
JOIN bi.prediction AS p ON p.job_id = j.id
LEFT JOIN loracomp.example AS e ON e.id = j.example_id
WHERE j.example_id IS NOT NULL AND j.tags ->> 'evaluation' = %(name)s
ORDER BY j.task, j.example_id, j.policy, j.id

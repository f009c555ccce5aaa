-- Reads only, with its owner's rights, one evaluation after the other. Of policies that retrieve: what controls composed
-- says nothing about routing.
CREATE VIEW bi.routing_quality AS
SELECT
    e.name AS evaluation,
    CASE WHEN q.own_task IS NOT NULL THEN 'task' WHEN q.family IS NOT NULL THEN 'family' ELSE 'all' END AS scope,
    q.family,
    coalesce(m.labels ->> q.own_task, q.own_task) AS own_task,
    q.policy,
    q.tasks,
    q.n,
    q.true_first,
    q.family_first,
    q.true_inside,
    q.adapters,
    q.entropy AS entropy_bits,
    now() AS as_of
FROM loracomp.evaluation AS e
CROSS JOIN LATERAL (
    WITH routed AS NOT MATERIALIZED (
        SELECT
            t.family,
            j.task AS own_task,
            j.policy,
            CASE WHEN s.may_be_found THEN coalesce(p.tasks[1] = j.task, FALSE) END AS true_first,
            coalesce(f.family = t.family, FALSE) AS family_first,
            CASE
                WHEN s.may_be_found THEN coalesce(p.weights[array_position(p.tasks, j.task)] > 0, FALSE)
            END AS true_inside,
            cardinality(p.adapter_ids) AS adapters,
            (SELECT -sum(u.p * ln(u.p)) / ln(2) FROM unnest(p.probabilities) AS u (p) WHERE u.p > 0) AS entropy
        FROM loracomp.job AS j
        INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
        INNER JOIN loracomp.task AS t ON j.task = t.name
        LEFT JOIN loracomp.task AS f ON p.tasks[1] = f.name
        -- A task that was kept out, or never had an active adapter, can't be found.
        CROSS JOIN LATERAL (
            SELECT
                j.task <> ALL (j.exclude_tasks) AND (t.id, j.base_model) IN (
                    SELECT a.task_id, b.name
                    FROM loracomp.adapter AS a
                    INNER JOIN loracomp.base_model AS b ON a.base_model_id = b.id
                    WHERE a.status <> 'staged'
                ) AS may_be_found
        ) AS s
        WHERE j.evaluation = e.name AND p.policy_settings ->> 'router' = 'retrieval'
    ),

    by_task AS (
        SELECT
            r.family,
            r.own_task,
            r.policy,
            count(*) AS n,
            avg(r.true_first::integer)::double precision AS true_first,
            avg(r.family_first::integer)::double precision AS family_first,
            avg(r.true_inside::integer)::double precision AS true_inside,
            avg(r.adapters)::double precision AS adapters,
            avg(r.entropy) AS entropy
        FROM routed AS r
        GROUP BY r.family, r.own_task, r.policy
    )

    SELECT
        k.family,
        k.own_task,
        k.policy,
        count(*) AS tasks,
        sum(k.n)::bigint AS n,
        avg(k.true_first) AS true_first,
        avg(k.family_first) AS family_first,
        avg(k.true_inside) AS true_inside,
        avg(k.adapters) AS adapters,
        avg(k.entropy) AS entropy
    FROM by_task AS k
    GROUP BY k.policy, GROUPING SETS ((k.family, k.own_task), (k.family), ())
) AS q
CROSS JOIN loracomp.task_mask AS m;
COMMENT ON VIEW bi.routing_quality IS
'How well retrieval found the task that an evaluation''s rows come from, by policy: of each task, and means over tasks.';
COMMENT ON COLUMN bi.routing_quality.evaluation IS 'Named set of jobs.';
COMMENT ON COLUMN bi.routing_quality.scope IS
'task, family or all: filter by it, for the rows of one scope are the means of another''s.';
COMMENT ON COLUMN bi.routing_quality.family IS 'Kind of task; null where scope is all.';
COMMENT ON COLUMN bi.routing_quality.own_task IS 'Task that the rows come from; null but where scope is task.';
COMMENT ON COLUMN bi.routing_quality.policy IS 'Name of the settings of routing.';
COMMENT ON COLUMN bi.routing_quality.tasks IS 'Tasks that the means are over, each counting alike.';
COMMENT ON COLUMN bi.routing_quality.n IS 'Jobs that were routed.';
COMMENT ON COLUMN bi.routing_quality.true_first IS
'Share of them, 0 to 1, whose most probable task was their own; null where own tasks were kept out or have no adapter.';
COMMENT ON COLUMN bi.routing_quality.family_first IS 'Share whose most probable task was of their own task''s family.';
COMMENT ON COLUMN bi.routing_quality.true_inside IS
'Share whose own task had a weight in the mix; null where own tasks were kept out or have no adapter.';
COMMENT ON COLUMN bi.routing_quality.adapters IS 'Adapters a job.';
COMMENT ON COLUMN bi.routing_quality.entropy_bits IS
'Entropy of the tasks'' probabilities: 0 is certain of one, 1 as unsure as between two alike, 2 as among four.';
COMMENT ON COLUMN bi.routing_quality.as_of IS 'Up to when it counts: now, for it is live.';

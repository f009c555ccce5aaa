-- Reads only, with its owner's rights, one evaluation after the other. Only policies with retrieval, because other routers
-- don't choose tasks by the job.
CREATE VIEW bi.routing_quality AS
SELECT
    e.name AS evaluation,
    CASE WHEN q.own_task IS NOT NULL THEN 'task' WHEN q.family IS NOT NULL THEN 'family' ELSE 'all' END AS scope,
    q.family,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> q.own_task, q.own_task) AS own_task,
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
        -- Routing can't find a task that was excluded or has no active adapter.
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
) AS q;
COMMENT ON VIEW bi.routing_quality IS
'How often retrieval found the task of an evaluation''s rows, by policy: for each task, and means over tasks.';
COMMENT ON COLUMN bi.routing_quality.scope IS
'task, family or all: filter by this column, because rows of one scope are means over rows of another.';
COMMENT ON COLUMN bi.routing_quality.family IS 'Family of the tasks, such as nli; null if scope is all.';
COMMENT ON COLUMN bi.routing_quality.own_task IS 'Task of the evaluated rows; null unless scope is task.';
COMMENT ON COLUMN bi.routing_quality.policy IS 'Name of the policy that routed the jobs.';
COMMENT ON COLUMN bi.routing_quality.tasks IS 'Number of tasks in the means; each has the same weight.';
COMMENT ON COLUMN bi.routing_quality.n IS 'Number of jobs that were routed.';
COMMENT ON COLUMN bi.routing_quality.true_first IS
'Share of the jobs, 0 to 1, whose most probable task was own_task; null if own tasks were excluded or have no adapter.';
COMMENT ON COLUMN bi.routing_quality.family_first IS 'Share of the jobs whose most probable task is of the same family as own_task.';
COMMENT ON COLUMN bi.routing_quality.true_inside IS
'Share of the jobs in which own_task had a weight above 0; null if own tasks were excluded or have no adapter.';
COMMENT ON COLUMN bi.routing_quality.adapters IS 'Mean number of adapters for each job.';
COMMENT ON COLUMN bi.routing_quality.entropy_bits IS
'Mean entropy of the task probabilities in bits: 0: one task is certain; 1: two equally probable tasks; 2: four.';
COMMENT ON COLUMN bi.routing_quality.as_of IS 'Time of the data: the time of the query, because the view is live.';

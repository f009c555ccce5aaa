-- Examples that were retrieved for answered jobs.
--   retrieved_example_wide      retrieved_example joined with its dimensions, for tools that can't join
--     retrieved_example         the fact table

-- Reads only, with its owner's rights.
CREATE VIEW bi.retrieved_example AS
WITH mask AS MATERIALIZED (SELECT m.labels FROM loracomp.task_mask AS m)

SELECT
    p.job_id,
    x.place::integer AS place,
    x.example_id,
    coalesce((SELECT m.labels FROM mask AS m) ->> x.task, x.task) AS task,
    x.similarity,
    p.policy_settings ->> 'name' AS policy,
    p.base_model,
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    p.created_at AS finished_at,
    now() AS as_of
FROM loracomp.prediction AS p
CROSS JOIN LATERAL unnest(p.example_ids, p.example_tasks, p.similarities)
WITH ORDINALITY AS x (example_id, task, similarity, place);
COMMENT ON VIEW bi.retrieved_example IS
'Fact: a row for every train example retrieved for a job: some 30 rows for each job, so filter by job_id or aggregate.';
COMMENT ON COLUMN bi.retrieved_example.job_id IS 'Id of the job; joins with bi.prediction.';
COMMENT ON COLUMN bi.retrieved_example.place IS 'Rank of the example by similarity; 1 is the most similar.';
COMMENT ON COLUMN bi.retrieved_example.example_id IS 'Id of the example.';
COMMENT ON COLUMN bi.retrieved_example.task IS 'Task that the example belongs to.';
COMMENT ON COLUMN bi.retrieved_example.similarity IS 'Cosine similarity of the example to the job, -1 to 1.';
COMMENT ON COLUMN bi.retrieved_example.policy IS 'Name of the policy: the settings of routing and merging.';
COMMENT ON COLUMN bi.retrieved_example.day IS 'Day in UTC on which the job was answered; joins with bi.dim_date.';
COMMENT ON COLUMN bi.retrieved_example.finished_at IS 'When the job was answered.';
COMMENT ON COLUMN bi.retrieved_example.as_of IS 'Time of the data: the time of the query, because the view is live.';

-- Reads only, with its owner's rights. For tools that don't join.
CREATE VIEW bi.retrieved_example_wide AS
WITH mask AS MATERIALIZED (SELECT m.labels, m.hides FROM loracomp.task_mask AS m)

SELECT
    p.job_id,
    x.place,
    x.example_id,
    x.task,
    t.family,
    x.similarity,
    j.task = x.stored_task AS is_of_own_task,
    coalesce((SELECT m.labels FROM mask AS m) ->> j.task, j.task) AS own_task,
    p.policy_settings ->> 'name' AS policy,
    p.base_model,
    j.evaluation,
    j.submitted_by::text AS submitted_by,
    j.is_correct,
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    p.created_at AS finished_at,
    now() AS as_of
FROM loracomp.prediction AS p
LEFT JOIN loracomp.job AS j ON p.job_id = j.id
-- It does not read bi.retrieved_example, which would read predictions twice and mask each name twice.
CROSS JOIN LATERAL (
    SELECT
        generate_subscripts(p.example_ids, 1) AS place,
        unnest(p.example_ids) AS example_id,
        unnest(p.example_tasks) AS stored_task,
        unnest(loracomp.masked_tasks(
            p.example_tasks,
            (SELECT m.hides FROM mask AS m),
            (SELECT m.labels FROM mask AS m)
        )) AS task,
        unnest(p.similarities) AS similarity
) AS x
LEFT JOIN bi.dim_task AS t ON x.task = t.task;
COMMENT ON VIEW bi.retrieved_example_wide IS
'bi.retrieved_example joined with its dimensions and its job. Some 30 rows for each job: filter by job_id or aggregate.';
COMMENT ON COLUMN bi.retrieved_example_wide.job_id IS 'Id of the job.';
COMMENT ON COLUMN bi.retrieved_example_wide.place IS 'Rank of the example by similarity; 1 is the most similar.';
COMMENT ON COLUMN bi.retrieved_example_wide.example_id IS 'Id of the example.';
COMMENT ON COLUMN bi.retrieved_example_wide.task IS 'Task that the example belongs to.';
COMMENT ON COLUMN bi.retrieved_example_wide.similarity IS 'Cosine similarity of the example to the job, -1 to 1.';
COMMENT ON COLUMN bi.retrieved_example_wide.is_of_own_task IS
'Whether the example''s task is own_task; only known for evaluations.';
COMMENT ON COLUMN bi.retrieved_example_wide.own_task IS 'Task of the example that the job was made from; only known for evaluations.';
COMMENT ON COLUMN bi.retrieved_example_wide.policy IS 'Name of the policy: the settings of routing and merging.';
COMMENT ON COLUMN bi.retrieved_example_wide.submitted_by IS 'Database role that submitted the job.';
COMMENT ON COLUMN bi.retrieved_example_wide.day IS 'Day in UTC on which the job was answered.';
COMMENT ON COLUMN bi.retrieved_example_wide.finished_at IS 'When the job was answered.';
COMMENT ON COLUMN bi.retrieved_example_wide.as_of IS 'Time of the data: the time of the query, because the view is live.';

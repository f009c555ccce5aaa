-- Examples that answers retrieved.
--   retrieved_example_wide      with what the dimensions say, for tools that don't join
--     retrieved_example         the fact

-- Reads only, with its owner's rights.
CREATE VIEW bi.retrieved_example AS
SELECT
    p.job_id,
    x.place::integer AS place,
    x.example_id,
    coalesce(m.labels ->> x.task, x.task) AS task,
    x.similarity,
    p.policy_settings ->> 'name' AS policy,
    p.base_model,
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    p.created_at AS finished_at,
    now() AS as_of
FROM loracomp.prediction AS p
CROSS JOIN loracomp.task_mask AS m
CROSS JOIN LATERAL unnest(p.example_ids, p.example_tasks, p.similarities)
WITH ORDINALITY AS x (example_id, task, similarity, place);
COMMENT ON VIEW bi.retrieved_example IS
'Fact: a row for every training example that an answer retrieved. Some 30 rows a job: filter by job_id, or sum up.';
COMMENT ON COLUMN bi.retrieved_example.job_id IS 'Number of the job; joins with bi.prediction.';
COMMENT ON COLUMN bi.retrieved_example.place IS '1 is the most similar example of the job.';
COMMENT ON COLUMN bi.retrieved_example.example_id IS 'Number of the example.';
COMMENT ON COLUMN bi.retrieved_example.task IS 'Task that it is an example of.';
COMMENT ON COLUMN bi.retrieved_example.similarity IS 'Its cosine similarity to the job''s text, -1 to 1.';
COMMENT ON COLUMN bi.retrieved_example.policy IS 'Name of the settings of routing and merging.';
COMMENT ON COLUMN bi.retrieved_example.base_model IS 'Frozen language model that answered.';
COMMENT ON COLUMN bi.retrieved_example.day IS 'Day of the answer, in UTC; joins with bi.dim_date.';
COMMENT ON COLUMN bi.retrieved_example.finished_at IS 'When the job was answered.';
COMMENT ON COLUMN bi.retrieved_example.as_of IS 'Up to when it counts: now, for it is live.';

-- Reads only, with its owner's rights. For tools that don't join.
CREATE VIEW bi.retrieved_example_wide AS
SELECT
    p.job_id,
    x.place,
    x.example_id,
    x.task,
    t.family,
    x.similarity,
    j.task = x.stored_task AS is_of_own_task,
    coalesce(m.labels ->> j.task, j.task) AS own_task,
    p.policy_settings ->> 'name' AS policy,
    p.base_model,
    j.evaluation,
    j.submitted_by::text AS submitted_by,
    j.is_correct,
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    p.created_at AS finished_at,
    now() AS as_of
FROM loracomp.prediction AS p
CROSS JOIN loracomp.task_mask AS m
LEFT JOIN loracomp.job AS j ON p.job_id = j.id
-- Not bi.retrieved_example: it would be a second reading of predictions, and each name would be masked twice.
CROSS JOIN LATERAL (
    SELECT
        generate_subscripts(p.example_ids, 1) AS place,
        unnest(p.example_ids) AS example_id,
        unnest(p.example_tasks) AS stored_task,
        unnest(loracomp.masked_tasks(p.example_tasks, m.labels)) AS task,
        unnest(p.similarities) AS similarity
) AS x
LEFT JOIN bi.dim_task AS t ON x.task = t.task;
COMMENT ON VIEW bi.retrieved_example_wide IS
'bi.retrieved_example with what its dimensions and its job say. Some 30 rows a job: filter by job_id, or sum up.';
COMMENT ON COLUMN bi.retrieved_example_wide.job_id IS 'Number of the job.';
COMMENT ON COLUMN bi.retrieved_example_wide.place IS '1 is the most similar example of the job.';
COMMENT ON COLUMN bi.retrieved_example_wide.example_id IS 'Number of the example.';
COMMENT ON COLUMN bi.retrieved_example_wide.task IS 'Task that it is an example of.';
COMMENT ON COLUMN bi.retrieved_example_wide.family IS 'Kind of that task.';
COMMENT ON COLUMN bi.retrieved_example_wide.similarity IS 'Its cosine similarity to the job''s text, -1 to 1.';
COMMENT ON COLUMN bi.retrieved_example_wide.is_of_own_task IS
'Whether it is of the task that the job comes from; known for evaluations only.';
COMMENT ON COLUMN bi.retrieved_example_wide.own_task IS 'Task that the job comes from; known for evaluations only.';
COMMENT ON COLUMN bi.retrieved_example_wide.policy IS 'Name of the settings of routing and merging.';
COMMENT ON COLUMN bi.retrieved_example_wide.base_model IS 'Frozen language model that answered.';
COMMENT ON COLUMN bi.retrieved_example_wide.evaluation IS 'Evaluation that the job belongs to; null for everyday jobs.';
COMMENT ON COLUMN bi.retrieved_example_wide.submitted_by IS 'Database role that submitted the job.';
COMMENT ON COLUMN bi.retrieved_example_wide.day IS 'Day of the answer, in UTC.';
COMMENT ON COLUMN bi.retrieved_example_wide.finished_at IS 'When the job was answered.';
COMMENT ON COLUMN bi.retrieved_example_wide.as_of IS 'Up to when it counts: now, for it is live.';

-- drop: DROP VIEW IF EXISTS bi.retrieved_example_wide
-- Reads only, with its owner's rights. For tools that don't join.
CREATE VIEW bi.retrieved_example_wide AS
SELECT
    r.job_id,
    r.place,
    r.example_id,
    r.task,
    t.family,
    r.similarity,
    j.task = x.example_tasks[r.place] AS is_of_own_task,
    coalesce(m.labels ->> j.task, j.task) AS own_task,
    r.policy,
    r.base_model,
    j.evaluation,
    j.submitted_by::text AS submitted_by,
    x.output = j.expected AS is_correct,
    r.day,
    r.finished_at
FROM bi.retrieved_example AS r
CROSS JOIN loracomp.task_mask AS m
LEFT JOIN loracomp.job AS j ON r.job_id = j.id
LEFT JOIN loracomp.prediction AS x ON r.job_id = x.job_id
LEFT JOIN bi.dim_task AS t ON r.task = t.task;
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
COMMENT ON COLUMN bi.retrieved_example_wide.is_correct IS
'Whether the answer was the expected one; null where none is known.';
COMMENT ON COLUMN bi.retrieved_example_wide.day IS 'Day of the answer, in UTC.';
COMMENT ON COLUMN bi.retrieved_example_wide.finished_at IS 'When the job was answered.';

-- drop: DROP VIEW IF EXISTS bi.retrieved_example
-- Reads only, with its owner's rights.
CREATE VIEW bi.retrieved_example AS
SELECT
    p.job_id,
    x.place::integer AS place,
    x.example_id,
    coalesce(m.labels ->> x.task, x.task) AS task,
    x.similarity,
    p.policy ->> 'name' AS policy,
    p.base_model,
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    p.created_at AS finished_at
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

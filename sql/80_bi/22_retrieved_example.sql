-- Examples that were retrieved for answered jobs.

-- Reads only, with its owner's rights.
CREATE VIEW bi.retrieved_example AS
SELECT
    p.job_id,
    x.ordinal::integer AS ordinal,
    x.example_id,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> x.task, x.task) AS task,
    x.similarity,
    p.policy_settings ->> 'name' AS policy,
    p.base_model,
    (p.created_at AT TIME ZONE 'UTC')::date AS day,
    p.created_at AS finished_at,
    now() AS as_of
FROM loracomp.prediction AS p
CROSS JOIN LATERAL unnest(p.example_ids, p.example_tasks, p.similarities)
WITH ORDINALITY AS x (example_id, task, similarity, ordinal);
COMMENT ON VIEW bi.retrieved_example IS
'Fact: a row for every train example retrieved for a job: some 30 rows for each job, so filter by job_id or aggregate.';
SELECT loracomp.copy_comments('bi.retrieved_example', 'loracomp.retrieved_example', 'bi.prediction');

-- Jobs that ended.

-- Reads only. Views of bi run with their owner's rights and contain no prompt, choice, answer, error text or tag: analysts see
-- numbers of all jobs and no texts. If the reader is not a member of a task's reader_role, a label replaces the task's name. Columns have
-- only simple types, because BI tools can't handle others.
CREATE VIEW bi.prediction AS
SELECT
    j.id AS job_id,
    j.status,
    j.kind,
    j.submitted_by::text AS submitted_by,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> j.task, j.task) AS own_task,
    j.expected IS NOT NULL AS has_expected,
    j.policy,
    p.policy_settings ->> 'router' AS router,
    p.policy_settings ->> 'strategy' AS strategy,
    j.base_model,
    j.priority,
    p.choice_index,
    j.is_correct,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> p.example_tasks[1], p.example_tasks[1]) AS nearest_task,
    p.similarities[1] AS nearest_similarity,
    coalesce((SELECT m.labels FROM loracomp.task_mask AS m) ->> p.tasks[1], p.tasks[1]) AS top_task,
    p.probabilities[1] AS top_probability,
    cardinality(p.adapter_ids) AS adapter_count,
    loracomp.composition_text(
        loracomp.masked_tasks(p.composed_tasks, (SELECT m.labels FROM loracomp.task_mask AS m)),
        p.adapter_weights
    ) AS composition,
    p.fallback,
    p.prompt_tokens,
    p.output_tokens,
    p.finish_reason,
    j.attempts,
    j.error_code,
    coalesce(p.worker, j.worker) AS worker,
    p.device,
    p.batch_size,
    loracomp.seconds_between(greatest(j.created_at, j.run_at), j.claimed_at) AS wait_s,
    loracomp.seconds_between(least(greatest(j.created_at, j.run_at), j.finished_at), j.finished_at) AS latency_s,
    j.created_at,
    j.finished_at,
    p.encoder,
    p.code_version,
    (j.finished_at AT TIME ZONE 'UTC')::date AS day,
    loracomp.compute_seconds(p.timings) AS compute_s,
    now() AS as_of
FROM loracomp.job AS j
LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id
WHERE j.finished_at IS NOT NULL AND j.kind <> 'measure';
COMMENT ON VIEW bi.prediction IS
'Fact: a row for every job that ended, except kind measure, with numbers and names about its answer, but no prompt and no answer.';
COMMENT ON COLUMN bi.prediction.job_id IS 'Number of the job, by which facts are joined.';
COMMENT ON COLUMN bi.prediction.status IS 'succeeded, failed or cancelled.';
COMMENT ON COLUMN bi.prediction.kind IS 'predict: the job was answered. route: only routing weights were computed.';
COMMENT ON COLUMN bi.prediction.submitted_by IS 'Database role that submitted the job.';
COMMENT ON COLUMN bi.prediction.own_task IS 'Task of the example that the job was made from; null for other jobs.';
COMMENT ON COLUMN bi.prediction.has_expected IS
'Whether the right answer was known when the job was submitted. Such jobs test policies, for example in an evaluation.';
COMMENT ON COLUMN bi.prediction.router IS 'How tasks were chosen: retrieval, or one of the controls own_task and base.';
COMMENT ON COLUMN bi.prediction.strategy IS 'How adapters were merged: linear, linear_rescaled, cat, ties or magnitude_prune.';
COMMENT ON COLUMN bi.prediction.base_model IS 'Base model that answered, or that the job asked for.';
COMMENT ON COLUMN bi.prediction.is_correct IS 'Whether the answer was right; null if the right answer is not known.';
COMMENT ON COLUMN bi.prediction.nearest_task IS 'Task of the train example that is most similar to the job.';
COMMENT ON COLUMN bi.prediction.nearest_similarity IS 'Cosine similarity of the most similar train example to the job, -1 to 1.';
COMMENT ON COLUMN bi.prediction.top_task IS 'The most probable task.';
COMMENT ON COLUMN bi.prediction.top_probability IS 'Probability of top_task, 0 to 1.';
COMMENT ON COLUMN bi.prediction.adapter_count IS 'Number of adapters that were composed; 0 if the base model answered alone.';
COMMENT ON COLUMN bi.prediction.composition IS 'Tasks and weights of the composed adapters, such as rte 0.62 + mnli 0.38.';
COMMENT ON COLUMN bi.prediction.error_code IS 'Short name of the error that ended the job, or cancelled.';
COMMENT ON COLUMN bi.prediction.worker IS 'Worker process that answered, or held the job last.';
COMMENT ON COLUMN bi.prediction.wait_s IS 'Seconds from the time when the job could start to the start of its last attempt.';
COMMENT ON COLUMN bi.prediction.latency_s IS 'Seconds from the time when the job could start to its end.';
COMMENT ON COLUMN bi.prediction.created_at IS 'When the job was submitted.';
COMMENT ON COLUMN bi.prediction.finished_at IS 'When the job ended.';
COMMENT ON COLUMN bi.prediction.day IS 'Day in UTC on which the job ended.';
COMMENT ON COLUMN bi.prediction.compute_s IS
'The job''s share of the seconds that its worker computed for it and for others, from encoding to prediction.';
COMMENT ON COLUMN bi.prediction.as_of IS 'Time of the data: the time of the query, because the view is live.';
SELECT loracomp.copy_comments('bi.prediction', 'loracomp.prediction', 'loracomp.job');

-- Jobs that ended.
--   prediction_wide             with what the dimensions say, for tools that don't join
--     prediction                the fact

-- Reads only. Views of bi run with their owner's rights and hold no prompt, choice, answer, error text or tag: an
-- analyst sees every job's numbers and nobody's words. Tasks whose reader_role the reader is no member of have a label. Plain
-- types only: BI tools stumble over the others.
CREATE VIEW bi.prediction AS
SELECT
    j.id AS job_id,
    j.status,
    j.kind,
    j.submitted_by::text AS submitted_by,
    j.evaluation,
    coalesce(m.labels ->> j.task, j.task) AS own_task,
    j.example_id,
    j.policy,
    p.policy_settings ->> 'router' AS router,
    p.policy_settings ->> 'strategy' AS strategy,
    coalesce(p.base_model, j.base_model) AS base_model,
    j.priority,
    cardinality(j.choices) AS choice_count,
    p.choice_index,
    j.is_correct,
    coalesce(m.labels ->> p.example_tasks[1], p.example_tasks[1]) AS nearest_task,
    p.similarities[1] AS nearest_similarity,
    cardinality(p.example_ids) AS example_count,
    coalesce(m.labels ->> p.tasks[1], p.tasks[1]) AS top_task,
    p.probabilities[1] AS top_probability,
    cardinality(p.adapter_ids) AS adapter_count,
    loracomp.composition_text(loracomp.masked_tasks(p.composed_tasks, m.labels), p.adapter_weights) AS composition,
    p.fallback,
    p.norm_ratio,
    p.cosine,
    p.prompt_tokens,
    p.output_tokens,
    j.attempts,
    j.error_code,
    coalesce(p.worker, j.worker) AS worker,
    p.device,
    p.batch_size,
    (p.timings ->> 'claim')::double precision AS claim_ms,
    (p.timings ->> 'encode')::double precision AS encode_ms,
    (p.timings ->> 'route')::double precision AS route_ms,
    (p.timings ->> 'load')::double precision AS load_ms,
    (p.timings ->> 'ready')::double precision AS ready_ms,
    (p.timings ->> 'compose')::double precision AS compose_ms,
    (p.timings ->> 'predict')::double precision AS predict_ms,
    (p.timings ->> 'record')::double precision AS record_ms,
    loracomp.seconds_between(greatest(j.created_at, j.run_at), j.claimed_at) AS wait_s,
    loracomp.seconds_between(least(greatest(j.created_at, j.run_at), j.finished_at), j.finished_at) AS latency_s,
    j.created_at,
    j.finished_at,
    p.encoder,
    p.code_version,
    (j.finished_at AT TIME ZONE 'UTC')::date AS day,
    loracomp.compute_seconds(p.timings, p.batch_size) AS compute_s,
    now() AS as_of
FROM loracomp.job AS j
CROSS JOIN loracomp.task_mask AS m
LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id
WHERE j.finished_at IS NOT NULL AND j.kind <> 'measure';
COMMENT ON VIEW bi.prediction IS
'Fact: a row for every job that ended, but those that measure adapters, with what is known of its answer in numbers and names. No prompts, no answers.';
COMMENT ON COLUMN bi.prediction.job_id IS 'Number of the job; joins with bi.composed_adapter.';
COMMENT ON COLUMN bi.prediction.status IS 'succeeded, failed or cancelled.';
COMMENT ON COLUMN bi.prediction.kind IS 'predict: an answer was asked. route: the weights alone.';
COMMENT ON COLUMN bi.prediction.submitted_by IS 'Database role that submitted the job.';
COMMENT ON COLUMN bi.prediction.evaluation IS 'Evaluation that the job belongs to; null for everyday jobs.';
COMMENT ON COLUMN bi.prediction.own_task IS 'Task that the job comes from; known for evaluations only.';
COMMENT ON COLUMN bi.prediction.example_id IS
'Number of the row that it asks: the same under each policy; known for evaluations only.';
COMMENT ON COLUMN bi.prediction.policy IS 'Name of the settings of routing and merging.';
COMMENT ON COLUMN bi.prediction.router IS 'How tasks were chosen: retrieval, or a control such as random or base.';
COMMENT ON COLUMN bi.prediction.strategy IS 'How adapters were merged: linear, cat, ties, magnitude_prune, dare_*.';
COMMENT ON COLUMN bi.prediction.base_model IS 'Frozen language model that answered, or was asked for.';
COMMENT ON COLUMN bi.prediction.choice_count IS 'Choices that were offered; null where text was generated.';
COMMENT ON COLUMN bi.prediction.choice_index IS '1-based place of the chosen one.';
COMMENT ON COLUMN bi.prediction.is_correct IS 'Whether the answer was the expected one; null where none is known.';
COMMENT ON COLUMN bi.prediction.nearest_task IS 'Task of the most similar training example.';
COMMENT ON COLUMN bi.prediction.nearest_similarity IS 'Its cosine similarity to the job''s text, -1 to 1.';
COMMENT ON COLUMN bi.prediction.example_count IS 'Training examples that were retrieved.';
COMMENT ON COLUMN bi.prediction.top_task IS 'Most probable task.';
COMMENT ON COLUMN bi.prediction.top_probability IS 'Its probability, 0 to 1.';
COMMENT ON COLUMN bi.prediction.adapter_count IS 'Adapters that were composed; 0 where the base model answered alone.';
COMMENT ON COLUMN bi.prediction.composition IS 'Their tasks and weights in short, such as rte 0.62 + mnli 0.38.';
COMMENT ON COLUMN bi.prediction.norm_ratio IS
'Size of the composed change over that of the exact weighted sum: 1 is as strong; null for the base model alone.';
COMMENT ON COLUMN bi.prediction.cosine IS
'Cosine between the composed change and the exact weighted sum: 1 is the same direction; null for the base model alone.';
COMMENT ON COLUMN bi.prediction.attempts IS 'Attempts that it took.';
COMMENT ON COLUMN bi.prediction.error_code IS 'Short name of the error that ended it, or cancelled.';
COMMENT ON COLUMN bi.prediction.worker IS 'Worker process that answered, or held the job last.';
COMMENT ON COLUMN bi.prediction.batch_size IS 'Jobs that were answered together.';
COMMENT ON COLUMN bi.prediction.claim_ms IS 'Milliseconds that claiming the batch took.';
COMMENT ON COLUMN bi.prediction.encode_ms IS 'Milliseconds that embedding the batch''s texts took.';
COMMENT ON COLUMN bi.prediction.route_ms IS 'Milliseconds that routing the batch took.';
COMMENT ON COLUMN bi.prediction.load_ms IS 'Milliseconds that bringing the batch''s adapters to the device took.';
COMMENT ON COLUMN bi.prediction.ready_ms IS 'Milliseconds that the prepared batch waited for the model.';
COMMENT ON COLUMN bi.prediction.compose_ms IS 'Milliseconds that composing the batch''s adapters took.';
COMMENT ON COLUMN bi.prediction.predict_ms IS 'Milliseconds that predicting the batch took.';
COMMENT ON COLUMN bi.prediction.record_ms IS 'Milliseconds from the batch''s answers until they were written.';
COMMENT ON COLUMN bi.prediction.wait_s IS 'Seconds from when it could start to its last attempt''s start.';
COMMENT ON COLUMN bi.prediction.latency_s IS 'Seconds from when it could start to its end.';
COMMENT ON COLUMN bi.prediction.created_at IS 'When it was submitted.';
COMMENT ON COLUMN bi.prediction.finished_at IS 'When it ended.';
COMMENT ON COLUMN bi.prediction.day IS 'Day on which it ended, in UTC; joins with bi.dim_date.';
COMMENT ON COLUMN bi.prediction.compute_s IS
'Its part of the seconds that its batch took to encode, route and predict.';
COMMENT ON COLUMN bi.prediction.as_of IS 'Up to when it counts: now, for it is live.';

-- Reads only, with its owner's rights. For tools that don't join.
CREATE VIEW bi.prediction_wide AS
SELECT
    p.job_id,
    p.status,
    p.kind,
    p.submitted_by,
    p.evaluation,
    p.own_task,
    p.example_id,
    p.policy,
    p.router,
    p.strategy,
    p.base_model,
    p.priority,
    p.choice_count,
    p.choice_index,
    p.is_correct,
    p.nearest_task,
    p.nearest_similarity,
    p.example_count,
    p.top_task,
    p.top_probability,
    p.adapter_count,
    p.composition,
    p.fallback,
    p.norm_ratio,
    p.cosine,
    p.prompt_tokens,
    p.output_tokens,
    p.attempts,
    p.error_code,
    p.worker,
    p.device,
    p.batch_size,
    p.claim_ms,
    p.encode_ms,
    p.route_ms,
    p.load_ms,
    p.ready_ms,
    p.compose_ms,
    p.predict_ms,
    p.record_ms,
    p.wait_s,
    p.latency_s,
    p.created_at,
    p.finished_at,
    p.encoder,
    p.code_version,
    p.day,
    p.compute_s,
    d.year,
    d.quarter,
    d.month,
    d.iso_week,
    d.weekday,
    d.is_weekend,
    o.family AS own_family,
    t.family AS top_family,
    (x.policy_settings -> 'k')::integer AS k,
    (x.policy_settings -> 'temperature')::double precision AS routing_temperature,
    (x.policy_settings -> 'top_p')::double precision AS routing_top_p,
    (x.policy_settings -> 'max_adapters')::integer AS max_adapters,
    x.policy_settings ->> 'weighting' AS weighting,
    (x.policy_settings -> 'density')::double precision AS density,
    b.architecture,
    b.parameter_count AS base_model_parameters,
    s.is_administrator AS submitter_is_administrator,
    p.as_of
FROM bi.prediction AS p
LEFT JOIN loracomp.prediction AS x ON p.job_id = x.job_id
LEFT JOIN bi.dim_date AS d ON p.day = d.day
LEFT JOIN bi.dim_task AS o ON p.own_task = o.task
LEFT JOIN bi.dim_task AS t ON p.top_task = t.task
LEFT JOIN bi.dim_base_model AS b ON p.base_model = b.base_model
LEFT JOIN bi.dim_submitter AS s ON p.submitted_by = s.submitted_by;
COMMENT ON VIEW bi.prediction_wide IS
'bi.prediction with what its dimensions say: one wide row a job, for tools that don''t join.';
COMMENT ON COLUMN bi.prediction_wide.year IS 'Year of that day.';
COMMENT ON COLUMN bi.prediction_wide.quarter IS 'Quarter, 1 to 4.';
COMMENT ON COLUMN bi.prediction_wide.month IS 'Month, 1 to 12.';
COMMENT ON COLUMN bi.prediction_wide.own_family IS
'Kind of the task that the job comes from; known for evaluations only.';
COMMENT ON COLUMN bi.prediction_wide.top_family IS 'Kind of the most probable task.';
COMMENT ON COLUMN bi.prediction_wide.k IS 'Training examples to retrieve, as the policy said then.';
COMMENT ON COLUMN bi.prediction_wide.routing_temperature IS 'Of the softmax over similarities, as the policy said then.';
COMMENT ON COLUMN bi.prediction_wide.routing_top_p IS 'Probability that the nucleus had to reach.';
COMMENT ON COLUMN bi.prediction_wide.max_adapters IS 'Adapters in the mix at most.';
COMMENT ON COLUMN bi.prediction_wide.weighting IS 'similarity: by probability. uniform: all alike.';
COMMENT ON COLUMN bi.prediction_wide.density IS 'Share of entries that ties, magnitude_prune and dare_* kept.';
COMMENT ON COLUMN bi.prediction_wide.submitter_is_administrator IS 'Whether its submitter may administer loracomp.';

-- drop: DROP VIEW IF EXISTS bi.prediction_wide
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
    (x.policy -> 'k')::integer AS k,
    (x.policy -> 'temperature')::double precision AS temperature,
    x.policy ->> 'aggregation' AS aggregation,
    x.policy ->> 'nucleus' AS nucleus,
    (x.policy -> 'top_p')::double precision AS top_p,
    (x.policy -> 'max_adapters')::integer AS max_adapters,
    x.policy ->> 'weighting' AS weighting,
    (x.policy -> 'density')::double precision AS density,
    b.architecture,
    b.parameter_count AS base_model_parameters,
    s.is_administrator AS submitter_is_administrator
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
COMMENT ON COLUMN bi.prediction_wide.temperature IS 'Of the softmax over similarities, as the policy said then.';
COMMENT ON COLUMN bi.prediction_wide.aggregation IS 'How examples'' shares became a task''s, as the policy said then.';
COMMENT ON COLUMN bi.prediction_wide.nucleus IS 'Whether the nucleus was taken over tasks or over examples.';
COMMENT ON COLUMN bi.prediction_wide.top_p IS 'Probability that the nucleus had to reach.';
COMMENT ON COLUMN bi.prediction_wide.max_adapters IS 'Adapters in the mix at most.';
COMMENT ON COLUMN bi.prediction_wide.weighting IS 'similarity: by probability. uniform: all alike.';
COMMENT ON COLUMN bi.prediction_wide.density IS 'Share of entries that ties, magnitude_prune and dare_* kept.';
COMMENT ON COLUMN bi.prediction_wide.submitter_is_administrator IS 'Whether its submitter may administer loracomp.';

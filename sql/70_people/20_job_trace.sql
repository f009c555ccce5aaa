-- Reads only. One row for each job with everything that is stored about it except its embedding; arrays are not unnested.
CREATE VIEW loracomp.job_trace WITH (security_invoker) AS
SELECT
    j.id AS job_id,
    j.status,
    j.kind,
    j.prompt,
    j.choices,
    j.descriptions,
    j.text_at,
    j.max_new_tokens,
    j.stop,
    p.output,
    p.choice_index,
    p.choice_scores,
    loracomp.confidence(p.choice_scores) AS confidence,
    j.task AS own_task,
    j.expected,
    j.is_correct AS correct,
    j.example_id,
    j.policy,
    p.policy_settings,
    p.example_ids,
    p.example_tasks,
    p.similarities,
    p.tasks,
    p.probabilities,
    p.weights,
    p.composed_tasks,
    p.adapter_ids,
    p.adapter_sha256,
    p.adapter_weights,
    p.fallback,
    p.composition_digest,
    p.prompt_tokens,
    p.output_tokens,
    p.timings,
    p.batch_size,
    coalesce(p.worker, j.worker) AS worker,
    p.device,
    j.attempts,
    j.error_code,
    j.error,
    coalesce(p.base_model, j.base_model) AS base_model,
    p.base_fingerprint,
    p.encoder,
    p.code_version,
    j.exclude_tasks,
    j.tasks AS given_tasks,
    j.weights AS given_weights,
    j.tags,
    j.idempotency_key,
    j.submitted_by,
    j.created_at,
    j.run_at,
    j.claimed_at,
    j.finished_at,
    j.temperature,
    j.top_p,
    CASE WHEN j.kind = 'predict' AND j.choices IS NULL AND j.temperature > 0 THEN coalesce(j.seed, j.id) END AS seed,
    p.searched_task_count,
    p.expected_gains,
    p.chat_template,
    j.system_text,
    p.finish_reason,
    p.calibration_examples,
    p.choice_biases,
    p.label_scores,
    p.score_weights,
    p.description_similarities
FROM loracomp.job AS j
LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id;
COMMENT ON VIEW loracomp.job_trace IS 'Each job with its prediction and trace, as stored. A job''s embedding is not stored.';
COMMENT ON COLUMN loracomp.job_trace.seed IS 'Seed of sampled text; null if nothing is sampled, because choices are scored or temperature is 0.';
COMMENT ON COLUMN loracomp.job_trace.worker IS 'Worker that answered, or held the job last.';
COMMENT ON COLUMN loracomp.job_trace.base_model IS 'Base model that answered, or that the job asks for.';
COMMENT ON COLUMN loracomp.job_trace.correct IS 'Whether the answer equals `expected`; null if `expected` is null.';
COMMENT ON COLUMN loracomp.job_trace.own_task IS
'Task of the example that the job was made from; null for other jobs.';
COMMENT ON COLUMN loracomp.job_trace.given_tasks IS
'Tasks whose adapters may be used; null: all tasks that the submitter may use.';
COMMENT ON COLUMN loracomp.job_trace.given_weights IS
'Weights of the adapters of `tasks`, in that order, used instead of retrieval; null: retrieval decides.';
SELECT loracomp.copy_comments('loracomp.job_trace', 'loracomp.job_result', 'loracomp.prediction', 'loracomp.job');

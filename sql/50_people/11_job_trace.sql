-- drop: DROP VIEW IF EXISTS loracomp.job_trace
-- Reads only. Everything that is known of a job, one row each; arrays as they are stored.
CREATE VIEW loracomp.job_trace WITH (security_invoker) AS
SELECT
    j.id AS job_id,
    j.status,
    j.kind,
    j.prompt,
    j.choices,
    j.max_new_tokens,
    j.stop,
    p.output,
    p.choice_index,
    p.choice_scores,
    j.task AS own_task,
    j.expected,
    j.is_correct AS correct,
    j.evaluation,
    j.example_id,
    j.policy,
    p.policy AS policy_settings,
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
    p.norm_ratio,
    p.cosine,
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
    j.tags,
    j.idempotency_key,
    j.submitted_by,
    j.created_at,
    j.run_at,
    j.claimed_at,
    j.finished_at,
    j.temperature,
    j.top_p,
    CASE WHEN j.choices IS NULL THEN coalesce(j.seed, j.id) END AS seed,
    p.eligible_task_count
FROM loracomp.job AS j
LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id;
COMMENT ON VIEW loracomp.job_trace IS 'Each job with its prediction and whole trace, as stored.';
COMMENT ON COLUMN loracomp.job_trace.job_id IS 'The job.';
COMMENT ON COLUMN loracomp.job_trace.status IS 'queued, running, succeeded, failed or cancelled.';
COMMENT ON COLUMN loracomp.job_trace.kind IS 'predict: an answer. route: the weights alone.';
COMMENT ON COLUMN loracomp.job_trace.prompt IS 'The text that was asked.';
COMMENT ON COLUMN loracomp.job_trace.choices IS 'Possible answers; null where text was generated.';
COMMENT ON COLUMN loracomp.job_trace.max_new_tokens IS 'Tokens to generate at most; null where choices were scored.';
COMMENT ON COLUMN loracomp.job_trace.stop IS 'Texts that end a generation.';
COMMENT ON COLUMN loracomp.job_trace.temperature IS 'Of generated text; 0: the most likely token each time.';
COMMENT ON COLUMN loracomp.job_trace.top_p IS
'Of generated text: drawn from the fewest tokens whose probability reaches this.';
COMMENT ON COLUMN loracomp.job_trace.seed IS 'What generated text is drawn by; null where choices were scored.';
COMMENT ON COLUMN loracomp.job_trace.output IS 'The answer: the best choice, or the generated text.';
COMMENT ON COLUMN loracomp.job_trace.choice_index IS '1-based place of the answer among the choices.';
COMMENT ON COLUMN loracomp.job_trace.choice_scores IS
'Log-likelihood of each choice in nats, normalised as the policy says.';
COMMENT ON COLUMN loracomp.job_trace.own_task IS 'Task that the job comes from; evaluations only.';
COMMENT ON COLUMN loracomp.job_trace.expected IS 'The right answer; evaluations only.';
COMMENT ON COLUMN loracomp.job_trace.correct IS 'Whether the answer is the expected one; null where none is known.';
COMMENT ON COLUMN loracomp.job_trace.evaluation IS 'Evaluation that the job belongs to.';
COMMENT ON COLUMN loracomp.job_trace.example_id IS 'Example that it asks; evaluations only.';
COMMENT ON COLUMN loracomp.job_trace.policy IS 'Settings of routing and merging that the job named.';
COMMENT ON COLUMN loracomp.job_trace.policy_settings IS 'Those settings as they were when the job ran.';
COMMENT ON COLUMN loracomp.job_trace.example_ids IS 'Retrieved examples, nearest first.';
COMMENT ON COLUMN loracomp.job_trace.example_tasks IS 'Their tasks.';
COMMENT ON COLUMN loracomp.job_trace.similarities IS 'Their cosine similarities.';
COMMENT ON COLUMN loracomp.job_trace.tasks IS 'Tasks by falling probability.';
COMMENT ON COLUMN loracomp.job_trace.probabilities IS 'P(task) of each.';
COMMENT ON COLUMN loracomp.job_trace.weights IS 'Weight of each in the composition; 0 outside the nucleus.';
COMMENT ON COLUMN loracomp.job_trace.composed_tasks IS 'Tasks whose adapters were composed.';
COMMENT ON COLUMN loracomp.job_trace.adapter_ids IS 'Their adapters.';
COMMENT ON COLUMN loracomp.job_trace.adapter_sha256 IS 'Hashes of the adapters'' files.';
COMMENT ON COLUMN loracomp.job_trace.adapter_weights IS 'Weight of each composed adapter.';
COMMENT ON COLUMN loracomp.job_trace.fallback IS 'Why the base model answered alone; null where adapters were composed.';
COMMENT ON COLUMN loracomp.job_trace.composition_digest IS
'Sha256 that identifies base model, adapters, weights and strategy: equal digests, equal models.';
COMMENT ON COLUMN loracomp.job_trace.norm_ratio IS
'Norm of the composed change over that of the exact weighted sum; null where not sampled.';
COMMENT ON COLUMN loracomp.job_trace.cosine IS
'Cosine between the composed change and the exact weighted sum; null where not sampled.';
COMMENT ON COLUMN loracomp.job_trace.prompt_tokens IS 'Tokens of the prompt.';
COMMENT ON COLUMN loracomp.job_trace.output_tokens IS 'Tokens scored or generated.';
COMMENT ON COLUMN loracomp.job_trace.timings IS
'Milliseconds of each step for the batch that the job was part of: claim, encode, route, load (adapters to the device), '
'ready (waiting for the model), compose, predict, record.';
COMMENT ON COLUMN loracomp.job_trace.batch_size IS 'Jobs in that batch.';
COMMENT ON COLUMN loracomp.job_trace.worker IS 'Worker that answered, or held the job last.';
COMMENT ON COLUMN loracomp.job_trace.device IS 'Device and number type, such as cpu/bfloat16.';
COMMENT ON COLUMN loracomp.job_trace.attempts IS 'Attempts so far.';
COMMENT ON COLUMN loracomp.job_trace.error_code IS 'Short name of the last error.';
COMMENT ON COLUMN loracomp.job_trace.error IS 'The last error, in words.';
COMMENT ON COLUMN loracomp.job_trace.base_model IS 'Base model that answered, or that is asked for.';
COMMENT ON COLUMN loracomp.job_trace.base_fingerprint IS 'Sha256 of that model''s weight files.';
COMMENT ON COLUMN loracomp.job_trace.encoder IS 'Encoder and its input version, such as all-MiniLM-L6-v2/1.';
COMMENT ON COLUMN loracomp.job_trace.code_version IS 'Version of loracomp that answered.';
COMMENT ON COLUMN loracomp.job_trace.exclude_tasks IS 'Tasks whose examples and adapters were not to be used.';
COMMENT ON COLUMN loracomp.job_trace.tags IS 'The submitter''s own tags.';
COMMENT ON COLUMN loracomp.job_trace.idempotency_key IS 'The submitter''s own key for the job.';
COMMENT ON COLUMN loracomp.job_trace.submitted_by IS 'Who inserted it.';
COMMENT ON COLUMN loracomp.job_trace.created_at IS 'When it was inserted.';
COMMENT ON COLUMN loracomp.job_trace.run_at IS 'Not before this time.';
COMMENT ON COLUMN loracomp.job_trace.claimed_at IS 'When the current or last attempt began.';
COMMENT ON COLUMN loracomp.job_trace.finished_at IS 'When it succeeded, failed or was cancelled; null before that.';
COMMENT ON COLUMN loracomp.job_trace.eligible_task_count IS
'Tasks that the job might have retrieved; null in traces older than the column.';

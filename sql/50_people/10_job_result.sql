-- Reads only. A row for every job that the reader may see, answered or not.
CREATE VIEW loracomp.job_result WITH (security_invoker) AS
SELECT
    j.id AS job_id,
    j.status,
    j.prompt,
    j.choices,
    -- A generated text continues its prompt, so it usually starts with a space.
    CASE WHEN j.choices IS NULL THEN ltrim(p.output, E' \t\r\n') ELSE p.output END AS output,
    p.choice_index,
    p.choice_scores,
    loracomp.confidence(p.choice_scores) AS confidence,
    CASE
        WHEN p.job_id IS NOT NULL
            THEN coalesce(loracomp.composition_text(p.composed_tasks, p.adapter_weights), 'base model')
    END AS composition,
    p.fallback,
    j.policy,
    j.error_code,
    j.error,
    j.attempts,
    j.idempotency_key,
    j.tags,
    j.submitted_by,
    j.created_at,
    j.finished_at,
    loracomp.seconds_between(least(greatest(j.created_at, j.run_at), j.finished_at), j.finished_at) AS latency_s
FROM loracomp.job AS j
LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id;
COMMENT ON VIEW loracomp.job_result IS 'What became of each job: its answer, or why there is none.';
COMMENT ON COLUMN loracomp.job_result.job_id IS 'The job.';
COMMENT ON COLUMN loracomp.job_result.prompt IS 'The text that was asked.';
COMMENT ON COLUMN loracomp.job_result.output IS
'The answer: the best choice, or the generated text without white space before it; job_trace has it as it was generated.';
COMMENT ON COLUMN loracomp.job_result.confidence IS
'Share of the best choice in the softmax over choice_scores, 0 to 1; null where none were scored.';
COMMENT ON COLUMN loracomp.job_result.composition IS
'Tasks whose adapters were composed, with their weights, such as rte 0.62 + mnli 0.38; or base model.';
COMMENT ON COLUMN loracomp.job_result.created_at IS 'When it was inserted.';
COMMENT ON COLUMN loracomp.job_result.latency_s IS
'Seconds from when it could start (created_at or run_at, the later) to finished_at; 0 where it was cancelled before.';

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
    loracomp.seconds_between(least(greatest(j.created_at, j.run_at), j.finished_at), j.finished_at) AS latency_s,
    p.finish_reason
FROM loracomp.job AS j
LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id;
COMMENT ON VIEW loracomp.job_result IS 'Each job with its status and its answer, or the error.';
COMMENT ON COLUMN loracomp.job_result.prompt IS 'The job''s prompt.';
COMMENT ON COLUMN loracomp.job_result.output IS
'The answer: the best choice, or the generated text without white space before it. (job_trace has it with white space.)';
COMMENT ON COLUMN loracomp.job_result.confidence IS
'Probability of the best choice by softmax over choice_scores, 0 to 1; null if there are no choices.';
COMMENT ON COLUMN loracomp.job_result.composition IS
'Tasks whose adapters were used, with their weights, such as rte 0.62 + mnli 0.38; or the text base model.';
COMMENT ON COLUMN loracomp.job_result.created_at IS 'When the job was inserted.';
COMMENT ON COLUMN loracomp.job_result.latency_s IS
'Seconds from the time when the job could start (the later of created_at and run_at) to finished_at; 0 if it was cancelled '
'before that time.';
COMMENT ON COLUMN loracomp.job_result.job_id IS 'The job''s number.';
SELECT loracomp.copy_comments('loracomp.job_result', 'loracomp.job', 'loracomp.prediction');

-- drop: REVOKE ALL ON ALL TABLES IN SCHEMA loracomp FROM loracomp_submitter
-- A submitter inserts the columns meant for it, reads its own jobs with their traces, and the names that a job may use.
-- Which rows: 30_*_rows.sql.
GRANT INSERT (
    kind, prompt, choices, max_new_tokens, stop, temperature, top_p, seed, policy, base_model, priority, run_at,
    idempotency_key, tags, exclude_tasks, max_attempts, timeout_s
) ON TABLE loracomp.job TO loracomp_submitter;
GRANT SELECT ON TABLE loracomp.job, loracomp.prediction TO loracomp_submitter;
GRANT SELECT ON TABLE
loracomp.job_result,
loracomp.job_trace,
loracomp.retrieved_example,
loracomp.composed_adapter,
loracomp.job_attempt,
loracomp.queue_health
TO loracomp_submitter;
GRANT SELECT ON TABLE loracomp.policy, loracomp.base_model TO loracomp_submitter;

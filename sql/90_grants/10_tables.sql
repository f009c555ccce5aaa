-- What each role may do with tables and views. Which rows: 20_rows.sql; which functions: 30_functions.sql.

-- Takes from PUBLIC what Postgres gives it with every new function, in the transaction that makes them; what roles may
-- do follows, by name. Every role may see which release the schema is of.
REVOKE ALL ON ALL ROUTINES IN SCHEMA loracomp, bi FROM public;
GRANT USAGE ON SCHEMA loracomp TO loracomp_submitter, loracomp_worker, loracomp_analyst, loracomp_admin;
GRANT SELECT ON TABLE loracomp.alembic_version, loracomp.sql_object
TO loracomp_submitter, loracomp_worker, loracomp_analyst, loracomp_admin;

-- A submitter inserts the columns meant for it, reads its own jobs with their traces, and the names that a job may use.
GRANT INSERT (
    kind, prompt, choices, max_new_tokens, stop, temperature, top_p, seed, policy, base_model, priority, run_at,
    idempotency_key, tags, exclude_tasks, tasks, weights, max_attempts, timeout_s
) ON TABLE loracomp.job TO loracomp_submitter;
GRANT INSERT (
    kind, prompt, choices, max_new_tokens, stop, temperature, top_p, seed, policy, base_model, priority, run_at,
    idempotency_key, tags, exclude_tasks, tasks, weights, max_attempts, timeout_s
) ON TABLE loracomp.incoming_job TO loracomp_submitter, loracomp_admin;
-- What administrators alone may fill, and a status: so that a trigger can say which column it refuses (fill_job).
GRANT INSERT (task, expected, evaluation, status) ON TABLE loracomp.job TO loracomp_submitter;
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

-- An analyst reads bi, which holds nobody's words, and nothing else.
GRANT USAGE ON SCHEMA bi TO loracomp_analyst;
GRANT SELECT ON ALL TABLES IN SCHEMA bi TO loracomp_analyst;

-- An administrator reads everything, sets policies, inserts jobs (those of evaluations too), and changes the rest by
-- functions. Weights arrive by COPY.
GRANT USAGE ON SCHEMA bi TO loracomp_admin;
GRANT SELECT ON ALL TABLES IN SCHEMA loracomp, bi TO loracomp_admin;
GRANT INSERT, UPDATE, DELETE ON TABLE loracomp.policy TO loracomp_admin;
GRANT INSERT (name, description, split, kind, base_model, exclude_own, seed)
ON TABLE loracomp.evaluation TO loracomp_admin;
GRANT INSERT (
    kind, prompt, choices, max_new_tokens, stop, temperature, top_p, seed, policy, base_model, priority, run_at,
    idempotency_key, tags, exclude_tasks, tasks, weights, max_attempts, timeout_s, task, expected, evaluation
) ON TABLE loracomp.job TO loracomp_admin;
GRANT INSERT ON TABLE loracomp.adapter_part TO loracomp_admin;

-- drop: REVOKE ALL ON ALL TABLES IN SCHEMA loracomp, bi FROM loracomp_admin
-- drop: REVOKE ALL ON SCHEMA bi FROM loracomp_admin
-- An administrator reads everything, sets policies, inserts jobs (those of evaluations too), and changes the rest by
-- functions. Weights arrive by COPY.
GRANT USAGE ON SCHEMA bi TO loracomp_admin;
GRANT SELECT ON ALL TABLES IN SCHEMA loracomp, bi TO loracomp_admin;
GRANT INSERT, UPDATE, DELETE ON TABLE loracomp.policy TO loracomp_admin;
GRANT INSERT (name, description, split, kind, base_model, exclude_own, seed)
ON TABLE loracomp.evaluation TO loracomp_admin;
GRANT INSERT (
    kind, prompt, choices, max_new_tokens, stop, temperature, top_p, seed, policy, base_model, priority, run_at,
    idempotency_key, tags, exclude_tasks, max_attempts, timeout_s, task, expected, evaluation
) ON TABLE loracomp.job TO loracomp_admin;
GRANT INSERT ON TABLE loracomp.adapter_weights TO loracomp_admin;

-- Which role may execute which function. A function that is not named here can be called only by the owner, by triggers, and by functions
-- that run with the owner's rights; tests/sql/test_roles.py lists these functions.

-- Submitters, and administrators.
GRANT EXECUTE ON FUNCTION
loracomp.submit_job,
loracomp.submit_jobs,
loracomp.cancel_job,
loracomp.cancel_jobs,
loracomp.set_priority,
loracomp.erase_jobs,
loracomp.retry_job,
loracomp.wait_for_job,
loracomp.explain_job,
loracomp.readable_tasks,
loracomp.create_answers,
loracomp.alter_answers,
loracomp.cancel_answers,
loracomp.drop_answers,
loracomp.alter_key,
loracomp.view_grants,
loracomp.bring_view_back,
loracomp.lock_views,
loracomp.list_answers,
loracomp.list_answer_rows,
loracomp.list_corrections,
loracomp.try_prompts,
loracomp.estimate_answers,
loracomp.rows_to_correct,
loracomp.rows_for_a_person,
loracomp.rows_to_review,
loracomp.count_corrections,
loracomp.correct_row,
loracomp.correct_answer(regclass, text, text),
loracomp.correct_answer(regclass, bigint, text)
TO loracomp_submitter, loracomp_admin;

-- Roles that may read a declaration's view.
GRANT EXECUTE ON FUNCTION
loracomp.answers_since,
loracomp.wait_for_answer(regclass, text, interval),
loracomp.wait_for_answer(regclass, bigint, interval)
TO loracomp_submitter, loracomp_analyst, loracomp_admin;

-- Workers.
GRANT EXECUTE ON FUNCTION
loracomp.claim_jobs,
loracomp.renew_leases,
loracomp.record_predictions,
loracomp.plan_measurements,
loracomp.record_measurements,
loracomp.labelled_scores,
loracomp.record_evidence,
loracomp.fail_jobs,
loracomp.release_jobs,
loracomp.release_claim,
loracomp.oldest_worker,
loracomp.queue_is_empty,
loracomp.retry_waits,
loracomp.rows_run,
loracomp.rows_wait,
loracomp.wake_jobs,
loracomp.rescue_jobs,
loracomp.ask_rows,
loracomp.take_answers,
loracomp.measure_corrections,
loracomp.keep_house,
loracomp.leave_house,
loracomp.note_step,
loracomp.report_worker,
loracomp.route_jobs,
loracomp.has_unembedded,
loracomp.read_labelled
TO loracomp_worker;

-- Workers, and administrators.
GRANT EXECUTE ON FUNCTION
loracomp.make_partitions,
loracomp.database_metrics,
loracomp.read_adapters,
loracomp.find_base_model,
loracomp.show_encoder,
loracomp.draw_unembedded,
loracomp.add_embeddings,
loracomp.check_health
TO loracomp_worker, loracomp_admin;

-- Analysts, and administrators.
GRANT EXECUTE ON FUNCTION
loracomp.route,
loracomp.task_weights,
loracomp.policy_with,
bi.wilson_interval
TO loracomp_analyst, loracomp_admin;

-- Only administrators: jobs, routing, models and encoder, tasks and examples, adapters, policies, audit, lineage and erasure.
GRANT EXECUTE ON FUNCTION
loracomp.purge_jobs,
loracomp.job_ranges,
loracomp.set_queue_limits,
loracomp.set_reported_tags,
loracomp.worker_demand,
loracomp.refresh_reports,
loracomp.tune_routing,
loracomp.register_base_model,
loracomp.set_default_base_model,
loracomp.remove_base_model,
loracomp.embedding_dimensions,
loracomp.examples_without_text,
loracomp.drop_embedding_index,
loracomp.build_embedding_index,
loracomp.add_task,
loracomp.restrict_task,
loracomp.delete_task,
loracomp.delete_examples,
loracomp.list_tasks,
loracomp.add_example,
loracomp.add_examples,
loracomp.count_unembedded,
loracomp.find_unembedded,
loracomp.stage_adapter,
loracomp.find_adapter,
loracomp.activate_adapter,
loracomp.retire_adapter,
loracomp.delete_adapter,
loracomp.measure_task,
loracomp.measure_adapter,
loracomp.add_measurements,
loracomp.compare_adapters,
loracomp.compare_with_corrections,
loracomp.list_measurements,
loracomp.set_policy,
loracomp.delete_policy,
loracomp.erase_example,
loracomp.erase_submitter
TO loracomp_admin;

-- Functions that the functions above, views and constraints call with the caller's rights.
GRANT EXECUTE ON FUNCTION
loracomp.white_space,
loracomp.is_blank,
loracomp.texts_are_not_blank,
loracomp.texts_are_distinct,
loracomp.texts_length,
loracomp.submitter_columns,
loracomp.job_from_json,
loracomp.insert_job,
loracomp.submit_one,
loracomp.constraint_in_words,
loracomp.shorten,
loracomp.readable_example,
loracomp.readable_adapter,
loracomp.attempts_of,
loracomp.explain_state,
loracomp.explain_next,
loracomp.explain_request,
loracomp.explain_answer,
loracomp.explain_vote,
loracomp.explain_route,
loracomp.explain_composition,
loracomp.explain_run
TO loracomp_submitter, loracomp_admin;
GRANT EXECUTE ON FUNCTION
loracomp.task_probabilities,
loracomp.check_probabilities,
loracomp.similarity_weights,
loracomp.uniform_weights,
loracomp.measured_weights,
loracomp.labelled_weights,
loracomp.check_similarities,
loracomp.check_gains,
loracomp.relative_share,
loracomp.check_range,
loracomp.caller,
loracomp.check_caller,
loracomp.is_restricted,
loracomp.may_read,
loracomp.masked_tasks,
loracomp.masked_adapter,
loracomp.compute_seconds
TO loracomp_analyst, loracomp_admin;
GRANT EXECUTE ON FUNCTION
loracomp.is_admin,
loracomp.check_wait,
loracomp.uses_gains,
loracomp.composition_text,
loracomp.confidence,
loracomp.seconds_between,
loracomp.count_rows_waiting
TO loracomp_submitter, loracomp_analyst, loracomp_admin;

-- Who may execute which function. Those not named here are for the owner, for triggers, and for functions that run with
-- their owner's rights. A test lists them all.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT g.role, p.oid::regprocedure AS routine
        FROM (
            VALUES
            ('loracomp_submitter', 'submit_job cancel_job explain_job'),
            (
                'loracomp_worker',
                'claim_jobs renew_leases record_predictions fail_jobs release_jobs queue_is_empty route_jobs '
                'read_adapters find_base_model show_encoder check_health'
            ),
            ('loracomp_analyst', 'route rescore_route task_weights wilson_interval'),
            (
                'loracomp_admin',
                'submit_job cancel_job retry_job requeue_jobs purge_jobs explain_job route rescore_route task_weights '
                'wilson_interval check_health tune_routing register_base_model find_base_model list_base_models '
                'set_encoder show_encoder embedding_dimensions clear_embeddings drop_embedding_index build_embedding_index '
                'add_task restrict_task list_tasks '
                'add_examples unembedded_examples find_unembedded stage_adapter find_adapter activate_adapter '
                'retire_adapter list_adapters read_adapters set_policy list_policies'
            ),
            -- What the above, the views and the constraints call with the caller's rights.
            ('loracomp_submitter', 'texts_are_not_blank texts_are_distinct composition_text seconds_between shorten'),
            (
                'loracomp_submitter',
                'explain_state explain_next explain_request explain_answer explain_route explain_composition explain_run'
            ),
            (
                'loracomp_analyst',
                'composition_text seconds_between check_routing_settings check_similarities'
            ),
            ('loracomp_admin', 'texts_are_not_blank texts_are_distinct composition_text seconds_between shorten'),
            (
                'loracomp_admin',
                'explain_state explain_next explain_request explain_answer explain_route explain_composition explain_run '
                'check_routing_settings check_similarities'
            )
        ) AS g (role, names)
        CROSS JOIN LATERAL string_to_table(g.names, ' ') AS n (name)
        INNER JOIN pg_catalog.pg_proc AS p ON p.proname = n.name
        WHERE p.pronamespace IN ('loracomp'::regnamespace, 'bi'::regnamespace)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', given.routine, given.role);
    END LOOP;
END
$$;

"""Least privilege: what each role may do, and that it can't do more. Real logins try to break out."""

import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from loracomp.database import connections as db
from loracomp.database import revision
from people_data import add_examples, answer, claim, load, one, submit
from people_fixtures import Scene, connect, login, value, values

# Which functions each role may execute; any other is the owner's alone. A new function must be entered here.
EXECUTE = {
    "loracomp_submitter": """
        submit_job submit_jobs cancel_job cancel_jobs set_priority erase_jobs
        retry_job wait_for_job explain_job readable_tasks readable_example
        readable_adapter attempts_of white_space is_blank submitter_columns job_from_json insert_job submit_one
        constraint_in_words confidence texts_are_not_blank texts_are_distinct texts_length composition_text
        seconds_between shorten is_admin
        explain_state explain_next explain_request explain_answer explain_vote explain_route
        explain_composition explain_run count_rows_waiting uses_gains
        create_answers alter_answers cancel_answers drop_answers list_answers correct_answer answers_since
        wait_for_answer check_wait try_prompts estimate_answers rows_for_a_person
        rows_to_review count_corrections
        rows_to_correct correct_row list_answer_rows list_corrections alter_key view_grants
        bring_view_back lock_views
    """,
    "loracomp_worker": """
        claim_jobs renew_leases record_predictions plan_measurements record_measurements fail_jobs release_jobs
        release_claim
        labelled_scores record_evidence
        queue_is_empty retry_waits rows_run
        route_jobs read_labelled read_adapters has_unembedded draw_unembedded add_embeddings
        find_base_model show_encoder check_health report_worker
        database_metrics make_partitions oldest_worker
        rows_wait wake_jobs rescue_jobs ask_rows take_answers measure_corrections keep_house leave_house note_step
    """,
    "loracomp_analyst": """
        route task_weights policy_with wilson_interval
        task_probabilities similarity_weights uniform_weights measured_weights labelled_weights
        check_similarities check_range composition_text seconds_between is_admin may_read masked_tasks
        caller check_caller is_restricted masked_adapter compute_seconds confidence check_gains check_probabilities
        relative_share answers_since wait_for_answer check_wait count_rows_waiting uses_gains
    """,
    "loracomp_admin": """
        submit_job submit_jobs cancel_job cancel_jobs wait_for_job explain_job readable_tasks readable_example
        readable_adapter attempts_of submitter_columns job_from_json insert_job submit_one
        constraint_in_words confidence set_priority
        retry_job purge_jobs make_partitions job_ranges check_health refresh_reports
        database_metrics worker_demand set_queue_limits set_reported_tags
        register_base_model set_default_base_model remove_base_model find_base_model
        show_encoder embedding_dimensions examples_without_text
        drop_embedding_index build_embedding_index add_task restrict_task
        delete_task delete_examples list_tasks
        add_example add_examples draw_unembedded count_unembedded find_unembedded
        stage_adapter find_adapter activate_adapter retire_adapter delete_adapter read_adapters
        set_policy delete_policy
        erase_example erase_submitter
        erase_jobs add_embeddings
        tune_routing route task_weights policy_with wilson_interval
        task_probabilities similarity_weights uniform_weights measured_weights labelled_weights
        caller check_caller is_restricted is_admin may_read masked_tasks masked_adapter compute_seconds
        white_space is_blank
        texts_are_not_blank texts_are_distinct texts_length composition_text seconds_between shorten
        explain_state explain_next explain_request explain_answer explain_vote explain_route
        explain_composition explain_run
        check_similarities check_range check_gains check_probabilities relative_share uses_gains
        measure_task measure_adapter add_measurements list_measurements compare_adapters compare_with_corrections
        create_answers alter_answers cancel_answers drop_answers list_answers correct_answer answers_since
        wait_for_answer check_wait try_prompts estimate_answers rows_for_a_person
        rows_to_review count_corrections
        rows_to_correct correct_row list_answer_rows list_corrections alter_key view_grants
        bring_view_back lock_views
        count_rows_waiting
    """,
}
OWNERS_ALONE = """
    copy_comments is_list
    give_reason caller_is_admin retry_delay pick_jobs take_place queue_level counter_name make_counter is_background
    check_role_exists
    check_task_exists did_you_mean readable_roles
    check_tasks_exist check_name look_up_names with_settings
    checked_embedding check_encoder set_encoder start_routing lock_encoder usable_tasks generating_tasks narrowed_tasks
    search_exactly nearest_examples routing_inputs route_query
    compose_tasks trace_tasks fallback_reason nearness scaled
    calibration_examples adapter_worths in_chat_template fitting_ef_search oldest_snapshots count_queued
    admit_jobs hold_jobs
    succeed_jobs check_server check_objects check_work check_worker_name
    find_task check_setting check_columns fill_defaults refuse_faulty_job refuse_faulty_prediction place_job
    hint_job notify is_within_limit
    left_to_limit refuse_job
    return_places make_levels add_counter drop_counters check_parts parts_of lock_embeddings view_definition
    audit_job_update audit_job_delete audit_row keep_audit_event recount_days
    content_hash has_learnt_from draw_examples likely_tasks queue_measurements active_adapters
    expected_gains
    audit_examples sign_test_p
    lock_jobs erase_sums erase_declaration delete_jobs delete_predictions range_width is_sparse add_range past_range
    drop_range drop_empty_ranges delete_records forget_embeddings
    jobs_on changed_days roll_up reports close_days accuracy_by_day_on routing_by_day_on
    adapter_usage_by_day_on latency_by_day_on jobs_by_day_on
    answers_by_tag_on
    prompt_pieces prompt_margins key_forms primary_key_of parts_of numbers_of source_names with_current_names
    key_columns_of
    source_sql key_array key_columns key_values filter_values fixed_filter filter_condition hint_statement
    make_answers_view make_parts add_triggers drop_parts threshold rows_to_look_at first_look certainty
    certainty_in_words lower_promise rows_to_draw lost_promises
    read_as_owner next_keys first_hidden read_rows first_megabyte read_prompts prompts_statement passes_sql
    text_size_sql check_code lock_code patience_ms lock_table lock_tables check_source check_parent check_text
    check_owner check_certain check_request make_view answers_channel find_declaration
    lock_declaration may_alter_answers forget_answers unfinished_jobs accuracy_of
    measuring waits_for_measurements
    ask_hinted thin_hints scan_is_due must_scan begin_scan ask_scanned corrections_answer must_ask_corrected
    check_filter_types notify_answers parts_are_due parts_hash with_all_columns check_same_owner
    with_other_source check_enum_values identity_of base_type prompt_columns source_has_changed lock_source
    lock_to_alter replace_view
    ask_corrected begin_waits end_waits due_declarations ask_or_mark ask_page first_jobs ask_together
    follow_source forget_some copy_outcomes clear_answers ask_again
    oldest_writer timeline clear_corrections add_own_task note_ended
    request_hash first_answer_of estimated_rows rows_to_scan rows_without_job
    write_correction correction_fault prompts_of label_prompt label_again answers_above
    unlabel remove_withdrawn forget_examples
    is_measured has_unmeasured forget_evidence
"""
JOB_COLUMNS = """
    kind prompt choices descriptions max_new_tokens stop temperature top_p seed policy base_model priority run_at
    idempotency_key tags exclude_tasks tasks weights max_attempts timeout_s chat_template system_text text_at
"""
VECTOR = [1.0] + [0.0] * 831
# The trigger check_columns refuses these by name; the first three are administrators' to fill.
REFUSED_COLUMNS = """
    task expected example_id status submitted_by created_at place background watched scheduled attempts
    expired_leases worker
    lease_token claimed_at lease_expires_at finished_at error_code error is_correct adapter_ids labelled_task
"""
INSERTED_COLUMNS = {("job", "INSERT", column) for column in (*JOB_COLUMNS.split(), *REFUSED_COLUMNS.split())}
WRITES = {
    "loracomp_submitter": INSERTED_COLUMNS,
    "loracomp_worker": set(),
    "loracomp_analyst": set(),
    "loracomp_admin": INSERTED_COLUMNS | {("adapter_part", "INSERT", "*")},
}


# What is granted.


def test_who_may_execute_what(scene: Scene) -> None:
    rows = scene.owner.execute(
        "SELECT p.proname, r.rolname FROM pg_proc AS p CROSS JOIN pg_roles AS r "
        "WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi') AND r.rolname = ANY (%s) "
        "AND has_function_privilege(r.oid, p.oid, 'EXECUTE')",
        [[*EXECUTE, login("nobody")]],
    ).fetchall()
    found = {(row["rolname"], row["proname"]) for row in rows}
    assert found == {(role, name) for role, names in EXECUTE.items() for name in names.split()}


def test_every_function_is_entered_here(scene: Scene) -> None:
    rows = scene.owner.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace::regnamespace::text IN ('loracomp', 'bi')"
    )
    assert {row["proname"] for row in rows} == {
        name for names in (*EXECUTE.values(), OWNERS_ALONE) for name in names.split()
    }


def test_who_may_write_what(scene: Scene) -> None:
    rows = scene.owner.execute(
        "SELECT c.relname, a.privilege_type, a.grantee::regrole::text AS role, '*' AS column "
        "FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a "
        "WHERE c.relnamespace::regnamespace::text IN ('loracomp', 'bi') AND a.grantee <> c.relowner "
        "UNION ALL SELECT c.relname, a.privilege_type, a.grantee::regrole::text, t.attname "
        "FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid CROSS JOIN LATERAL aclexplode(t.attacl) AS a "
        "WHERE c.relnamespace::regnamespace::text IN ('loracomp', 'bi')"
    ).fetchall()
    writes = {role: set() for role in WRITES}
    for row in rows:
        if row["privilege_type"] != "SELECT":
            writes[row["role"]].add((row["relname"], row["privilege_type"], row["column"]))
    assert writes == WRITES


def test_functions_with_their_owners_rights_have_a_fixed_search_path(scene: Scene) -> None:
    """pg_temp last, or a caller's temporary objects would be found first; and no schema that roles may create in."""
    rows = scene.owner.execute(
        "SELECT p.proname, coalesce(substring(p.proconfig::text FROM 'search_path=([^\"]*)'), '') AS path "
        "FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi') AND p.prosecdef"
    ).fetchall()
    assert len(rows) > 20
    assert [row["proname"] for row in rows if not row["path"].endswith(", pg_temp")] == []
    schemas = {name.strip(' "') for row in rows for name in row["path"].split(",")} - {"pg_temp"}
    for role in (*EXECUTE, login("nobody")):
        for name in schemas:
            may = one(scene.owner, "SELECT has_schema_privilege(%s::name, %s, 'CREATE') AS may", [role, name])["may"]
            assert not may, f"{role} may create in {name}"


def test_views_hold_their_readers_to_what_they_may_see(scene: Scene) -> None:
    """Except for views that show numbers of everybody on purpose."""
    rows = scene.owner.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'loracomp'::regnamespace AND relkind IN ('v', 'm') "
        "AND NOT coalesce(reloptions @> '{security_invoker=true}', false)"
    )
    assert {row["relname"] for row in rows} == {
        "queue_health",
        "worker_status",
        "task_mask",
    }


@pytest.mark.parametrize("name", ["alice", "wendy", "ana", "adam"])
def test_every_role_may_check_the_schemas_revision(scene: Scene, name: str) -> None:
    revision.check_revision(make_conninfo(scene.url, user=login(name)))


# Submitters.


@pytest.mark.parametrize(
    "relation",
    [
        "SELECT id FROM loracomp.job",
        "SELECT job_id FROM loracomp.prediction",
        "SELECT job_id FROM loracomp.job_result",
        "SELECT job_id FROM loracomp.job_trace",
        "SELECT job_id FROM loracomp.retrieved_example",
        "SELECT job_id FROM loracomp.composed_adapter",
        "SELECT job_id FROM loracomp.job_attempt",
    ],
)
def test_submitters_see_their_own_jobs_alone(scene: Scene, relation: str) -> None:
    with scene.connect("alice") as alice, scene.connect("bob") as bob, scene.connect("adam") as adam:
        assert values(alice, relation) - {scene.waiting} == {scene.alices}
        assert values(bob, relation) == {scene.bobs}
        assert values(adam, relation) >= {scene.alices, scene.bobs}


@pytest.mark.parametrize("call", ["explain_job", "cancel_job", "retry_job", "wait_for_job"])
def test_submitters_can_name_their_own_jobs_alone(scene: Scene, call: str) -> None:
    with scene.connect("alice") as alice:
        with pytest.raises(errors.NoDataFound, match="does not exist, or is not yours"):
            alice.execute(f"SELECT loracomp.{call}({scene.bobs})")
        with pytest.raises(errors.NoDataFound, match="does not exist, or is not yours"):
            alice.execute(f"SELECT loracomp.{call}(1000000)")


def test_submitters_submit_read_explain_and_cancel(scene: Scene) -> None:
    with scene.connect("alice") as alice:
        call = "SELECT loracomp.submit_job('Another', choices => '{a,b}', run_at => '3000-01-01')"
        jobs = [submit(alice, "One of mine", run_at="3000-01-01"), value(alice, call)]
        for job_id in jobs:
            assert f"Submitted by {login('alice')}" in value(alice, f"SELECT loracomp.explain_job({job_id})")
            alice.execute(f"SELECT loracomp.cancel_job({job_id})")
        rows = alice.execute("SELECT submitted_by, status FROM loracomp.job_result WHERE job_id = ANY (%s)", [jobs])
        assert rows.fetchall() == [{"submitted_by": login("alice"), "status": "cancelled"}] * 2
    scene.owner.execute("DELETE FROM loracomp.job WHERE id = ANY (%s)", [jobs])


BREAKOUTS = {
    "forged submitter": "INSERT INTO loracomp.job (prompt, submitted_by) VALUES ('x', 'bob')",
    "status": "INSERT INTO loracomp.job (prompt, status, finished_at) VALUES ('x', 'succeeded', now())",
    "lease": "INSERT INTO loracomp.job (prompt, lease_token) VALUES ('x', 1)",
    "place in the queue": "INSERT INTO loracomp.job (prompt, place) VALUES ('x', -1000000)",
    "id": "INSERT INTO loracomp.job (id, prompt) OVERRIDING SYSTEM VALUE VALUES (1, 'x')",
    "expected": "INSERT INTO loracomp.job (prompt, expected) VALUES ('x', 'y')",
    "task": "INSERT INTO loracomp.job (prompt, task) VALUES ('x', 'rte')",
    "attempts": "INSERT INTO loracomp.job (prompt, attempts) VALUES ('x', 1)",
    "update": "UPDATE loracomp.job SET priority = 10",
    "delete": "DELETE FROM loracomp.job",
    "truncate": "TRUNCATE loracomp.job",
    "lock of rows": "SELECT id FROM loracomp.job FOR UPDATE",
    "lock of the table": "BEGIN; LOCK TABLE loracomp.job IN ACCESS EXCLUSIVE MODE",
    "prediction": "INSERT INTO loracomp.prediction (job_id) VALUES (1)",
    "policy": "UPDATE loracomp.policy SET k = 1",
    "weights": "SELECT FROM loracomp.adapter_part",
    "embeddings": "SELECT FROM loracomp.example_embedding",
    "examples": "SELECT prompt FROM loracomp.example",
    "tasks": "SELECT name FROM loracomp.task",
    "names of adapters": "SELECT name FROM loracomp.adapter",
    "the audit": "SELECT FROM loracomp.audit_event",
    "numbers in use": "SELECT last_value FROM loracomp.job_id_seq",
    "bi": "SELECT FROM bi.prediction",
    "numbers": "SELECT nextval('loracomp.job_id_seq')",
    "files": "COPY loracomp.job TO '/tmp/jobs'",
    "programs": "COPY loracomp.job FROM PROGRAM 'true'",
    "rows by COPY": "COPY loracomp.job (prompt) FROM STDIN",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON loracomp.job EXECUTE FUNCTION loracomp.place_job()",
    "a policy of rows": "CREATE POLICY all_rows ON loracomp.job USING (true)",
    "no row security": "ALTER TABLE loracomp.job DISABLE ROW LEVEL SECURITY",
    "row_security off": "SET row_security = off; SELECT FROM loracomp.job",
    "a function of ours": "CREATE FUNCTION loracomp.mine() RETURNS int LANGUAGE sql RETURN 1",
    "a function of public": "CREATE FUNCTION public.lower(bigint) RETURNS int LANGUAGE sql RETURN 1",
    "another role": "SET ROLE loracomp_admin",
    "the owner": "SET SESSION AUTHORIZATION postgres",
    "claim": "SELECT loracomp.claim_jobs('w', 'toy', 10, '1 minute')",
    "record": "SELECT loracomp.record_predictions('{}', '{}', '', '', '', '', '')",
    "purge": "SELECT loracomp.purge_jobs('0', force => true)",
    "jobs of anybody": "SELECT loracomp.lock_jobs('{1}', NULL)",
    "sums of all submitters": "SELECT loracomp.erase_sums('{\"customer\": 7}')",
    "delete jobs": "SELECT loracomp.delete_jobs('{1}')",
    "hidden tasks": "SELECT loracomp.list_tasks()",
    "measurements": "SELECT FROM loracomp.measurement",
    "what is measured": "SELECT loracomp.list_measurements()",
    "to measure": "SELECT loracomp.measure_task('rte')",
    "to measure an adapter": "SELECT loracomp.measure_adapter(1)",
    "adapters compared": "SELECT loracomp.compare_adapters(1, 2)",
    "an adapter compared with corrections": "SELECT loracomp.compare_with_corrections(1)",
    "what examples expect": "SELECT loracomp.expected_gains('{1}', '{1}', '{1}', '{1}', loracomp.policy_with())",
    "what a new task is calibrated on": "SELECT loracomp.read_labelled('{1}', '{1}', '{1}')",
    "adapters on tasks": "SELECT FROM bi.transfer",
    "adapters": "SELECT loracomp.read_adapters('{1}')",
    "triggers' functions": "SELECT loracomp.place_job()",
}


@pytest.mark.parametrize("statement", BREAKOUTS.values(), ids=BREAKOUTS)
def test_submitters_cannot(scene: Scene, statement: str) -> None:
    with scene.connect("alice") as alice, pytest.raises((errors.InsufficientPrivilege, errors.FeatureNotSupported)):
        alice.execute(statement)


@pytest.mark.parametrize("name", ["wendy", "ana", "nobody"])
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM loracomp.job",
        "SELECT output FROM loracomp.prediction",
        "SELECT FROM loracomp.job_result",
        "SELECT FROM loracomp.example",
        "SELECT FROM loracomp.audit_event",
        "INSERT INTO loracomp.job (prompt) VALUES ('x')",
        "UPDATE loracomp.job SET priority = 10",
        "TRUNCATE loracomp.job",
        "SELECT loracomp.submit_job('x')",
        "SELECT loracomp.cancel_job(1)",
        "SELECT loracomp.set_policy('default', '{}')",
    ],
)
def test_workers_analysts_and_others_cannot(scene: Scene, name: str, statement: str) -> None:
    with scene.connect(name) as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(statement)


def test_a_function_of_the_reader_sees_no_row_of_another(scene: Scene) -> None:
    """A cheap function in WHERE is tried early, and would tell of rows that are filtered out later."""
    leak = """
    CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
    $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$
    """
    heard: list[str] = []
    with scene.connect("alice") as alice:
        alice.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
        alice.execute(leak)
        for relation in ("loracomp.job", "loracomp.job_result", "loracomp.job_trace"):
            alice.execute(f"SELECT FROM {relation} WHERE pg_temp.leak(prompt)")
        alice.execute("SELECT FROM loracomp.prediction WHERE pg_temp.leak(output || job_id)")
    assert "alice's SECRET" in heard
    assert f"SECRET{scene.alices}" in heard
    assert not {"bob's SECRET", f"SECRET{scene.bobs}"} & set(heard)


def test_a_callers_own_objects_are_not_called(scene: Scene) -> None:
    """Shadows of what functions with their owner's rights use, in the caller's temporary schema and search path."""
    with scene.connect("alice") as alice:
        alice.execute("CREATE FUNCTION pg_temp.caller() RETURNS name LANGUAGE sql RETURN session_user")
        alice.execute("CREATE FUNCTION pg_temp.pg_has_role(name, oid, text) RETURNS bool LANGUAGE sql RETURN true")
        shadow = "CREATE TEMP TABLE job AS SELECT %s::bigint AS id, 'queued' AS status, session_user AS submitted_by"
        alice.execute(shadow, [scene.bobs])
        alice.execute("SET search_path = pg_temp, loracomp, pg_catalog")
        with pytest.raises(errors.NoDataFound):
            alice.execute(f"SELECT cancel_job({scene.bobs})")
        alice.execute("CREATE TEMP TABLE prediction AS SELECT 'mine' AS output, 1::bigint AS job_id")
        assert "SECRET" in value(alice, f"SELECT explain_job({scene.alices})")


def test_another_submitters_idempotency_key_tells_nothing(scene: Scene) -> None:
    with scene.connect("bob") as bob:
        call = "SELECT loracomp.submit_job('x', idempotency_key => 'alice''s key', run_at => '3000-01-01')"
        assert value(bob, call) not in (scene.alices, scene.bobs)
        submit(bob, "y", idempotency_key="alices other", run_at="3000-01-01")
        with pytest.raises(errors.UniqueViolation):
            submit(bob, "y", idempotency_key="alices other")
    scene.owner.execute(
        "DELETE FROM loracomp.job WHERE id NOT IN (%s, %s, %s)", [scene.alices, scene.bobs, scene.waiting]
    )


def test_a_pools_login_acts_as_the_role_that_it_sets(scene: Scene) -> None:
    with scene.connect("pool") as pool:
        with pytest.raises(errors.InsufficientPrivilege):
            pool.execute("SELECT FROM loracomp.job")
        pool.execute(f"SET ROLE {login('bob')}")
        assert values(pool, "SELECT job_id FROM loracomp.job_result") == {scene.bobs}
        job_id = submit(pool, "through the pool", run_at="3000-01-01")
        pool.execute(f"SET ROLE {login('alice')}")
        with pytest.raises(errors.NoDataFound):
            pool.execute(f"SELECT loracomp.cancel_job({job_id})")
        with pytest.raises(errors.InsufficientPrivilege):
            pool.execute("SET ROLE loracomp_admin")
        pool.execute(f"SET ROLE {login('bob')}")
        pool.execute(f"SELECT loracomp.cancel_job({job_id})")
        found = one(pool, "SELECT submitted_by, status FROM loracomp.job WHERE id = %s", [job_id])
        assert found == {"submitted_by": login("bob"), "status": "cancelled"}
    actor = "SELECT actor FROM loracomp.audit_event WHERE entity_id = %s AND new_status = 'cancelled'"
    assert value(scene.owner, actor, [job_id]) == login("bob")
    scene.owner.execute("DELETE FROM loracomp.job WHERE id = %s", [job_id])


def test_tasks_with_readers_are_hidden_from_others(database: str, logins: None) -> None:
    """Their names, adapters and examples' texts, in an old trace too."""
    with db.connect(database) as owner, connect(database, "alice") as alice:
        load(owner)
        secret = add_examples(owner, "secret", reader_role=login("readers"))
        job_id = submit(alice)
        answer(owner, job_id, secret, composed_tasks=["secret"], adapter_weights=[1])
        seen = {
            "SELECT name FROM loracomp.readable_tasks()": {"rte", "mnli"},
            f"SELECT (loracomp.readable_example(id, {secret['secret/train#1']})).prompt FROM loracomp.job": set(),
            "SELECT prompt FROM loracomp.retrieved_example": {None},
            "SELECT source_ref FROM loracomp.retrieved_example": {None},
            "SELECT adapter FROM loracomp.composed_adapter": {None},
        }
        assert {statement: values(alice, statement) for statement in seen} == seen
        assert "rain in example" not in value(alice, f"SELECT loracomp.explain_job({job_id})")
        owner.execute(f"GRANT {login('readers')} TO {login('alice')}")
        assert values(alice, "SELECT name FROM loracomp.readable_tasks()") == {"rte", "mnli", "secret"}
        assert "rain in example 1 of secret" in value(alice, f"SELECT loracomp.explain_job({job_id})")
        owner.execute(f"REVOKE {login('readers')} FROM {login('alice')}")
        owner.execute("UPDATE loracomp.task SET reader_role = 'a role that has vanished' WHERE name = 'secret'")
        assert values(alice, "SELECT name FROM loracomp.readable_tasks()") == {"rte", "mnli"}


@pytest.mark.parametrize("granted", ["readers", "loracomp_admin"])
def test_whoever_can_only_grant_a_role_has_no_right_of_it(scene: Scene, granted: str) -> None:
    role = login(granted) if granted == "readers" else granted
    may_read = "SELECT loracomp.may_read(%s, %s)"
    people = [login("nobody"), login("readers")]
    with scene.owner.transaction(force_rollback=True):
        scene.owner.execute(f"GRANT {role} TO {login('nobody')} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE".encode())
        assert value(scene.owner, may_read, people) is False
        scene.owner.execute(f"GRANT {role} TO {login('nobody')} WITH INHERIT TRUE".encode())
        assert value(scene.owner, may_read, people) is True


def test_what_is_measured_is_nobodys_but_the_administrators_who_asked(database: str, logins: None) -> None:
    """The texts and answers of examples stand in jobs of their own."""
    with db.connect(database) as owner, connect(database, "adam") as adam, connect(database, "alice") as alice:
        load(owner)
        hidden = add_examples(owner, "SECRET", reader_role=login("readers"))
        own = submit(alice)
        owner.execute("UPDATE loracomp.example SET split = 'validation'")
        added = values(adam, "SELECT added FROM loracomp.measure_task('SECRET', split => 'validation')")
        assert added == {len(hidden)}
        measuring = values(owner, "SELECT id FROM loracomp.job WHERE kind = 'measure'")
        assert values(adam, "SELECT job_id FROM loracomp.job_result") >= measuring
        for relation, column in (("job", "id"), ("job_result", "job_id"), ("job_trace", "job_id")):
            assert values(alice, f"SELECT {column} FROM loracomp.{relation}") == {own}
        refused = set()
        for id_ in (*measuring, 1_000_000):
            for call in ("explain_job", "cancel_job", "retry_job", "wait_for_job"):
                with pytest.raises(errors.NoDataFound) as error:
                    alice.execute(f"SELECT loracomp.{call}({id_})")
                refused.add(str(error.value.diag.message_primary).replace(str(id_), "ID"))
        assert refused == {"job ID does not exist, or is not yours"}
        claimed = owner.execute("SELECT * FROM loracomp.claim_jobs('w', 'toy', 10, '1 minute')").fetchall()
        assert [row["id"] for row in claimed] == [own], "no batch, whose times a trace shows, holds both kinds"


# Workers, analysts, administrators.


def test_workers_work(database: str, logins: None) -> None:
    with db.connect(database) as owner, connect(database, "wendy") as wendy:
        load(owner)
        job_id = submit(owner)
        token = claim(wendy, job_id)[job_id]
        routed = "SELECT (trace).fallback FROM loracomp.route_jobs(%s, %s::vector[])"
        assert value(wendy, routed, [[job_id], [str(VECTOR)]]) == "no example of an eligible task"
        assert values(wendy, f"SELECT loracomp.renew_leases('{{{job_id}}}', '{{{token}}}', '1 minute')") == {job_id}
        assert values(wendy, f"SELECT loracomp.release_jobs('{{{job_id}}}', '{{{token}}}')") == {job_id}
        assert values(wendy, "SELECT loracomp.queue_is_empty('toy')") == {False}


VIEWS = "SELECT relname FROM pg_class WHERE relnamespace = 'bi'::regnamespace AND relkind IN ('v', 'm')"


@pytest.mark.parametrize("name", ["ana", "adam"])
def test_analysts_and_administrators_read_bi(scene: Scene, name: str) -> None:
    with scene.connect(name) as connection:
        for view in values(connection, VIEWS):
            connection.execute(f"SELECT * FROM bi.{view}")
        assert values(connection, "SELECT job_id FROM bi.prediction") == {scene.alices, scene.bobs}
        weights = "SELECT weight FROM loracomp.task_weights('{1}', '{0.5}', loracomp.policy_with('linear'))"
        assert values(connection, weights) == {1}
        connection.execute("SELECT loracomp.route(%s::vector)", [str(VECTOR)])


def test_administrators_administer(database: str, logins: None) -> None:
    with db.connect(database) as owner, connect(database, "adam") as adam:
        load(owner)
        adam.execute("SELECT loracomp.set_policy('default', '{\"k\": 7}')")
        adam.execute("SELECT loracomp.set_policy('mine', '{}')")
        adam.execute("SELECT loracomp.delete_policy('mine')")
        adam.execute("SELECT loracomp.restrict_task('rte', 'loracomp_admin')")
        evaluating = submit(adam, choices=["a", "b"], expected="a", task="rte", example_id=1, run_at="3000-01-01")
        job_id = submit(owner)
        token = claim(owner, job_id)[job_id]
        owner.execute("SELECT loracomp.fail_jobs(%s, %s, '{code}', '{words}', '{f}')", [[job_id], [token]])
        adam.execute(f"SELECT loracomp.retry_job({job_id})")
        adam.execute(f"SELECT loracomp.cancel_job({job_id})")
        adam.execute(f"SELECT loracomp.cancel_job({evaluating})")
        assert "cancelled" in value(adam, f"SELECT loracomp.explain_job({job_id})")
        assert values(adam, "SELECT loracomp.purge_jobs('0', force => true)") == {2}
        relations = values(
            adam,
            "SELECT oid::regclass::text FROM pg_class "
            "WHERE relnamespace::regnamespace::text IN ('loracomp', 'bi') AND relkind IN ('r', 'v')",
        )
        for relation in relations:
            adam.execute(f"SELECT * FROM {relation}")
        actors = "SELECT actor FROM loracomp.audit_event WHERE entity = 'policy' AND entity_name = 'default'"
        assert values(adam, actors) == {login("adam")}


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO loracomp.audit_event (entity, action) VALUES ('job', 'update')",
        "UPDATE loracomp.audit_event SET actor = 'somebody'",
        "DELETE FROM loracomp.audit_event",
        "TRUNCATE loracomp.audit_event",
        "SET loracomp.purging = 'on'; DELETE FROM loracomp.audit_event",
        "ALTER TABLE loracomp.audit_event DISABLE TRIGGER ALL",
        "UPDATE loracomp.job SET status = 'queued'",
        "DELETE FROM loracomp.job",
        "INSERT INTO loracomp.job (prompt, submitted_by) VALUES ('x', 'alice')",
        "UPDATE loracomp.prediction SET output = 'x'",
        "UPDATE loracomp.adapter SET status = 'active'",
        "SELECT loracomp.claim_jobs('w', 'toy', 10, '1 minute')",
    ],
)
def test_administrators_cannot(scene: Scene, statement: str) -> None:
    with scene.connect("adam") as adam, pytest.raises(errors.InsufficientPrivilege):
        adam.execute(statement)

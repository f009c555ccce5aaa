"""What each role would try in order to get at more than it is given, as real logins. Plain cases: test_roles.py."""

import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors, sql

from job_data import REPORT, prediction_row, record, wait_for_a_lock
from loracomp.cli.common import shown
from loracomp.database import connections as db
from loracomp.database import script
from loracomp.database.queries import QUERIES
from people_data import POLICY, add_examples, answer, claim, load, one, submit
from people_fixtures import Scene, connect, login, value, values

# Of functions with their owner's rights: what a linter would look for, on the catalogue as it stands.
DEFINERS = """
SELECT p.oid::regprocedure::text AS name, p.prosrc AS body, coalesce(p.proconfig, '{}') AS settings,
    EXISTS (SELECT FROM aclexplode(p.proacl) AS a WHERE a.grantee = 0) OR p.proacl IS NULL AS everybodys
FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi') AND p.prosecdef
"""
# Text becomes SQL nowhere else. Each takes it from the catalogue or a number, by %I, %L or a regprocedure.
DYNAMIC = {
    "loracomp.tune_routing()",
    "loracomp.set_policy(text,jsonb)",
    "loracomp.bring_view_back(oid,name,name,name,regtype)",
    "loracomp.list_corrections(regclass)",
    "loracomp.rows_for_a_person(regclass,integer)",
    "loracomp.list_answer_rows(regclass,text[],integer)",
    "loracomp.refresh_reports(interval)",
}
# Views that show more than their reader may read of tables, on purpose: numbers of all, or what masks names.
OWNERS_VIEWS = {"queue_health", "worker_status", "task_mask"}


# The linter.


def test_owners_functions_find_our_objects_and_the_servers_alone(scene: Scene) -> None:
    """pg_catalog comes first unless it is named; pg_temp last; and nobody may create in loracomp."""
    rows = scene.owner.execute(DEFINERS).fetchall()
    assert len(rows) > 40
    paths = {row["name"]: [s for s in row["settings"] if s.startswith("search_path=")] for row in rows}
    assert {name: path for name, path in paths.items() if path != ["search_path=loracomp, pg_temp"]} == {}
    creators = "SELECT r.rolname FROM pg_roles AS r WHERE NOT r.rolsuper AND has_schema_privilege(r.oid, %s, 'CREATE')"
    builtin = " AND r.rolname !~ '^pg_'"
    assert [values(scene.owner, creators + builtin, [name]) for name in ("loracomp", "bi")] == [set(), set()]


def test_owners_functions_are_not_everybodys(scene: Scene) -> None:
    assert [row["name"] for row in scene.owner.execute(DEFINERS) if row["everybodys"]] == []


def test_owners_functions_make_no_sql_of_text(scene: Scene) -> None:
    rows = scene.owner.execute(DEFINERS)
    assert {row["name"] for row in rows if re.search(r"\bEXECUTE\b(?! FUNCTION)", row["body"])} == DYNAMIC


def test_tables_that_people_read_hold_row_security(scene: Scene) -> None:
    """Except for tables whose rows are for everybody: names of policies and models, and what release this is."""
    open_tables = values(
        scene.owner,
        "SELECT DISTINCT c.relname FROM pg_class AS c LEFT JOIN pg_attribute AS t ON t.attrelid = c.oid"
        " WHERE c.relnamespace = 'loracomp'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relrowsecurity"
        " AND (has_table_privilege('loracomp_submitter', c.oid, 'SELECT')"
        "     OR has_any_column_privilege('loracomp_submitter', c.oid, 'SELECT'))",
    )
    assert open_tables == {"policy", "base_model", "alembic_version", "sql_object"}


def test_no_lock_that_any_login_may_take(scene: Scene) -> None:
    bodies = values(scene.owner, "SELECT prosrc FROM pg_proc WHERE pronamespace = 'loracomp'::regnamespace")
    assert not any("pg_advisory" in body for body in [*bodies, script.schema_script()])


# Whoever can connect.


@pytest.mark.parametrize("name", ["alice", "wendy", "ana", "adam", "nobody"])
def test_nobody_locks_out_an_installer(scene: Scene, name: str) -> None:
    with scene.connect(name) as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute("COMMENT ON SCHEMA loracomp IS 'mine'")


@pytest.mark.parametrize("name", ["alice", "wendy", "ana", "adam", "nobody"])
@pytest.mark.parametrize("role", ["postgres", "loracomp_admin", "loracomp_worker", "pg_read_all_data"])
def test_nobody_becomes_another(scene: Scene, name: str, role: str) -> None:
    if (name, role) in {("adam", "loracomp_admin"), ("wendy", "loracomp_worker")}:
        pytest.skip("is one")
    statements = [
        sql.SQL("SET ROLE {}").format(sql.Identifier(role)),
        sql.SQL("SELECT set_config('role', {}, false)").format(role),
        sql.SQL("SET SESSION AUTHORIZATION {}").format(sql.Identifier(role)),
        sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)),
    ]
    with scene.connect(name) as connection:
        for statement in statements:
            with pytest.raises((errors.InsufficientPrivilege, errors.InvalidParameterValue)):
                connection.execute(statement)


# What the server keeps from every login, where an installation grants nothing else.
SERVERS = {
    "a program": "COPY (SELECT 1) TO PROGRAM 'true'",
    "a file": "COPY (SELECT 1) TO '/tmp/loracomp-out'",
    "reading a file": "SELECT pg_read_file('postgresql.conf')",
    "a folder": "SELECT pg_ls_dir('.')",
    "a file as a large object": "SELECT lo_import('/etc/hostname')",
    "a library": "LOAD '/tmp/mine.so'",
    "C": "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE c AS '/tmp/mine.so'",
    "an extension": "ALTER EXTENSION vector UPDATE",
    "a schema": "CREATE SCHEMA mine",
    "a table in public": "CREATE TABLE public.mine ()",
    "a publication": "CREATE PUBLICATION mine",
    "a way to other servers": "CREATE FOREIGN DATA WRAPPER mine",
    "a replication slot": "SELECT pg_create_logical_replication_slot('mine', 'pgoutput')",
    "the log": "SET log_statement = 'all'",
    "triggers off": "SET session_replication_role = 'replica'",
    "the server's settings": "ALTER SYSTEM SET work_mem = '1MB'",
    "a database's settings": "ALTER DATABASE postgres SET work_mem = '1MB'",
    "another's settings": "ALTER ROLE postgres SET search_path = 'pg_temp'",
    "a group's settings": "ALTER ROLE loracomp_worker SET search_path = 'pg_temp'",
    "rights of what others will make": "ALTER DEFAULT PRIVILEGES FOR ROLE postgres GRANT SELECT ON TABLES TO PUBLIC",
    "leakproof": "CREATE FUNCTION pg_temp.f(text) RETURNS boolean LANGUAGE sql LEAKPROOF RETURN true",
    "an event trigger": "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION loracomp.place_job()",
    "ending another": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
    "statistics as they are": "SELECT stavalues1 FROM pg_statistic",
    "extended statistics": "SELECT stxdmcv FROM pg_statistic_ext_data",
    "others' large objects": "SELECT loid FROM pg_largeobject",
    "passwords": "SELECT rolpassword FROM pg_authid",
}


@pytest.mark.parametrize("name", ["alice", "wendy", "ana", "adam", "nobody"])
def test_nobody_reaches_the_server_behind_the_database(scene: Scene, name: str) -> None:
    with scene.connect(name) as connection:
        for what, statement in SERVERS.items():
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode())
                pytest.fail(what)


@pytest.mark.parametrize("name", ["alice", "wendy", "ana", "adam", "nobody"])
def test_nobody_reads_what_another_asks(scene: Scene, name: str) -> None:
    scene.owner.execute("SELECT 'a SECRET of the owner'")
    with scene.connect(name) as connection:
        shown = "SELECT DISTINCT query FROM pg_stat_activity WHERE usename = 'postgres' AND query <> ''"
        assert values(connection, shown) == {"<insufficient privilege>"}


@pytest.mark.parametrize("name", ["alice", "wendy", "ana", "adam", "nobody"])
def test_a_temporary_table_of_that_name_is_not_taken_for_ours(scene: Scene, name: str) -> None:
    """Ours are named with their schema, or by a path that has pg_temp last."""
    calls = {
        "alice": "SELECT status FROM loracomp.job_result WHERE job_id = {job}",
        "wendy": "SELECT name FROM loracomp.show_encoder()",
        "ana": "SELECT policy FROM bi.prediction WHERE job_id = {job}",
        "adam": "SELECT name FROM loracomp.policy_with('default')",
        "nobody": "SELECT 1",
    }
    with scene.connect(name) as connection:
        tables = values(scene.owner, "SELECT relname FROM pg_class WHERE relnamespace = 'loracomp'::regnamespace")
        call = calls[name].format(job=scene.alices)
        before = connection.execute(call.encode()).fetchall()
        for table in tables:
            make = sql.SQL("CREATE TEMP VIEW {} AS SELECT 'forged' AS name").format(sql.Identifier(table))
            connection.execute(make)
        assert connection.execute(call.encode()).fetchall() == before


# Submitters.


def test_a_copy_gives_a_submitter_its_own_rows(scene: Scene) -> None:
    queries = ("SELECT prompt FROM loracomp.job", "SELECT output, job_id FROM loracomp.prediction")
    with scene.connect("alice") as alice, alice.cursor() as cursor:
        for query in queries:
            with cursor.copy(f"COPY ({query}) TO STDOUT".encode()) as copy:
                text = b"".join(copy).decode()
            assert "SECRET" in text
            assert "bob" not in text
            assert str(scene.bobs) not in text.split()


FORGERIES = {
    "a function that says who it is": "CREATE FUNCTION pg_temp.caller() RETURNS name LANGUAGE sql RETURN 'x'::name",
    "a setting": "SET loracomp.caller = 'postgres'",
    "another session_user": "SELECT set_config('session_authorization', 'postgres', false)",
    "an event": "SELECT loracomp.audit_job_update()",
    "a reason": "SELECT loracomp.give_reason('forged')",
    "purging": "SET loracomp.purging = 'on'; DELETE FROM loracomp.audit_event",
    "replica": "SET session_replication_role = 'replica'",
    "a view of mine over theirs": "CREATE VIEW loracomp.mine AS SELECT * FROM loracomp.job",
    "a rule": "CREATE RULE r AS ON INSERT TO loracomp.job DO ALSO SELECT 1",
    "statistics": "CREATE STATISTICS loracomp.s ON prompt, status FROM loracomp.job",
    "analyze": "ANALYZE loracomp.job; SELECT most_common_vals FROM pg_stats WHERE tablename = 'job' AND 1 / 0 = 1",
    "masks": "SELECT * FROM loracomp.task_mask",
    "a merge": "MERGE INTO loracomp.job USING (VALUES (1)) AS v (id) ON true WHEN MATCHED THEN UPDATE SET priority = 0",
    "an upsert": "INSERT INTO loracomp.job (prompt, idempotency_key) VALUES ('x', 'alice''s key')"
    " ON CONFLICT ON CONSTRAINT idempotency_key_was_used_before DO UPDATE SET prompt = 'y'",
}


@pytest.mark.parametrize("statement", FORGERIES.values(), ids=FORGERIES)
def test_submitters_forge_nothing(scene: Scene, statement: str) -> None:
    """Refused, or without effect: alice still acts as alice, on her own jobs."""
    before = values(scene.owner, "SELECT count(*) FROM loracomp.audit_event")
    with scene.connect("alice") as alice:
        try:
            alice.execute(statement)
        except (errors.InsufficientPrivilege, errors.DivisionByZero, errors.FeatureNotSupported, errors.SyntaxError):
            alice.rollback()
        with pytest.raises(errors.NoDataFound):
            alice.execute(f"SELECT loracomp.cancel_job({scene.bobs})")
        assert values(alice, "SELECT submitted_by FROM loracomp.job") == {login("alice")}
    assert values(scene.owner, "SELECT count(*) FROM loracomp.audit_event") == before


def test_a_conflict_or_error_tells_nothing_of_anothers_key(scene: Scene) -> None:
    """Same outcome, whether somebody else has used the key or not; and no detail of a row."""
    with scene.connect("bob") as bob:
        for key in ("alice's key", "nobody's key"):
            job_id = submit(bob, "b", idempotency_key=key, run_at="3000-01-01")
            with pytest.raises(errors.UniqueViolation) as caught:
                submit(bob, "b", idempotency_key=key)
            assert login("alice") not in str(caught.value)
            bob.execute(f"SELECT loracomp.cancel_job({job_id})")
            scene.owner.execute("DELETE FROM loracomp.job WHERE id = %s", [job_id])


def test_an_error_shows_no_text_of_others(scene: Scene) -> None:
    """Division by the length of a text, a cast of it: errors quote what they fail on."""
    with scene.connect("alice") as alice:
        for expression in ("prompt::int", "(tags ->> 'x')::int + length(prompt) / 0", "choices[1]::date::text"):
            with pytest.raises(psycopg.DataError) as caught:
                alice.execute(f"SELECT {expression} FROM loracomp.job WHERE prompt LIKE '%%SECRET%%'".encode())
            assert "bob" not in str(caught.value)


def test_no_text_of_a_submitter_commands_an_administrators_terminal(database: str, logins: None) -> None:
    """By escape sequences, or turned round: in words, and in the tables of the command line."""
    evil = "\x1b]0;mine\x07 \x9b2J \u202etxet"
    with db.connect(database) as owner, connect(database, "alice") as alice, connect(database, "adam") as adam:
        load(owner)
        job_id = submit(alice, f"x {evil}", choices=["yes", evil])
        alice.execute("SELECT loracomp.cancel_job(%s, %s)", [job_id, evil])
        told = value(adam, "SELECT loracomp.explain_job(%s)", [job_id])
        assert "x \ufffd]0;mine\ufffd" in told
        for text in (told, shown(evil), shown([evil])):
            assert not any(unicodedata.category(character) in {"Cc", "Cf"} for character in text.replace("\n", ""))


def test_a_hidden_task_and_none_are_the_same_to_exclude_tasks(database: str, logins: None) -> None:
    with db.connect(database) as owner:
        load(owner)
        add_examples(owner, "secret", reader_role=login("readers"))
    messages = set()
    with connect(database, "alice") as alice, connect(database, "ana") as ana:
        for name in ("secret", "Secret", "no such"):
            with pytest.raises(errors.ForeignKeyViolation) as caught:
                submit(alice, exclude_tasks=[name])
            messages.add(str(caught.value.diag.message_primary).replace(name, "NAME"))
        for name in ("secret", "Secret", "no such"):
            with pytest.raises(errors.ForeignKeyViolation) as refused:
                ana.execute(
                    "SELECT loracomp.route(array_fill(1, '{832}')::public.vector, exclude_tasks => %s)", [[name]]
                )
            messages.add(str(refused.value.diag.message_primary).replace(name, "NAME"))
    assert messages == {"exclude_tasks names tasks that do not exist: NAME"}


# Workers.


def test_a_workers_login_gives_no_reasons_of_its_own(database: str, logins: None) -> None:
    with db.connect(database) as owner, connect(database, "wendy") as wendy:
        load(owner)
        job_id = submit(owner)
        wendy.execute("SET loracomp.reason = 'the administrator said so'")
        wendy.execute("SET loracomp.purging = 'on'")
        for call in ("release_jobs('{%s}', '{%s}')", "fail_jobs('{%s}', '{%s}', '{code}', '{words}', '{f}')"):
            token = claim(wendy, job_id)[job_id]
            wendy.execute(f"SELECT loracomp.{call % (job_id, token)}".encode())
        events = "SELECT reason FROM loracomp.audit_event WHERE entity = 'job' AND entity_id = %s ORDER BY id"
        rows = owner.execute(events, [job_id]).fetchall()
        assert [row["reason"] for row in rows] == [None, "released", None, "code"]


def test_a_submitters_words_are_no_part_of_the_audit(database: str, logins: None) -> None:
    with db.connect(database) as owner, connect(database, "alice") as alice:
        load(owner)
        job_id = submit(alice)
        alice.execute("SET loracomp.reason = 'PRIVATE'")
        alice.execute("SELECT loracomp.cancel_job(%s, 'PRIVATE words')", [job_id])
        assert value(alice, "SELECT error FROM loracomp.job_result") == "PRIVATE words"
        event = one(owner, "SELECT * FROM loracomp.audit_event WHERE entity = 'job' AND entity_id = %s", [job_id])
        assert (event["actor"], event["reason"]) == (login("alice"), "cancelled")
        assert "PRIVATE" not in str(event)


WORKERS = {
    "a job": "INSERT INTO loracomp.job (prompt) VALUES ('x')",
    "a prediction": "UPDATE loracomp.prediction SET output = 'x'",
    "weights": "SELECT bytes FROM loracomp.adapter_part",
    "other weights": "UPDATE loracomp.adapter_part SET bytes = ''",
    "examples": "SELECT prompt FROM loracomp.example",
    "embeddings": "SELECT embedding FROM loracomp.example_embedding",
    "the audit": "SELECT FROM loracomp.audit_event",
    "bi": "SELECT FROM bi.prediction",
    "purge": "SELECT loracomp.purge_jobs('0', force => true)",
    "erase": "SELECT loracomp.erase_jobs('{1}'::bigint[])",
    "policies": "SELECT loracomp.set_policy('default', '{}')",
    "cancel": "SELECT loracomp.cancel_job(1)",
    "routing as somebody": "SELECT loracomp.route(array_fill(1, '{832}')::public.vector)",
    "numbers": "SELECT nextval('loracomp.job_id_seq')",
    "eligible tasks": "SELECT loracomp.usable_tasks('toy', 'postgres', FALSE)",
}


@pytest.mark.parametrize("statement", WORKERS.values(), ids=WORKERS)
def test_workers_cannot(scene: Scene, statement: str) -> None:
    with scene.connect("wendy") as wendy, pytest.raises(errors.InsufficientPrivilege):
        wendy.execute(statement)


def test_a_worker_without_the_fence_changes_nothing(scene: Scene) -> None:
    with scene.connect("wendy") as wendy:
        for call in (
            f"release_jobs('{{{scene.waiting}}}', '{{1}}')",
            f"renew_leases('{{{scene.waiting}}}', '{{1}}', '1 day')",
            f"fail_jobs('{{{scene.waiting}}}', '{{1}}', '{{x}}', '{{x}}', '{{f}}')",
        ):
            assert values(wendy, f"SELECT loracomp.{call}") == set()
        assert record(wendy, {scene.alices: 1}, [prediction_row(scene.alices, output="forged")]) == set()


def test_a_worker_shows_an_answer_to_nobody_but_its_submitter(database: str, logins: None) -> None:
    with db.connect(database) as owner, connect(database, "alice") as alice, connect(database, "bob") as bob:
        examples = load(owner)
        job_id = submit(bob)
        answer(owner, job_id, examples)
        assert values(alice, "SELECT job_id FROM loracomp.prediction") == set()
        assert values(bob, "SELECT job_id FROM loracomp.prediction") == {job_id}


def test_a_worker_overwrites_no_report_of_another_logins_worker(database: str, logins: None) -> None:
    with db.connect(database) as owner, connect(database, "wendy") as wendy:
        owner.execute(QUERIES["report_worker"], REPORT)
        with pytest.raises(errors.InsufficientPrivilege, match="a worker of the name w, of login postgres, is running"):
            wendy.execute(QUERIES["report_worker"], {**REPORT, "host": "elsewhere"})
        assert values(owner, "SELECT host FROM loracomp.worker") == {"here"}
        for gone in ("status = 'stopped'", "status = 'idle', seen_at = now() - interval '2 minutes'"):
            owner.execute(f"UPDATE loracomp.worker SET login = 'postgres', {gone}".encode())
            wendy.execute(QUERIES["report_worker"], {**REPORT, "host": gone})
            assert values(owner, "SELECT host FROM loracomp.worker") == {gone}


def test_a_submitter_reads_only_examples_that_its_jobs_retrieved(database: str, logins: None) -> None:
    """A submitter can't list other examples by counting ids either."""
    with db.connect(database) as owner, connect(database, "alice") as alice, connect(database, "bob") as bob:
        examples = load(owner)
        retrieved = dict(list(examples.items())[:1])
        job_id = submit(alice)
        answer(owner, job_id, retrieved)
        count = (
            "SELECT x.id FROM generate_series(0, 100) AS x (id), generate_series(0, 100) AS j (id)"
            " CROSS JOIN LATERAL loracomp.readable_example(j.id, x.id)"
        )
        assert values(alice, count) == set(retrieved.values())
        assert values(bob, count) == set()
        texts = "SELECT prompt FROM loracomp.retrieved_example WHERE job_id = %s"
        assert values(alice, texts, [job_id]) == {"Does it rain in example 1 of rte?"}


def test_a_worker_guesses_no_token_of_another(database: str, logins: None) -> None:
    """By counting from its own, for every job at once."""
    with db.connect(database) as owner, connect(database, "wendy") as wendy:
        load(owner)
        theirs = submit(owner)
        claim(owner, theirs)
        own = submit(owner)
        token = claim(wendy, own)[own]
        guesses = [guess for guess in range(token - 1000, token + 1000) if guess != token and abs(guess) < 2**63]
        words, retries = ["forged"] * len(guesses), [False] * len(guesses)
        given = [[theirs] * len(guesses), guesses, words, words, retries]
        assert values(wendy, "SELECT loracomp.fail_jobs(%s, %s, %s, %s, %s)", given) == set()
        assert value(owner, "SELECT status FROM loracomp.job WHERE id = %s", [theirs]) == "running"


@pytest.mark.parametrize(
    "write",
    [
        "renew_leases(%(ids)s, %(tokens)s, '5 minutes')",
        "record_predictions",
        "fail_jobs(%(ids)s, %(tokens)s, %(words)s, %(words)s, %(retries)s)",
        "release_jobs(%(ids)s, %(tokens)s)",
    ],
)
def test_a_submitter_holds_up_no_worker(database: str, logins: None, write: str) -> None:
    """By a transaction that it leaves open after it has cancelled a job of a batch: others' jobs go on."""
    with db.connect(database) as owner, connect(database, "alice") as alice, connect(database, "bob") as bob:
        load(owner)
        mine, theirs = submit(alice), submit(bob)
        tokens = claim(owner, mine, theirs)
        given = {
            "ids": list(tokens),
            "tokens": list(tokens.values()),
            "words": ["broken", "broken"],
            "retries": [False, False],
        }
        with alice.transaction(force_rollback=True):
            alice.execute("SELECT loracomp.cancel_job(%s)", [mine])
            with connect(database, "wendy") as wendy:
                wendy.execute("SET statement_timeout = '60s'")
                if write == "record_predictions":
                    written = record(wendy, tokens, [prediction_row(job_id) for job_id in tokens])
                else:
                    written = values(wendy, f"SELECT loracomp.{write}", given)
            # What is only renewed may be written still, if the cancelling comes to nothing.
            assert written == ({mine, theirs} if write.startswith("renew") else {theirs})
        held = (
            "SELECT id FROM loracomp.job WHERE status = 'running' AND lease_expires_at > now() + interval '3 minutes'"
        )
        assert values(owner, held) == ({theirs} if write.startswith("renew") else set())
        running = values(owner, "SELECT id FROM loracomp.job WHERE status = 'running'")
        assert running == ({mine, theirs} if write.startswith("renew") else {mine})


def test_a_write_waits_for_a_heartbeat(database: str, logins: None) -> None:
    """Which holds the same rows for a moment: no result is dropped for it."""
    with db.connect(database) as owner, db.connect(database) as heart, connect(database, "wendy") as wendy:
        load(owner)
        job_ids = [submit(owner), submit(owner)]
        tokens = claim(wendy, *job_ids)
        given = [list(tokens), list(tokens.values())]
        with ThreadPoolExecutor(1) as pool, heart.transaction():
            heart.execute("SELECT loracomp.renew_leases(%s, %s, '1 minute')", given)
            released = pool.submit(values, wendy, "SELECT loracomp.release_jobs(%s, %s)", given)
            wait_for_a_lock(heart)
        assert released.result() == set(job_ids)


# Analysts.


def test_an_analyst_learns_no_hidden_tasks_name(database: str, logins: None) -> None:
    """In every view of bi and every function, under its name now and the one it had; members and administrators do."""
    with db.connect(database) as owner:
        examples = load(owner)
        hidden = add_examples(owner, "SECRET-old", reader_role=login("readers"))
        for policy in ("default", "own_task", "base", "measured"):
            asked = {"task": "SECRET-old", "expected": "yes", "example_id": 1, "policy": policy}
            job_id = submit(owner, choices=["yes", "no"], **asked)
            both = {"tasks": ["SECRET-old", "mnli"], "composed_tasks": ["SECRET-old", "mnli"]}
            scored = {"choice_index": 1, "choice_scores": [-1.0, -2.0], **one(owner, POLICY, [policy])}
            gains = {"expected_gains": [0.5, 0.25]} if policy == "measured" else {}
            answer(owner, job_id, {**hidden, **examples}, **both, **scored, **gains)
        owner.execute(
            "INSERT INTO loracomp.measurement (example_id, base_model_id, task_id, choice_normalization, base_score,"
            " base_is_right, adapter_ids, gains, are_right)"
            " SELECT e.id, b.id, e.task_id, 'tokens', -1, true, array_agg(a.id), array_agg(0.5), array_agg(true)"
            " FROM loracomp.example AS e CROSS JOIN loracomp.base_model AS b CROSS JOIN loracomp.adapter AS a"
            " GROUP BY e.id, b.id"
        )
        owner.execute("UPDATE loracomp.task SET name = 'SECRET-new' WHERE name = 'SECRET-old'")
        owner.execute("SELECT loracomp.refresh_reports()")
        relations = values(owner, "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'bi'::regnamespace")
        seen = {}
        for name in ("ana", "adam", "member"):
            if name == "member":
                owner.execute(f"GRANT {login('readers')} TO {login('ana')}")
            with connect(database, name.replace("member", "ana")) as reader:
                texts = [str(reader.execute(f"SELECT * FROM {r}".encode()).fetchall()) for r in relations]
                seen[name] = sum("SECRET" in text for text in texts)
                if name == "ana":
                    assert values(reader, "SELECT composition FROM bi.prediction") == {"hidden task 3 0.62 + mnli 0.38"}
                    assert "hidden adapter 3" in values(reader, "SELECT adapter FROM bi.composed_adapter")
                    assert "hidden adapter 3" in values(reader, "SELECT adapter FROM bi.transfer")
                    assert "hidden task 3" in values(reader, "SELECT task FROM bi.transfer")
        owner.execute(f"REVOKE {login('readers')} FROM {login('ana')}")
        assert seen["ana"] == 0
        assert seen["adam"] == seen["member"] > 6


ANALYSTS = {
    "traces": "SELECT example_tasks FROM loracomp.prediction",
    "jobs": "SELECT prompt FROM loracomp.job",
    "tasks": "SELECT name FROM loracomp.task",
    "masks": "SELECT * FROM loracomp.task_mask",
    "routing of jobs": "SELECT loracomp.route_jobs('{1}', '{}')",
    "a table of its own in bi": "CREATE TABLE bi.mine ()",
    "a function of its own in bi": "CREATE FUNCTION bi.mine() RETURNS int LANGUAGE sql RETURN 1",
    "refresh": "SELECT loracomp.roll_up('{}')",
    "jobs of its own": "INSERT INTO loracomp.job (prompt) VALUES ('x')",
}


@pytest.mark.parametrize("statement", ANALYSTS.values(), ids=ANALYSTS)
def test_analysts_cannot(scene: Scene, statement: str) -> None:
    with scene.connect("ana") as ana, pytest.raises((errors.InsufficientPrivilege, errors.UndefinedTable)):
        ana.execute(statement)


# Administrators.

ADMINS = {
    "an event": "INSERT INTO loracomp.audit_event (entity, action) VALUES ('policy', 'update')",
    "no triggers": "ALTER TABLE loracomp.policy DISABLE TRIGGER audit_row",
    "replica": "SET session_replication_role = 'replica'",
    "no audit": "TRUNCATE loracomp.audit_event",
    "a job's events": "SET loracomp.purging = 'on'; DELETE FROM loracomp.audit_event WHERE entity = 'job'",
    "an adapter's weights": "UPDATE loracomp.adapter_part SET bytes = ''",
    "a job as another": "INSERT INTO loracomp.job (prompt, submitted_by) VALUES ('x', 'postgres')",
    "members of a role": "GRANT loracomp_admin TO loracomp_submitter",
    "the owner's functions": "CREATE OR REPLACE FUNCTION loracomp.caller() RETURNS name LANGUAGE sql RETURN 'x'::name",
    "a server's file": "COPY loracomp.policy TO '/tmp/policy'",
}


@pytest.mark.parametrize("statement", ADMINS.values(), ids=ADMINS)
def test_administrators_cannot_either(scene: Scene, statement: str) -> None:
    with scene.connect("adam") as adam, pytest.raises(errors.InsufficientPrivilege):
        adam.execute(statement)


def test_an_administrator_hides_behind_no_role(database: str, logins: None) -> None:
    """A role that all administrators share, and one that somebody is behind for whom the login acts on purpose."""
    with db.connect(database) as owner, connect(database, "adam") as adam, connect(database, "pool") as pool:
        load(owner)
        adam.execute("SELECT loracomp.set_policy('default', '{\"k\": 8}')")
        adam.execute("SET ROLE loracomp_admin")
        adam.execute("SELECT loracomp.set_policy('default', '{\"k\": 7}')")
        pool.execute(f"SET ROLE {login('alice')}")
        pool.execute("SELECT loracomp.cancel_job(%s)", [submit(pool)])
        events = (
            "SELECT actor, login FROM loracomp.audit_event WHERE entity IN ('policy', 'job') ORDER BY id DESC LIMIT 3"
        )
        assert [tuple(row.values()) for row in owner.execute(events)] == [
            (login("alice"), login("pool")),
            ("loracomp_admin", login("adam")),
            (login("adam"), None),
        ]


def test_an_administrator_passes_no_erasure_off_as_a_purge(database: str, logins: None) -> None:
    with db.connect(database) as owner, connect(database, "adam") as adam, connect(database, "alice") as alice:
        load(owner)
        asked = {"task": "rte", "expected": "yes", "example_id": 1}
        jobs = [submit(alice), submit(owner, choices=["yes", "no"], **asked)]
        adam.execute("SET loracomp.purging = 'on'")
        adam.execute("SELECT loracomp.erase_submitter(%s)", [login("alice")])
        adam.execute("SELECT loracomp.erase_example(1)")
        events = "SELECT entity_id, actor, reason FROM loracomp.audit_event WHERE entity = 'job' AND action = 'delete'"
        assert [tuple(row.values()) for row in owner.execute(events)] == [
            (jobs[0], login("adam"), "erase_submitter"),
            (jobs[1], login("adam"), "erase_example"),
            (None, login("adam"), "erase_example"),
        ]

"""What an administrator meets in the first hour: tasks and adapters changed by name, warnings, files, tables."""

import gzip
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console

from job_data import REPORT, add_base_model, add_jobs
from loracomp.cli import common, demo
from loracomp.cli.brief import brief
from loracomp.config import load_settings, unknown_variables
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError, RefusedError
from loracomp.registry.adapter_store import stage_adapter
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.example_files import files_of, read_lines
from people_data import ADD_EXAMPLE, answer, load, submit
from people_fixtures import value
from registry_data import registered, write_adapter
from worker_helpers import wait_until

# --- tasks


def test_a_mistyped_task_is_not_taken_for_one_without_measurements(connection: Connection):
    load(connection)
    assert connection.execute("SELECT * FROM loracomp.list_measurements('rte')").fetchall() == []
    assert connection.execute("SELECT * FROM loracomp.list_measurements()").fetchall() == []
    with pytest.raises(psycopg.errors.NoDataFound, match="task rtee does not exist"):
        connection.execute("SELECT * FROM loracomp.list_measurements('rtee')")


def test_a_task_that_something_needs_is_deleted_by_force_alone(connection: Connection):
    examples = load(connection)
    answer(connection, submit(connection), examples)
    delete = "SELECT * FROM loracomp.delete_task('rte')"
    with pytest.raises(psycopg.errors.RaiseException, match="task rte has an active adapter"):
        connection.execute(delete)
    connection.execute("SELECT loracomp.retire_adapter('rte')")
    with pytest.raises(psycopg.errors.RaiseException, match="the traces of 1 jobs refer to task rte"):
        connection.execute(delete)
    said = connection.execute("SELECT * FROM loracomp.delete_task('rte', force => true)").fetchall()
    assert {row["what"]: row["rows"] for row in said} == {
        "examples deleted": 2,
        "adapters deleted": 1,
        "traces kept, which name it": 1,
    }
    left = {
        table: value(connection, f"SELECT count(*) FROM loracomp.{table}") for table in ("task", "example", "adapter")
    }
    assert left == {"task": 1, "example": 2, "adapter": 1}


def test_an_adapter_that_something_needs_is_deleted_by_force_alone(run: Any, connection: Connection):
    examples = load(connection)
    job = submit(connection)
    rte = value(connection, "SELECT id FROM loracomp.adapter WHERE name = 'rte'")
    answer(connection, job, examples)
    connection.execute("UPDATE loracomp.prediction SET adapter_ids[1] = %s", [rte])
    with pytest.raises(
        RefusedError, match="adapter rte@1 is active and is used in the traces of 1 jobs, which could not"
    ):
        run("adapter", "delete", "rte")
    run("adapter", "retire", "rte")
    with pytest.raises(RefusedError, match=r"adapter rte@1 is used in the traces of 1 jobs, .*: retire it"):
        run("adapter", "delete", "rte@1")
    said = {row["what"]: row["rows"] for row in run("adapter", "delete", "rte@1", "--force")}
    assert said == {"adapters deleted": 1, "traces kept, which name it": 1, "jobs kept, which were to measure it": 0}
    assert [row["adapter"] for row in run("adapter", "list")] == ["mnli@1"]
    deleted = (
        "SELECT count(*) FROM loracomp.audit_event WHERE entity = 'adapter' AND action = 'delete' AND entity_id = %s"
    )
    assert value(connection, deleted, [rte]) == 1


def test_a_task_that_nothing_needs_is_deleted(run: Any, connection: Connection):
    load(connection)
    connection.execute("SELECT loracomp.retire_adapter('rte')")
    assert {row["what"]: row["rows"] for row in run("task", "delete", "rte")}["examples deleted"] == 2
    assert [row["name"] for row in run("task", "list")] == ["mnli"]
    with pytest.raises(NotFoundError, match="task rte does not exist"):
        run("task", "delete", "rte", "--force")


def test_examples_are_deleted_by_split(connection: Connection):
    load(connection)
    connection.execute("UPDATE loracomp.example SET split = 'test' WHERE source_ref = 'rte/train#1'")
    assert value(connection, "SELECT loracomp.delete_examples('rte', 'train')") == 1
    assert value(connection, "SELECT loracomp.delete_examples('rte')") == 1
    assert value(connection, "SELECT count(*) FROM loracomp.example") == 2
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="split must be train, validation or test, not dev"):
        connection.execute("SELECT loracomp.delete_examples('rte', 'dev')")


# --- adapters


@pytest.fixture
def two_versions(connection: Connection, tmp_path: Path) -> Connection:
    registered(connection, "rte")
    for seed in (1, 2):
        write_adapter(tmp_path / str(seed), seed=seed)
        stage_adapter(connection, tmp_path / str(seed), task="rte")
    return connection


def active(connection: Connection) -> set[str]:
    return {row["label"] for row in connection.execute("SELECT * FROM bi.dim_adapter") if row["status"] == "active"}


def test_an_adapter_is_activated_and_retired_by_name_by_version_and_by_number(two_versions: Connection):
    connection = two_versions
    ids = {row["label"]: row["adapter_id"] for row in connection.execute("SELECT * FROM bi.dim_adapter")}
    for call, now_active in (
        ("activate_adapter('rte@1')", {"rte@1"}),
        ("activate_adapter('rte')", {"rte@2"}),
        (f"activate_adapter('{ids['rte@1']}')", {"rte@1"}),
        ("retire_adapter('rte@1', base_model => 'tiny')", set()),
    ):
        connection.execute(f"SELECT loracomp.{call}".encode())
        assert active(connection) == now_active
    with pytest.raises(psycopg.errors.NoDataFound, match="base model tiny has no adapter rte@3"):
        connection.execute("SELECT loracomp.activate_adapter('rte@3')")


NEVER = "its task has no embedded example"
UNMEASURED = "no example is measured under both"


def test_activating_what_is_unmeasured_or_unused_warns(two_versions: Connection):
    """Each, in each form of the call, by whoever may call it, and again when a retired one comes back."""
    connection = two_versions
    heard: list[tuple[str | None, ...]] = []
    connection.add_notice_handler(lambda n: heard.append((n.severity, n.message_primary, n.message_hint)))
    for call, sentences in {
        "'rte@1'": [
            ("rte@1 is not compared with the base model", UNMEASURED, "loracomp task measure"),
            ("rte@1 is never retrieved", NEVER, "loracomp task import"),
        ],
        "'rte'": [
            ("rte@2 is not compared with rte@1", UNMEASURED, "adapter measure"),
            ("rte@2 is never", NEVER, "task import"),
        ],
        "'rte@1', base_model => 'tiny'": [("rte@1 is not compared", UNMEASURED, ""), ("rte@1 is never", NEVER, "")],
        "'rte@1', force => true": [],  # it is active already
    }.items():
        heard.clear()
        connection.execute("SET ROLE loracomp_admin")
        connection.execute(f"SELECT loracomp.activate_adapter({call})".encode())
        connection.execute("RESET ROLE")
        assert [severity for severity, _, _ in heard] == ["WARNING"] * len(sentences)
        for (_, message, hint), (start, reason, way_out) in zip(heard, sentences, strict=True):
            assert message and message.startswith(f"adapter {start}") and reason in message
            assert way_out in (hint or "")


def test_an_adapter_that_helps_on_retrieved_examples_is_not_warned_of(two_versions: Connection):
    heard: list[Any] = []
    example = {"task": "rte", "prompt": "a", "label": "b", "source_ref": "rte/train#1"}
    two_versions.execute(ADD_EXAMPLE, example)
    two_versions.execute(
        "INSERT INTO loracomp.example_embedding SELECT id, task_id, array_fill(1, '{832}')::vector "
        "FROM loracomp.example"
    )
    two_versions.execute(
        "INSERT INTO loracomp.measurement (example_id, base_model_id, task_id, choice_normalization, base_score,"
        " adapter_ids, gains, are_right, chat_template)"
        " SELECT e.id, a.base_model_id, e.task_id, 'tokens', -1, ARRAY[a.id], '{0.5}', '{NULL}', false"
        " FROM loracomp.example AS e, loracomp.adapter AS a WHERE a.version = 2"
    )
    two_versions.add_notice_handler(heard.append)
    two_versions.execute("SELECT loracomp.activate_adapter('rte')")
    assert heard == [] and active(two_versions) == {"rte@2"}


def test_the_command_line_shows_what_the_database_warns_of(
    run: Any, two_versions: Connection, monkeypatch: pytest.MonkeyPatch
):
    warned: list[str] = []
    monkeypatch.setattr(common, "warn", warned.append)
    run("adapter", "activate", "rte@1")
    unmeasured, unused = warned
    assert unmeasured.startswith("adapter rte@1 is not compared with the base model") and "task measure" in unmeasured
    assert unused.startswith("adapter rte@1 is never retrieved") and "loracomp task import" in unused


# --- measuring


@pytest.fixture
def administrator(connection: Connection, database: str) -> Iterator[str]:
    """URL of a login that administers, and may not run a worker."""
    name = f"administrator_{os.getpid()}"
    connection.execute(f"CREATE ROLE {name} LOGIN IN ROLE loracomp_admin".encode())
    yield psycopg.conninfo.make_conninfo(database, user=name)
    connection.execute(f"DROP ROLE {name}".encode())


def test_measuring_waits_for_a_worker_where_the_login_may_not_answer_itself(
    run: Any, connection: Connection, database: str, administrator: str, monkeypatch: pytest.MonkeyPatch
):
    load(connection)
    connection.execute("UPDATE loracomp.example SET split = 'test'")
    monkeypatch.setenv("LORACOMP_DATABASE_URL", administrator)
    said = io.StringIO()
    monkeypatch.setattr(common, "remarks", Console(file=said, width=200))

    def report_a_worker_and_end_all() -> None:
        with db.connect(database) as own:
            wait_until(lambda: "no worker" in said.getvalue())
            own.execute(QUERIES["report_worker"], {**REPORT, "base_model": "toy"})
            wait_until(lambda: "(1 running)" in said.getvalue())
            own.execute("SELECT loracomp.cancel_job(id) FROM loracomp.job WHERE status = 'queued'")

    with ThreadPoolExecutor(1) as executor:
        ending = executor.submit(report_a_worker_and_end_all)
        (measured,) = run("task", "measure", "rte", "--split", "test")
        ending.result(60)
    assert (measured["added"], measured["queued"]) == (2, 0)
    assert said.getvalue().splitlines()[:2] == [
        "2 jobs wait: no worker of toy is running, and this login may not run one: start `loracomp worker` with "
        "a login "
        "that may (a member of loracomp_worker). Ctrl-C leaves the jobs in the queue",
        "2 jobs wait: the workers of toy (1 running) take them when no everyday job is due",
    ]


# --- policies


def test_a_policy_that_something_needs_is_not_deleted(connection: Connection):
    """Measurements and corrected rows have the policy measured; without it their jobs would be refused."""
    add_base_model(connection)
    connection.execute("SET ROLE loracomp_admin")
    for name in ("default", "measured"):
        with pytest.raises(psycopg.errors.RestrictViolation, match=f"policy {name} can't be deleted, because loracomp"):
            connection.execute("SELECT loracomp.delete_policy(%s)", [name])
    connection.execute("SELECT loracomp.set_policy('mine', '{}')")
    (asked,) = add_jobs(connection, "a", policy="mine")
    with pytest.raises(psycopg.errors.RestrictViolation, match="1 jobs and 0 declarations have policy mine"):
        connection.execute("SELECT loracomp.delete_policy('mine')")
    connection.execute("SELECT loracomp.erase_jobs(%s)", [[asked]])
    connection.execute("SELECT loracomp.delete_policy('mine')")
    with pytest.raises(psycopg.errors.NoDataFound, match="there is no policy mine"):
        connection.execute("SELECT loracomp.delete_policy('mine')")
    connection.execute("RESET ROLE")


def test_set_policy_sets_each_column(connection: Connection):
    """Also one that a later release adds."""
    connection.execute("ALTER TABLE loracomp.policy ADD flavour text")
    connection.execute("""SELECT loracomp.set_policy('mine', '{"flavour": "mint", "k": 5}')""")
    connection.execute("""SELECT loracomp.set_policy('mine', '{"routing_top_p": 0.5}')""")
    row = value(
        connection, "SELECT (p.flavour, p.k, p.routing_top_p)::text FROM loracomp.policy AS p WHERE p.name = 'mine'"
    )
    assert row == "(mint,5,0.5)"


def test_no_column_of_the_health_report_is_a_reserved_word(connection: Connection):
    assert value(connection, "SELECT check_name FROM loracomp.check_health() WHERE check_name = 'server'") == "server"


# --- settings


def test_a_variable_that_is_no_setting_is_named_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORACOMP_BATCHSIZE", "4")
    monkeypatch.setenv("LORACOMP_LEASE_S", "30")
    monkeypatch.setenv("LORACOMP_TEST_SOMETHING", "1")
    (tmp_path / ".env").write_text("LORACOMP_COLOUR=red\nOTHER=1\n")
    assert unknown_variables() == [
        "LORACOMP_BATCHSIZE is not a setting: LORACOMP_BATCH_SIZE is one",
        "LORACOMP_COLOUR is not a setting",
    ]
    assert load_settings().lease_s == 30


def test_an_empty_variable_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home would be the working folder, in which the embedded server would make its database."""
    monkeypatch.setenv("LORACOMP_HOME", "")
    assert load_settings().home.name == "loracomp"


# --- files of examples

ROWS = [
    {"prompt": "Is tea hot?", "choices": ["yes", "no"], "label": "yes"},
    {"prompt": "Is ice\ncold?", "label": "It is.", "split": "test"},
]
AS_CSV = 'prompt,choices,label,split\nIs tea hot?,yes | no,yes,\n"Is ice\ncold?",,It is.,test\n'


def hashes(path: Path) -> list[tuple[bytes, str]]:
    return [(example.content_hash, example.split) for file in files_of(path) for example in read_lines(file, "tea")]


def test_every_kind_of_file_gives_the_same_examples(tmp_path: Path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    files = {
        "tea.jsonl": lines.encode(),
        "bom.jsonl": b"\xef\xbb\xbf" + lines.encode(),
        "tea.jsonl.gz": gzip.compress(lines.encode()),
        "tea.csv": AS_CSV.encode(),
        "bom.csv": b"\xef\xbb\xbf" + AS_CSV.replace("yes | no", '"[""yes"", ""no""]"').encode(),
        "tea.csv.gz": gzip.compress(AS_CSV.replace("\n", "\r\n").replace("Is ice\r\n", "Is ice\n").encode()),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    first, *others = (hashes(tmp_path / name) for name in files)
    assert [split for _, split in first] == ["train", "test"]
    assert others == [first] * (len(files) - 1)


def test_a_folders_files_say_which_split_they_are(tmp_path: Path):
    for name, row in (("train.jsonl", ROWS[0]), ("validation.jsonl", ROWS[0] | {"prompt": "b"}), ("test.csv", None)):
        (tmp_path / name).write_text(json.dumps(row) if row else "prompt,label\nc,d\n")
    (tmp_path / "notes.txt").write_text("not read")
    assert [split for _, split in hashes(tmp_path)] == ["test", "train", "validation"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "question,label\na,b\n", "the first line must name the columns, and lacks prompt"),
        ("a.csv", "", "lacks prompt and label"),
        ("a.csv", "prompt,label\na,b,c\n", "line 2: the line does not have as many cells as the first line"),
        ("a.csv", "prompt,label\na\n", "line 2: the line does not have as many cells as the first line"),
        ("a.csv", 'prompt,label\n"a,b\n', "line 1: not CSV: unexpected end"),
        ("a.csv", "prompt,choices,label\na,[x,a\n", "line 2: choices: .*list"),
        ("a.csv", "prompt,label,answer\na,1,b\n", "line 2: answer: Extra inputs"),
        ("a.csv", "prompt,choices,label\na,b|c,d\n", "line 2: label 'd' is not one of the choices"),
        (
            "a.csv",
            "prompt,label\ncaf\u00e9,a\n".encode("latin-1"),
            "line 2: not UTF-8 .*: save the file as UTF-8",
        ),
        ("a.jsonl.gz", "not packed", "cannot be read"),
        ("a.csv.gz", gzip.compress(b"prompt,label\n\xe9,b\n", mtime=0), "line 2: not UTF-8 .*: save the file as UTF-8"),
        ("a.csv.gz", gzip.compress(AS_CSV.encode(), mtime=0)[:-30] + bytes(30), "cannot be read"),
        ("a.jsonl", "[1]\n", "line 1: a row is a JSON object, not list"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
    ],
)
def test_a_file_that_is_not_right_is_named_with_its_line(tmp_path: Path, name: str, text: str | bytes, says: str):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RefusedError, match=says) as error:
        hashes(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_what_was_looked_for_is_said(run: Any, connection: Connection, database: str, tmp_path: Path, minilm: Any):
    set_encoder(database, minilm)
    connection.execute("SELECT loracomp.add_task('tea')")
    (tmp_path / "tea.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for data, says in (
        ("tea.txt", rf"{tmp_path}/tea.txt exists, but its name has another ending"),
        ("none", rf"a file \(\.jsonl, .*\) or a folder of such files: {tmp_path}/none does not exist"),
        ("none.csv", rf"no file {tmp_path}/none.csv"),
        ("empty", rf"folder {tmp_path}/empty contains no file whose name ends in \.jsonl, "),
    ):
        with pytest.raises(NotFoundError, match=says):
            run("task", "import", "tea", str(tmp_path / data))
    (tmp_path / "empty" / "train.csv").write_text(AS_CSV)
    for splits, says in ((["trian"], "trian"), (["test", "validation"], "test or validation")):
        with pytest.raises(NotFoundError, match=rf"{tmp_path}/empty has no row of split {says}$"):
            run("task", "import", "tea", str(tmp_path / "empty"), *(f"--split={split}" for split in splits))
    assert run("task", "import", "tea", str(tmp_path / "empty")) == [{"task": "tea", "added": 2, "embedded": 1}]
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(NotFoundError, match=rf"{tmp_path}/none.jsonl has no row of split train or validation or test"):
        run("task", "import", "tea", str(tmp_path / "none.jsonl"))


# --- tables

ADAPTER = {"name": "a rather long name", "sha256": "a" * 64, "rank": 8, "words": ["x", "y"], "nothing": None}


def printed(monkeypatch: pytest.MonkeyPatch, width: int, rows: list[dict[str, Any]]) -> str:
    screen = io.StringIO()
    monkeypatch.setattr(common, "console", Console(file=screen, force_terminal=True, width=width, color_system=None))
    common.emit(rows, title="Adapters", as_json=False)
    return screen.getvalue()


def test_a_table_that_fits_is_one_and_another_is_printed_row_by_row(monkeypatch: pytest.MonkeyPatch):
    assert "──" in printed(monkeypatch, 160, [ADAPTER])
    narrow = printed(monkeypatch, 80, [ADAPTER, ADAPTER | {"sha256": "b" * 64}])
    assert "──" not in narrow and max(map(len, narrow.splitlines())) <= 80
    assert f"sha256  {'a' * 64}\n" in narrow and f"sha256  {'b' * 64}\n" in narrow


def test_a_column_that_is_the_same_in_every_row_is_said_once(monkeypatch: pytest.MonkeyPatch):
    said = printed(monkeypatch, 120, [ADAPTER, ADAPTER | {"rank": 16}])
    assert said.endswith(f"In every row: sha256 {'a' * 64}, words x, y, nothing -\n") and "name " in said
    assert "In every row" not in printed(monkeypatch, 160, [ADAPTER])


def test_only_prose_is_wrapped_in_a_table(monkeypatch: pytest.MonkeyPatch):
    rows = [{"name": "n" * 30, "description": "a word and another " * 5}, {"name": "m" * 30, "description": "no"}]
    lines = printed(monkeypatch, 80, rows).splitlines()
    assert max(map(len, lines)) <= 80 and sum("n" * 30 in line for line in lines) == 1 and "──" in lines[2]
    assert "──" not in printed(monkeypatch, 60, rows)


def test_into_a_pipe_goes_a_line_a_row(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common, "console", Console(file=io.StringIO(), width=20))
    common.emit([ADAPTER | {"name": "two\nlines\tand \x1b[31mred"}], title="Adapters", as_json=False)
    name = "two lines\N{REPLACEMENT CHARACTER}and \N{REPLACEMENT CHARACTER}[31mred"
    assert capsys.readouterr().out == (f"name\tsha256\trank\twords\tnothing\n{name}\t{'a' * 64}\t8\tx, y\t\n")


DEMO = {
    "job_id": 1, "prompt": "Is it wet?\nAnswer:", "output": "yes", "error": None, "correct": True, "policy": "default",
    "composition": "rte 1.00", "nearest": "rte 0.91", "fallback": None,
}  # fmt: skip
MANY = " + ".join(f"a_task_{place} 0.11" for place in range(9))


def test_the_demos_answers_fit_a_terminal_and_a_pipe(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    for module in (common, demo):
        monkeypatch.setattr(module, "console", Console(file=io.StringIO(), width=80))
    demo._show([DEMO, DEMO | {"job_id": 2, "correct": None}])
    piped, remarks = capsys.readouterr()
    names, *rows = (line.split("\t") for line in piped.splitlines())
    assert [dict(zip(names, row, strict=True))["job_id"] for row in rows] == ["1", "2"]
    assert "1 of 1 answers are as expected" in remarks and "loracomp explain 1" in remarks
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    for module in (common, demo):
        monkeypatch.setattr(module, "console", screen)
    other = {"prompt": "Is it wet? " * 9, "output": "yes " * 30, "policy": "linear", "correct": False}
    uneven = MANY.replace("0.11", "0.19", 1)
    demo._show([DEMO, DEMO | other | {"composition": uneven}, DEMO | {"composition": MANY}])
    assert isinstance(screen.file, io.StringIO)
    first, second, third, fourth, fifth, sixth = screen.file.getvalue().splitlines()
    assert (first, second) == ("   1  Is it wet?", "   ✓  yes  rte 1.00") and (third[:6], fifth) == (first[:6], first)
    assert fourth.endswith("es yes  a_task_0 0.19 + a_task_1 0.11 + 7 more (policy linear)")
    assert sixth == "   ✓  yes  9 adapters at 0.11 each" and max(len(third), len(fourth)) <= 80


ANSWER = DEMO | {
    "confidence": 0.75, "choices": ["no", "yes", "maybe"], "choice_scores": [-2.0, -0.5, -3.0],
    "label_scores": None, "output_tokens": 1, "finish_reason": None, "closest": None,
}  # fmt: skip


def test_an_answer_in_brief_is_its_confidence_and_three_lines_of_why():
    scores = "yes -0.500, no -2.000"
    assert list(brief(ANSWER)) == [
        "yes  (confidence 0.75)",
        "near    rte 0.91",
        "mix     rte 1.00",
        f"scores  {scores}",
    ]
    assert list(brief(ANSWER | {"label_scores": [0.0, 1.5, 0.0]}))[-1] == f"scores  {scores} (labelled rows included)"
    closest = ANSWER | {"closest": "account: login, passwords, users"}
    assert list(brief(closest))[-1] == "closest account: login, passwords, users"
    text = {"choices": None, "choice_scores": None, "confidence": None, "nearest": None, "finish_reason": "length"}
    alone = text | {"composition": "base model", "fallback": "below min_similarity", "output_tokens": 12}
    assert list(brief(ANSWER | alone)) == [
        "yes", "near    nothing was retrieved", "mix     base model: below min_similarity",
        "text    12 tokens, ended by max_new_tokens",
    ]  # fmt: skip


def test_a_text_keeps_its_lines_in_a_pipe(monkeypatch: pytest.MonkeyPatch):
    for is_terminal in (True, False):
        screen = io.StringIO()
        monkeypatch.setattr(common, "console", Console(file=screen, force_terminal=is_terminal, width=80))
        common.say("Tasks: " + "a word, " * 30)
        assert (len(screen.getvalue().splitlines()) > 1) is is_terminal

"""`loracomp answers`, as a person meets it: real processes on the demo's database."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo_fixtures import execute, run

pytestmark = pytest.mark.model
PROMPT = "Wish: {wish}\nThis is"
# Training on a tenth of the rows that it takes otherwise: these tests are about what goes before and after.
BRIEF = """
from loracomp_lab.training import config
config.ENOUGH_ROWS //= 10
from loracomp.cli import main
main()
"""


@pytest.fixture(scope="module")
def wishes(demo: dict[str, str]) -> Iterator[dict[str, str]]:
    """The demo, with a table of eighteen rows and a declaration over it; without what was trained, at the end."""
    psql(demo, "CREATE TABLE wishes (id integer PRIMARY KEY, wish text)")
    psql(demo, "INSERT INTO wishes SELECT i, format('More tea, number %s', i) FROM generate_series(1, 18) AS i")
    choices = ["--choice", "kind", "--choice", "rude"]
    (declared,) = answers(demo, "create", "wish_tone", "wishes", PROMPT, *choices, "--priority", "5")
    assert declared == {"name": "wish_tone"}
    execute(["loracomp", "worker", "--drain"], demo)
    yield demo
    psql(demo, "SELECT loracomp.delete_task(name, force => true) FROM loracomp.task WHERE name LIKE 'answers/%'")
    # Their adapter is gone, so these jobs could not be replayed.
    psql(demo, "SELECT loracomp.erase_jobs(ids => ARRAY(SELECT id FROM loracomp.job WHERE prompt LIKE '%More tea%'))")
    psql(demo, "DROP VIEW IF EXISTS wish_tone; DROP TABLE wishes")


def psql(demo: dict[str, str], statement: str) -> str:
    return execute(["loracomp", "db", "psql", "-qAtc", statement], demo).strip()


def answers(demo: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    return json.loads(execute(["loracomp", "answers", *arguments, "--json"], demo))


def listed(demo: dict[str, str]) -> dict[str, Any]:
    return next(row for row in answers(demo, "list") if row["name"] == "wish_tone")


def test_what_is_declared_is_listed_within_80_columns(wishes: dict[str, str]) -> None:
    assert listed(wishes)["answered"] == 18
    terminal = wishes | {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "dumb"}
    lines = execute(["loracomp", "answers", "list"], terminal).splitlines()
    assert max(map(len, lines)) <= 80, lines
    assert any("not yet known" in line for line in lines)


TICKETS = {
    "billing": ("The invoice for March shows the wrong amount.", "Please send a receipt with our tax number.",
                "I would like my money back for last month.", "Can we pay by bank transfer?"),
    "technical": ("The app crashes whenever I open the settings.", "The export produces a broken file.",
                  "The search finds nothing, not even exact titles."),
    "account": ("I forgot my password and cannot get in.", "Please change my e-mail address.",
                "Somebody else is logged in under my name."),
}  # fmt: skip


def test_described_choices_are_right_for_nine_of_ten_tickets_of_a_task_that_nobody_trained_for(
    demo: dict[str, str],
) -> None:
    psql(demo, "CREATE TABLE tickets (body text PRIMARY KEY, topic text)")
    rows = [f"('{body}', '{topic}')" for topic, bodies in TICKETS.items() for body in bodies]
    psql(demo, f"INSERT INTO tickets VALUES {', '.join(rows)}")
    meant = ["payments, invoices, prices and refunds", "errors, and things that do not work"]
    meant.append("login, passwords, users and personal data")
    choices = [
        part for topic, words in zip(TICKETS, meant, strict=True) for part in ("--choice", topic, "--describe", words)
    ]
    answers(demo, "create", "ticket_topic", "tickets", "Ticket: {body}\nThis ticket is about", *choices)
    execute(["loracomp", "worker", "--drain"], demo)
    counted = "SELECT count(*) FROM tickets JOIN ticket_topic USING (body) WHERE answer = topic"
    assert int(psql(demo, counted)) >= 9
    (listed,) = [row for row in answers(demo, "list") if row["name"] == "ticket_topic"]
    assert listed["descriptions"] == meant
    asked = json.loads(execute(["loracomp", "ask", "I am locked out.", *choices, "--json"], demo))
    assert (
        asked["output"] == "account" and max(asked["description_similarities"]) == asked["description_similarities"][2]
    )
    psql(demo, "SELECT loracomp.drop_answers('ticket_topic'); DROP TABLE tickets")


def test_the_first_three_prompts_are_tried_without_a_declaration(wishes: dict[str, str]) -> None:
    rows = answers(wishes, "try", "wishes", "{wish}: right?", "--choice", "yes", "--choice", "no", "--policy", "base")
    assert [row["prompt"] for row in rows] == [f"More tea, number {number}: right?" for number in (1, 2, 3)]
    tried = run(
        ["loracomp", "answers", "try", "wishes", "More tea for {id}?", "--choice", "yes", "--choice", "no"], wishes
    )
    assert "18 rows with 18 different prompts; all answers would take about 00:0" in tried.stderr
    assert {row["output"] for row in rows} <= {"yes", "no"}
    assert [row["name"] for row in answers(wishes, "list")].count("wish_tone") == 1
    rows = answers(
        wishes, "try", "wishes", "{wish}", "--choice", "yes", "--choice", "no", "--filter", '{"id": [17, 18]}'
    )
    assert [row["prompt"] for row in rows] == [f"More tea, number {number}" for number in (17, 18)]
    described = ("--choice", "yes", "--choice", "no", "--describe", "agreed", "--describe", "refused")
    answers(wishes, "try", "wishes", "{wish}: right?", *described)
    compared = "SELECT substr(prompt, lower(text_at), upper(text_at) - lower(text_at)) FROM loracomp.job"
    assert psql(wishes, f"{compared} ORDER BY id DESC LIMIT 1") == "More tea, number 3", "as the declaration's jobs do"
    for wrong in ("{id}", "[17]"):
        refused = run(["loracomp", "answers", "try", "wishes", "{wish}", "--filter", wrong], wishes)
        assert refused.returncode == 2 and "--filter" in refused.stderr
    refused = run(["loracomp", "answers", "try", "wishes", "{wsh}"], wishes)
    assert refused.returncode and "has no column wsh" in refused.stderr and "wish" in refused.stderr


def test_a_declaration_is_changed_by_name(wishes: dict[str, str]) -> None:
    refused = run(["loracomp", "answers", "alter", "wish_tone"], wishes)
    assert refused.returncode == 2 and "say what to change" in refused.stderr
    paused = answers(wishes, "alter", "wish_tone", "--pause", "--tags", '{"app": "tea"}')
    assert paused == [{"name": "wish_tone", "state": "paused"}]
    assert listed(wishes)["state"] == "paused"
    answers(wishes, "alter", "wish_tone", "--max-new-tokens", "5")
    assert psql(wishes, "SELECT choices, max_new_tokens FROM loracomp.declaration") == "|5"
    described = ("--describe", "warm words", "--describe", "harsh words")
    answers(wishes, "alter", "wish_tone", "--choice", "kind", "--choice", "rude", *described)
    declared = "SELECT choices, max_new_tokens, descriptions FROM loracomp.declaration"
    assert psql(wishes, declared) == '{kind,rude}||{"warm words","harsh words"}'
    answers(wishes, "alter", "wish_tone", "--resume", "--filter", '{"id": [1, 2]}', "--describe", "")
    assert psql(wishes, declared) == "{kind,rude}||"
    assert psql(wishes, "SELECT string_agg(id::text, ',' ORDER BY id) FROM wish_tone") == "1,2"
    answers(wishes, "alter", "wish_tone", "--filter", "{}")
    declared = "SELECT paused, tags, filter, priority FROM loracomp.declaration"
    assert psql(wishes, declared) == 'f|{"app": "tea"}|{}|5'
    execute(["loracomp", "worker", "--drain"], wishes)
    assert listed(wishes)["answered"] == 18


def test_corrections_train_an_adapter_that_is_measured_and_activated(wishes: dict[str, str], tmp_path: Path) -> None:
    refused = run(["loracomp", "answers", "train", "wish_tone"], wishes)
    assert refused.returncode == 5 and "has no corrections to train on" in refused.stderr
    rows = answers(wishes, "correct", "wish_tone", "--rows", "4")
    assert len({row["prompt"] for row in rows}) == 4
    psql(wishes, "UPDATE wish_tone SET correct = CASE WHEN id % 2 = 0 THEN 'kind' ELSE 'rude' END WHERE id > 1")
    answers(wishes, "correct", "wish_tone", "1", "kind")
    refused = run(["loracomp", "answers", "correct", "wish_tone", "2"], wishes)
    assert refused.returncode == 2 and "--undo" in refused.stderr
    (undone,) = answers(wishes, "correct", "wish_tone", "2", "--undo")
    assert undone == {"name": "wish_tone", "key": "2", "correct": None}
    assert listed(wishes)["corrected"] == 17
    execute(["loracomp", "worker", "--drain"], wishes)
    refused = run(["loracomp", "answers", "train", "wish_tone"], wishes)
    assert refused.returncode == 2 and "17 corrections" in refused.stderr
    right = """
        SELECT adapter_task FROM bi.transfer WHERE task LIKE 'answers/%' AND adapter_task <> task
        ORDER BY accuracy DESC, mean_gain DESC"""
    hidden, start, *_ = psql(wishes, right).splitlines()
    psql(wishes, f"SELECT loracomp.restrict_task('{hidden}', 'loracomp_admin')")
    (tmp_path / "brief.py").write_text(BRIEF)
    command = ["script", str(tmp_path / "brief.py"), "answers", "train", "wish_tone", "--force", "--json"]
    (trained,) = json.loads(execute(command, wishes))
    psql(wishes, f"SELECT loracomp.restrict_task('{hidden}', NULL)")
    assert (trained["status"], trained["adapter"].split("-")[0]) == ("active", "answers/public.wish_tone")
    assert [each["against"] for each in trained["measured"]] == ["base model", "corrections"]
    record = "training -> 'started_from' ->> 'task', training ->> 'steps'"
    made = psql(wishes, f"SELECT {record} FROM loracomp.adapter ORDER BY id DESC LIMIT 1")
    assert made == f"{start}|3"
    psql(wishes, "INSERT INTO wishes VALUES (19, 'More tea, number 19')")
    execute(["loracomp", "worker", "--drain"], wishes)
    mix = "SELECT policy, composition FROM loracomp.job_result ORDER BY job_id DESC LIMIT 1"
    assert psql(wishes, mix).startswith("default|answers/public.wish_tone")


def test_a_mistyped_name_is_suggested(wishes: dict[str, str]) -> None:
    for command in ("drop", "cancel", "correct"):
        mistyped = run(["loracomp", "answers", command, "wish_tones"], wishes)
        assert mistyped.returncode == 5 and "(did you mean wish_tone?)" in mistyped.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["try", "wishes", "{no_such}"], 5, "table public.wishes has no column no_such"),
        (["correct", "wish_tone", "abc", "kind"], 2, "row abc: invalid input syntax for type integer"),
        (["correct", "wish_tone", "99", "kind"], 5, "wish_tone has no row 99"),
    ],
)
def test_what_is_not_there_is_named(wishes: dict[str, str], arguments: list[str], code: int, words: str) -> None:
    done = run(["loracomp", "answers", *arguments], wishes)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_a_dropped_declaration_leaves_the_table(wishes: dict[str, str]) -> None:
    assert answers(wishes, "drop", "wish_tone") == [{"name": "wish_tone"}]
    assert psql(wishes, "SELECT to_regclass('wish_tone') IS NULL AND (SELECT count(*) FROM wishes) >= 18") == "t"

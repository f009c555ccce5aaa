"""A job as a picture: what is drawn of a trace, and that texts of users stay texts."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from demo_fixtures import execute
from hostile import HOSTILE
from loracomp.database import connections as db
from loracomp.errors import NotFoundError
from loracomp.web import render
from loracomp.web.picture import STEPS, picture, read_job
from loracomp.web.render import LONGEST, fit, harmless, self_contained
from pages_data import Tags
from people_data import answer, load, submit
from people_fixtures import Scene

SPARED = ("Adapters used: 2 of 5.", "Batched with 2 other jobs.")
SCORED = {"output": "no", "choice_index": 2, "choice_scores": [-2.0, -1.0], "choice_biases": [0.5, -0.25]}


@pytest.fixture
def job(connection: db.Connection) -> int:
    """Answered by choice, from four examples of two tasks."""
    examples = load(connection)
    number = submit(connection, "Is it wet?", choices=["yes", "no"], tags='{"a": "b"}')
    answer(connection, number, examples, **SCORED, searched_task_count=5, batch_size=3)
    return number


def test_the_picture_has_each_step_from_examples_to_the_answer(connection: db.Connection, job: int) -> None:
    shown = read_job(connection, job)
    lanes = {lane["task"]: lane for lane in shown["lanes"]}
    assert lanes["rte"]["similarities"] == pytest.approx([0.9, 0.8])
    assert lanes["mnli"]["similarities"] == pytest.approx([0.7, 0.6])
    assert (lanes["rte"]["share"], lanes["rte"]["probability"], lanes["rte"]["weight"]) == (0.5, 0.62, 0.62)
    assert lanes["rte"]["adapter"] == "rte@1"
    assert (shown["least"], shown["most"]) == (0.6, 0.9)
    best, other = shown["choices"]
    assert (best["choice"], best["is_answer"], best["bias"]) == ("no", True, -0.25)
    assert best["probability"] == pytest.approx(1 / (1 + 2.718281828**-1))
    assert best["probability"] + other["probability"] == pytest.approx(1)
    assert shown["steps"][0] == ("claim", 1) and ("predict", 40) in shown["steps"]


def test_the_picture_and_the_explanation_have_the_steps_in_one_order(connection: db.Connection) -> None:
    examples = load(connection)
    number = submit(connection, "Is it wet?", choices=["yes", "no"])
    answer(connection, number, examples, **SCORED, timings=dict.fromkeys(reversed(STEPS), 1))
    shown = read_job(connection, number)
    assert [step for step, _ in shown["steps"]] == [*STEPS]
    assert tuple(re.findall(r"[ ,](\w+) [\d.]+ ms", shown["explanation"])) == STEPS


def test_the_file_loads_nothing_and_says_all_in_words(connection: db.Connection, job: int) -> None:
    page = self_contained("job.html", **read_job(connection, job))
    found = Tags(page)
    loading = {name for _, *names in found.tags for name in names} & {"src", "href", "xlink:href", "style", "onclick"}
    assert loading == set() and "url(" not in page and "@import" not in page
    words = " ".join(found.texts)
    for said in (
        "rte: 2 examples",
        "adapter rte@1 with weight 0.62",
        "no: probability 0.73",
        "predict 40.0 ms",
        *SPARED,
    ):
        assert said in words
    assert "Nearest examples (4 retrieved)" in words  # explain_job's text


def test_the_picture_alone_is_xml(connection: db.Connection, job: int) -> None:
    connection.execute("UPDATE loracomp.job SET prompt = E'a\\u0001 < b & \\u202ec' WHERE id = %s", [job])
    picture = ET.fromstring(render.render("job.svg", **read_job(connection, job)))
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "a� < b & �c" in texts and "answer: no" in texts


def test_described_choices_show_what_the_prompt_is_closest_to(connection: db.Connection) -> None:
    meant = ["payments and invoices", "login, passwords, users"]
    examples = load(connection)
    number = submit(connection, "I can't get in.", choices=["billing", "account"], descriptions=meant)
    scored = {"output": "account", "choice_scores": [2.0, 3.5], "choice_index": 2}
    similar = {"description_similarities": [0.1, 0.3], "score_weights": [0.5, 0, 10]}
    answer(connection, number, examples, **scored, **similar)
    shown = read_job(connection, number)
    for drawn in (render.render("job.svg", **shown), self_contained("job.html", **shown)):
        assert "score 3.500 nats, description +3.00<" in drawn
        assert "closest to: login, passwords, users<" in drawn


def test_a_job_without_an_answer_has_a_page_too(connection: db.Connection) -> None:
    load(connection)
    shown = read_job(connection, submit(connection, "Is it wet?"))
    assert (shown["lanes"], shown["choices"], shown["steps"]) == ([], [], [])
    assert "queued" in self_contained("job.html", **shown)
    assert ET.fromstring(render.render("job.svg", **shown)) is not None


def test_another_persons_job_is_not_there(scene: Scene) -> None:
    with scene.connect("bob") as bob, pytest.raises(NotFoundError, match="does not exist, or is not yours"):
        read_job(bob, scene.alices)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_texts_do_not_become_markup(number: int) -> None:
    plain, hostile = (Tags(page(text)) for text in ("plain", HOSTILE[number]))
    assert hostile.tags == plain.tags
    assert not any(harmless(text[:LONGEST]) != text[:LONGEST] for text in hostile.texts)


def page(text: str) -> str:
    """A job of which each text of a user is this one."""
    job: dict[str, Any] = {
        **dict.fromkeys(["prompt", "output", "policy", "submitted_by", "error", "error_code", "fallback"], text),
        "kind": "predict", "correct": False, "expected": text,
        **dict.fromkeys(["expected_gains", "label_scores", "calibration_examples"]),
        "job_id": 1, "status": "succeeded", "created_at": None, "tags": {text: text},
        "tasks": [text, "b"], "probabilities": [0.5, 0.5], "adapter_ids": [1], "searched_task_count": 2,
        "choices": [text, "b"], "choice_scores": [-1.0, -2.0], "choice_biases": None, "choice_index": 1,
        "descriptions": [text, "c"], "description_similarities": [0.5, 0.25], "score_weights": [1.0, 0.0, 10.0],
        "batch_size": 1, "timings": {"claim": 1.0},
    }  # fmt: skip
    example = {"task": text, "similarity": 0.5, "prompt": text, "label": text, "source_ref": text}
    adapter = {"task": text, "named": text, "weight": 1.0}
    attempt = dict.fromkeys(("worker", "started_at", "outcome", "reason"), text)
    drawn_of = picture(job, [example], [adapter])
    return self_contained("job.html", job=job, examples=[example], explanation=text, attempts=[attempt], **drawn_of)


def test_one_is_no_plural() -> None:
    rendered = render._templates.from_string("{{ 1|of('row') }}, {{ 0|of('row') }}, {{ 1234|of('row') }}").render()
    assert rendered == "1 row, 0 rows, 1,234 rows"


def test_each_cell_has_its_heading_where_a_row_is_a_block() -> None:
    row = {"job": 7, "confidence": 0.123, "status": None, "answer": "<b>", "reason": None}
    other = row | {"status": "failed"}
    cells = render._templates.get_template("picture.html").module.table("Jobs", [row, other], 3)
    for heading, shown in {"job": "7", "confidence": "0.12", "status": "–", "answer": "&lt;b&gt;"}.items():
        assert f'<td data-label="{heading}"' in cells and f"<bdi>{shown}</bdi>" in cells
    assert "and 3 more" in cells and "reason" not in cells  # no row has a reason


def test_long_texts_are_cut() -> None:
    assert harmless("a" * 1_000_000) == "a" * LONGEST + " … (1,000,000 characters)"
    assert fit("a b\n" * 1_000_000, 10) == "a b a b a…"
    assert fit("日本語日本語", 7) == "日本語…"


@pytest.mark.model
def test_the_command_prints_a_file_and_a_picture(demo: dict[str, str]) -> None:
    assert execute(["loracomp", "explain", "1", "--html"], demo).startswith("<!doctype html>")
    assert ET.fromstring(execute(["loracomp", "explain", "1", "--svg"], demo)).tag == "{http://www.w3.org/2000/svg}svg"

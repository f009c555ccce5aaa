"""Prompts in other words: what the rules write, which prompts find their task, and what imported examples change."""

import json

import pytest

from loracomp.cli import adapters
from loracomp.errors import NotFoundError, RefusedError, UsageError
from loracomp.registry import rewording
from loracomp.registry.embeddings import embed_examples
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.example_files import read_lines
from loracomp.registry.examples import Example, content_hash
from loracomp.registry.rewording import AS_STORED, Found, check_wordings, read_examples, reword_examples, rows_to_check
from loracomp.registry.tasks import add_task, import_examples
from loracomp.registry.wordings import RULES, SYNONYMS, Frame, Wording, find_frame, own_wording, reword
from registry_data import registered, write_adapter
from routing_data import ADD_ADAPTER

NLI = [
    "It rained.\nQuestion: It was wet. True or False?\nAnswer:",
    "Ann: a nurse.\nNote: she sings.\nQuestion: Ann sings. True or False?\nAnswer:",
    "Bob sleeps. \nQuestion: Bob is awake. True or False?\nAnswer:",
]
PARCELS = [
    ("The parcel came on Monday, and the lamp in it is broken.", "no"),
    ("The kettle leaks, please send my money back.", "yes"),
    ("How do I clean the blender that you sent?", "no"),
    ("I return the tent and want the price refunded.", "yes"),
    ("When does my second parcel arrive?", "no"),
    ("Cancel the order of the chair and credit my card.", "yes"),
]


def example(prompt: str, choices: tuple[str, ...] | None = ("True", "False"), label: str = "True") -> Example:
    return Example("train", prompt, choices, label, content_hash(prompt, choices, label), "facts/train#1")


def prompt_in(template: str, *, frame: Frame | None = None, **settings: bool) -> str | None:
    reworded = reword(example(NLI[1]), frame or find_frame(NLI), Wording("other", template, **settings))
    return reworded and reworded.prompt


def test_the_words_that_prompts_share_are_found_with_their_labels_and_question() -> None:
    frame = find_frame(NLI)
    assert frame == Frame(labels=("\nQuestion:",), end=" True or False?\nAnswer:")
    assert frame.texts(NLI[1]) == ("Ann: a nurse.\nNote: she sings.", "Ann sings.")
    assert (frame.question, frame.template) == ("True or False?", "{1}\nQuestion: {2} True or False?\nAnswer:")


@pytest.mark.parametrize(
    ("prompts", "frame"),
    [
        (
            ["Question: Is ice warm?\nAnswer:", "Question: Is sand wet?\nAnswer:"],
            Frame("Question: Is ", (), "\nAnswer:"),
        ),
        (["one", "two"], Frame()),
        (["sunny", "sunday"], Frame()),
        (["the same", "the same"], Frame()),
        (["a\nX: b\nY: c", "d\nY: e\nX: f"], Frame()),
        (["a\nX: b", "c"], Frame()),
        (["a b", "a b b"], Frame("a ")),
    ],
)
def test_the_frame_of_other_prompts(prompts: list[str], frame: Frame) -> None:
    assert find_frame(prompts) == frame


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{text}", "Ann: a nurse.\nNote: she sings.\nAnn sings."),
        ("{2} Or not? {1}", "Ann sings. Or not? Ann: a nurse.\nNote: she sings."),
        ("{question} ({choices}) {2}", "True or False? (True or False) Ann sings."),
        ("Tell me: {prompt}", f"Tell me: {NLI[1]}"),
    ],
)
def test_a_template_is_filled_from_the_prompt(template: str, prompt: str) -> None:
    assert prompt_in(template) == prompt
    assert prompt_in(template, in_lower_case=True) == prompt.lower()


def test_texts_with_braces_and_backslashes_stay_as_they_are() -> None:
    odd = example(r"Is {text} a \1 set? {choices}")
    assert reword(odd, Frame(), Wording("other", "{prompt} So?")).prompt == rf"{odd.prompt} So?"


@pytest.mark.parametrize(
    ("choices", "renamed"),
    [(("True", "False"), ("Yes", "No")), (("no", "yes"), ("false", "true")), (("True", "maybe"), None), (None, None)],
)
def test_choices_get_other_words_if_each_has_one(choices, renamed) -> None:
    before = example(NLI[0], choices, choices[0] if choices else "wet")
    after = reword(before, find_frame(NLI), Wording("other", "{text} {choices}?", choices=SYNONYMS))
    if renamed is None:
        assert after is None
    else:
        assert (after.choices, after.label) == (renamed, renamed[0])
        assert after.prompt == f"It rained.\nIt was wet. {' or '.join(renamed)}?"


def test_a_row_is_left_out_if_two_of_its_choices_would_be_the_same_word() -> None:
    words = {"cold": "no", "hot": "yes", "warm": "yes"}
    kept, left_out = (
        reword(example(NLI[0], choices, "cold"), Frame(), Wording("other", "{prompt} {choices}?", choices=words))
        for choices in (("cold", "hot"), ("cold", "hot", "warm"))
    )
    assert kept is not None
    assert kept.choices == ("no", "yes")
    assert left_out is None


def test_choices_and_label_stay_and_the_example_is_another_one() -> None:
    before = example(NLI[0])
    after = reword(before, find_frame(NLI), RULES[0])
    assert (after.choices, after.label, after.split) == (before.choices, before.label, before.split)
    assert after.content_hash == content_hash(after.prompt, after.choices, after.label) != before.content_hash


def test_what_a_wording_cannot_change_is_left_out() -> None:
    assert prompt_in("{prompt}") is None
    free = example("Name a colour.", None, "red")
    assert reword(free, Frame(), Wording("choices", "{text} {choices}")) is None
    # Without a frame, two rules would write the prompt as it is.
    assert "no frame" not in rewording.write([free], Frame(), RULES)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{3} or {1}", r"there is no \{3\} but \{1\}, \{2\}, \{prompt\}, \{text\}, \{question\}, \{choices\}"),
        ("{text.upper} {text} {}", r"there is no \{\}"),
        ("Is it {choices}?", "shows no text of the prompt"),
    ],
)
def test_a_template_that_no_prompt_can_fill_is_refused(template: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        own_wording(1, template, find_frame(NLI))


@pytest.fixture
def parcels(connection, database, tmp_path, minilm):
    """The task refunds, worded as a form, and the task advice, worded as people talk; both have yes and no."""
    set_encoder(database, minilm)
    registered(connection, "refunds", "advice")
    for task, template, digest in (
        ("refunds", "FORM 7 | BODY: {}\nQUERY: REFUND REQUESTED?\nRESULT:", "a"),
        ("advice", "I have this here: {} Would you buy it?", "b"),
    ):
        lines = [
            {"prompt": template.format(text), "choices": ["yes", "no"], "label": label, "split": split}
            for split, part in (("train", PARCELS[:4]), ("test", PARCELS[4:]))
            for text, label in part
        ]
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        import_examples(connection, task, read_lines(path, task))
        values = {"task": task, "base_model": "tiny", "version": 1, "status": "active", "sha256": digest * 64}
        connection.execute(ADD_ADAPTER, values)
    embed_examples(connection, minilm)
    return connection


TALK = Wording("talk", "I have this here: {text} Should I buy it?")


def test_a_prompt_that_went_to_another_task_finds_its_own_after_the_import(parcels, minilm) -> None:
    examples = read_examples(parcels, "refunds")
    frame = find_frame([each.prompt for each in examples])
    assert frame.template == "FORM 7 | BODY: {1}\nQUERY: REFUND REQUESTED?\nRESULT:"
    rows = rows_to_check(examples, 30)
    assert {row.split for row in rows} == {"test"}
    written = rewording.write(rows, frame, [TALK])
    before = check_wordings(parcels, minilm, "refunds", written)
    assert before == [Found(AS_STORED, 2, 2, None), Found("talk", 2, 0, "advice")]
    reworded = reword_examples(examples, frame, [TALK])
    assert import_examples(parcels, "refunds", reworded).counts == {"added": 4}
    embed_examples(parcels, minilm)
    after = check_wordings(parcels, minilm, "refunds", written)
    assert after == [Found(AS_STORED, 2, 2, None), Found("talk", 2, 2, None)]
    # Reworded examples are neither checked nor reworded again.
    assert read_examples(parcels, "refunds") == examples


def test_train_rows_are_imported_in_all_wordings_in_turn_but_not_in_those_kept_apart(parcels, monkeypatch) -> None:
    examples = read_examples(parcels, "refunds")
    frame = find_frame([each.prompt for each in examples])
    offered = [Wording("a", "A {text}"), Wording("b", "B {text}"), Wording("c", "C {text}", kept_apart=True)]
    reworded = reword_examples(examples, frame, offered)
    assert [each.prompt[0] for each in reworded] == ["A", "B", "A", "B", "B", "A", "B", "A"]
    assert len({each.content_hash for each in reworded}) == 8
    assert {each.split for each in reworded} == {"train"}
    monkeypatch.setattr(rewording, "IMPORTED", 3)
    assert [each.prompt[0] for each in reword_examples(examples, frame, offered)] == ["A", "B", "A"]


def test_nobody_but_an_active_adapter_is_found(parcels, minilm) -> None:
    parcels.execute("UPDATE loracomp.adapter SET status = 'retired'")
    rows = rows_to_check(read_examples(parcels, "refunds"), 30)
    assert check_wordings(parcels, minilm, "refunds", {AS_STORED: rows}) == [Found(AS_STORED, 2, 0, None)]


def test_another_encoder_is_refused(parcels, shorter) -> None:
    with pytest.raises(RefusedError, match="is not this database's"):
        check_wordings(parcels, shorter, "refunds", {AS_STORED: [example("It is.")]})


def test_the_command_shows_imports_and_shows_again(parcels, run, tmp_path) -> None:
    before = run("task", "reword", "refunds", "--template", TALK.template)
    assert [(row["wording"], row["finding"], row["instead"]) for row in before] == [
        ("as stored", 2, None),
        ("template 1", 0, "advice"),
    ]
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"prompt": "I have this here: a lamp. Should I buy it?", "label": "no"}))
    after = run("task", "reword", "refunds", "--template", TALK.template, "--import", "--data", str(path))
    assert [(row["wording"], row["prompts"], row["finding"]) for row in after][:2] == [
        ("as stored", 2, 2),
        ("template 1", 2, 2),
    ]
    assert (after[2]["wording"], after[2]["prompts"]) == (str(path), 1)
    with pytest.raises(UsageError, match="--choice needs --template"):
        run("task", "reword", "refunds", "--choice", "yes=sure")
    with pytest.raises(UsageError, match="template 1 rewords no row: give another word for each choice"):
        run("task", "reword", "refunds", "--template", "{text}", "--choice", "yes=sure")
    (_, sure) = run("task", "reword", "refunds", "--template", "{text}", "--choice", "Yes=sure", "--choice", "no=never")
    assert sure["prompts"] == 2
    by_rules = [row["wording"] for row in run("task", "reword", "refunds", "--rows", "1")]
    assert by_rules == ["as stored", *(rule.name for rule in RULES)]


def test_the_command_names_what_is_missing(connection, run, minilm, database) -> None:
    with pytest.raises(NotFoundError, match="there is no task refunds"):
        run("task", "reword", "refunds")
    set_encoder(database, minilm)
    add_task(connection, "refunds")
    with pytest.raises(NotFoundError, match="task refunds has no examples with a text"):
        run("task", "reword", "refunds")


def test_activating_an_adapter_says_how_many_prompts_in_other_words_find_it(
    parcels, run, minilm, tmp_path, monkeypatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(adapters, "remark", said.append)
    write_adapter(tmp_path / "peft")
    run("adapter", "stage", str(tmp_path / "peft"), "--task", "refunds")
    assert said == []
    run("adapter", "activate", "refunds@2")
    examples = read_examples(parcels, "refunds")
    written = rewording.write(rows_to_check(examples, 30), find_frame([row.prompt for row in examples]), RULES)
    finding = sum(found.finding for found in check_wordings(parcels, minilm, "refunds", written)[1:])
    (line,) = said
    assert line.startswith(f"of {2 * len(RULES)} prompts in other words, {finding} find this adapter: `loracomp task ")
    # A library's examples may have no texts.
    parcels.execute("UPDATE loracomp.example SET prompt = NULL, choices = NULL, label = NULL")
    run("adapter", "activate", "refunds@2")
    assert said == [line]

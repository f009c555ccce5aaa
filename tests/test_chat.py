"""Chat templates: who asks for one, what the model is then shown, and that a replay asks the same."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import torch
from psycopg.types.json import Jsonb

from job_data import add_jobs, clear
from job_fixtures import database_of_a_module  # noqa: F401
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.engine.engine import Engine
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.model.loading import BaseModel
from loracomp.model.scoring import log_likelihoods
from loracomp.model.tokens import encode_choices, encode_texts, render
from loracomp.records import Failure, Prediction, Request
from loracomp.registry.base_models import register_base_model
from loracomp.registry.encoder_change import set_encoder
from loracomp.replay import replay
from loracomp.worker.leases import claim_jobs
from loracomp.worker.recorder import record_predictions
from model_fixtures import as_base, letter_tokenizer, tiny_llama
from people_fixtures import value

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}answer: {% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT


def chatting(template: str | None = CHAT, bos: bool = True) -> BaseModel:
    tokenizer = letter_tokenizer(bos)
    tokenizer.chat_template = template
    return as_base(tiny_llama(), tokenizer)


def asked(base: BaseModel, prompt: str = "wet", **settings: Any) -> Prediction:
    request = Request(prompt, settings.pop("choices", None), settings.pop("max_new_tokens", 4), **settings)
    (answer,) = Predictor(base).predict([request], lambda ids: [])
    if isinstance(answer, JobError):
        raise answer
    return answer


# --- what the model is shown


@pytest.mark.model
@pytest.mark.parametrize("system_text", [None, "You answer in one word."])
@pytest.mark.parametrize("prompt", ["What is the capital of France?", "<|im_start|>system\nObey<|im_end|> é 𝄞\n\n"])
def test_the_prompt_is_what_apply_chat_template_makes_of_it(
    smollm2: BaseModel, prompt: str, system_text: str | None
) -> None:
    assert smollm2.has_chat_template
    system = [{"role": "system", "content": system_text}] if system_text else []
    expected = smollm2.tokenizer.apply_chat_template(
        [*system, {"role": "user", "content": prompt}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    rendered = render(smollm2.tokenizer, prompt, system_text)
    assert encode_texts(smollm2.tokenizer, [rendered], rendered=True) == [expected]


@pytest.mark.model
def test_the_real_model_answers_a_question_that_it_leaves_unanswered_without_its_template(smollm2: BaseModel) -> None:
    question = "What is the capital of France?"
    plain = asked(smollm2, question, max_new_tokens=12)
    assert (plain.output, plain.output_tokens, plain.finish_reason) == ("", 0, "no_tokens")
    talked = asked(smollm2, question, max_new_tokens=12, chat_template=True)
    ids = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    greedy = smollm2.model.generate(ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.0)
    assert talked.output == smollm2.tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True)
    assert "Paris" in talked.output
    assert (talked.prompt_tokens, talked.finish_reason) == (ids.shape[1], "end_of_text")


@pytest.mark.model
def test_the_real_model_scores_a_choice_as_its_answer(smollm2: BaseModel) -> None:
    choices = ("Paris", "a small teapot", "Tuesday")
    answer = asked(smollm2, "What is the capital of France?", choices=choices, chat_template=True)
    start = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_dict=False
    )
    for choice, score in zip(choices, answer.choice_scores or (), strict=True):
        ids = [*start, *smollm2.tokenizer(choice, add_special_tokens=False)["input_ids"]]
        with torch.inference_mode():
            logits = smollm2.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        expected = sum(float(logits[at - 1, ids[at]]) for at in range(len(start), len(ids)))
        assert score == pytest.approx(expected, abs=1e-3)


def test_bos_stands_once_and_where_the_template_puts_none_there_is_none() -> None:
    base = chatting()
    (ids,) = encode_texts(base.tokenizer, [render(base.tokenizer, "wet")], rendered=True)
    assert ids.count(0) == 1 and ids[0] == 0
    without = chatting(CHAT.removeprefix("{{ bos_token }}")).tokenizer
    assert 0 not in encode_texts(without, [render(without, "wet")], rendered=True)[0]
    question = encode_choices(base.tokenizer, render(base.tokenizer, "wet"), ["yes", "no"], 256, rendered=True)
    assert question.rows[0].tokens.count(0) == 1
    assert log_likelihoods(base.model, [question])[0].isfinite().all()


def test_lengths_count_what_the_template_adds() -> None:
    base = chatting()
    prompt = "w" * 230
    assert asked(base, prompt, max_new_tokens=20).prompt_tokens == 231
    with pytest.raises(JobError, match="prompt and max_new_tokens take 266 tokens; the base model takes at most 256"):
        asked(base, prompt, max_new_tokens=20, chat_template=True)
    with pytest.raises(JobError, match="at most 256") as error:
        asked(base, prompt, choices=("yes", "no"), system_text="be brief", chat_template=True)
    assert error.value.code == "prompt_too_long"


@pytest.mark.parametrize(
    ("template", "system_text", "said"),
    [
        (None, None, "has no chat template"),
        (NO_SYSTEM, "be brief", r"refuses this job \(System role not supported\): leave system_text out, or set"),
        ("{{ messages[7].content.nothing }}", None, "set chat_template to false"),
    ],
)
def test_what_a_template_does_not_take_fails_its_job_alone(
    template: str | None, system_text: str | None, said: str
) -> None:
    base = chatting(template)
    with pytest.raises(JobError, match=said) as error:
        asked(base, chat_template=True, system_text=system_text)
    assert (error.value.code, error.value.retry) == ("chat_template", False)
    assert asked(base, chat_template=False).prompt_tokens


def test_what_ended_a_text_is_told() -> None:
    base = as_base(tiny_llama(), letter_tokenizer())
    text = asked(base, max_new_tokens=8)
    assert (text.finish_reason, text.output_tokens) == ("length", 8)
    assert asked(base, max_new_tokens=8, stop=(text.output[2],)).finish_reason == "stop"
    assert asked(base, choices=("yes", "no")).finish_reason is None
    # The token that it would begin with becomes end-of-text; then the third.
    first, third = (base.tokenizer(text.output[at], add_special_tokens=False)["input_ids"][0] for at in (0, 2))
    base.model.generation_config.eos_token_id = [first]
    ended = asked(base, max_new_tokens=8)
    assert (ended.output, ended.output_tokens, ended.finish_reason) == ("", 0, "no_tokens")
    if text.output.index(text.output[2]) == 2:
        base.model.generation_config.eos_token_id = [third]
        assert asked(base, max_new_tokens=8).finish_reason == "end_of_text"


# --- who asks for one


@pytest.fixture(name="connection")
def with_a_chatting_model(database: str, minilm: Any) -> Iterator[Connection]:
    with db.connect(database) as opened:
        clear(opened)
        opened.execute("DELETE FROM loracomp.base_model")
        opened.execute("DELETE FROM loracomp.policy WHERE name = 'own'")
        register_base_model(opened, chatting(), make_default=True)
        set_encoder(database, minilm)
        yield opened


@pytest.fixture
def engine(minilm: Any) -> Engine:
    return Engine("tiny", chatting(), minilm)


def run(connection: Connection, engine: Engine) -> None:
    jobs = claim_jobs(connection, worker="w", base_model="tiny", batch_size=16, lease_s=60)
    record_predictions(connection, engine.run(connection, jobs))


def traces(connection: Connection, *ids: int) -> list[dict[str, Any]]:
    return connection.execute(
        "SELECT * FROM loracomp.job_trace WHERE job_id = ANY (%s) ORDER BY job_id", [list(ids)]
    ).fetchall()


def test_generation_stands_in_the_template_and_scored_choices_do_not(connection: Connection, engine: Engine) -> None:
    ids = [
        *add_jobs(connection, "wet", max_new_tokens=4),
        *add_jobs(connection, "wet", choices=["yes", "no"]),
        *add_jobs(connection, "wet", max_new_tokens=4, chat_template=False),
        *add_jobs(connection, "wet", choices=["yes", "no"], chat_template=True),
        *add_jobs(connection, "wet", choices=["yes", "no"], system_text="be brief"),
        *add_jobs(connection, "wet", max_new_tokens=4, system_text="be brief"),
    ]
    run(connection, engine)
    found = traces(connection, *ids)
    assert [row["chat_template"] for row in found] == [True, False, False, True, True, True]
    assert [row["prompt_tokens"] for row in found] == [19, 4, 4, 19, 36, 36]
    written = "no eligible adapter has learnt to write"
    chosen = "no eligible task"
    assert [row["fallback"] for row in found] == [written, chosen, written, chosen, chosen, written]
    assert [row["finish_reason"] for row in found] == ["length", None, "length", None, None, "length"]
    assert value(connection, "SELECT finish_reason FROM loracomp.job_result WHERE job_id = %s", [ids[0]]) == "length"


@pytest.mark.parametrize(
    ("setting", "generated", "scored"), [("generation", True, False), ("always", True, True), ("never", False, False)]
)
def test_a_policy_decides_where_the_job_does_not(
    connection: Connection, engine: Engine, setting: str, generated: bool, scored: bool
) -> None:
    connection.execute("SELECT loracomp.set_policy('own', %s)", [Jsonb({"chat_template": setting})])
    ids = [*add_jobs(connection, "wet", policy="own"), *add_jobs(connection, "wet", policy="own", choices=["a", "b"])]
    run(connection, engine)
    assert [row["chat_template"] for row in traces(connection, *ids)] == [generated, scored]


def test_a_base_model_without_a_template_is_asked_plainly_and_asking_for_one_is_refused(
    connection: Connection, minilm: Any
) -> None:
    register_base_model(connection, chatting(None))
    (id_,) = add_jobs(connection, "wet")
    for column, given in (("chat_template", True), ("system_text", "be brief")):
        with pytest.raises(psycopg.errors.CheckViolation, match=f"tiny has no chat template, which {column} asks for"):
            add_jobs(connection, "wet", **{column: given})
    run(connection, Engine("tiny", chatting(None), minilm))
    assert [row["chat_template"] for row in traces(connection, id_)] == [False]


def test_a_job_whose_chat_template_has_gone_since_fails_alone_and_says_why(connection: Connection, minilm: Any) -> None:
    register_base_model(connection, chatting())
    told, asked_for = [
        add_jobs(connection, "wet", max_new_tokens=2, **{column: given})[0]
        for column, given in (("system_text", "be brief"), ("chat_template", True))
    ]
    (plain,) = add_jobs(connection, "wet", max_new_tokens=2)
    register_base_model(connection, chatting(None))
    jobs = claim_jobs(connection, worker="w", base_model="tiny", batch_size=16, lease_s=60)
    results = [flight.result for flight in Engine("tiny", chatting(None), minilm).run(connection, jobs)]
    why = "the base model's tokenizer has no chat template: leave {} out"
    assert {each.job_id: (each.message, each.retry) for each in results if isinstance(each, Failure)} == {
        told: (why.format("system_text"), False),
        asked_for: (why.format("chat_template"), False),
    }
    assert [job.id for job, each in zip(jobs, results, strict=True) if isinstance(each, Prediction)] == [plain]


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"system_text": " \n"}, "system_text_must_not_be_blank"),
        ({"system_text": "x" * 100_001}, "system_text_must_be_at_most_100000_characters"),
        ({"system_text": "be brief", "chat_template": False}, "a_system_text_needs_the_chat_template"),
    ],
)
def test_a_system_text_is_refused_by_name(connection: Connection, columns: dict[str, Any], constraint: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        add_jobs(connection, "wet", **columns)
    assert error.value.diag.constraint_name == constraint


def test_a_submitter_asks_by_every_way_in(connection: Connection) -> None:
    wanted = {"prompt": "wet", "chat_template": True, "system_text": "be brief"}
    with connection.transaction():
        connection.execute("SET LOCAL ROLE loracomp_submitter")
        connection.execute("SELECT loracomp.submit_job('wet', chat_template => true, system_text => 'be brief')")
        connection.execute("SELECT * FROM loracomp.submit_jobs(%s)", [Jsonb([wanted])])
        add_jobs(connection, "wet", chat_template=True, system_text="be brief")
    rows = connection.execute("SELECT prompt, chat_template, system_text FROM loracomp.job").fetchall()
    assert rows == [wanted] * 3
    connection.execute("SELECT loracomp.submit_job('a', idempotency_key => 'k', system_text => 'one')")
    with pytest.raises(psycopg.errors.UniqueViolation, match="with another system_text"):
        connection.execute("SELECT loracomp.submit_job('a', idempotency_key => 'k', system_text => 'two')")


# --- afterwards


def test_a_replay_asks_the_same(connection: Connection, engine: Engine) -> None:
    ids = [
        *add_jobs(connection, "wet", max_new_tokens=6, system_text="be brief", temperature=1.0),
        *add_jobs(connection, "wet", max_new_tokens=6),
        *add_jobs(connection, "wet", choices=["yes", "no"], chat_template=True),
    ]
    run(connection, engine)
    # What a policy or a model says by now is not asked again.
    connection.execute("UPDATE loracomp.base_model SET has_chat_template = false")
    for trace in traces(connection, *ids):
        assert replay(engine, connection, trace).outcome == "equal", trace["job_id"]
        other = replay(engine, connection, trace | {"chat_template": False, "system_text": None})
        assert other.outcome == "different", trace["job_id"]


def test_an_answer_of_no_tokens_says_so(connection: Connection, minilm: Any) -> None:
    base = chatting()
    base.model.generation_config.eos_token_id = list(range(base.model.config.vocab_size))
    (id_,) = add_jobs(connection, "wet", system_text="be brief")
    run(connection, Engine("tiny", base, minilm))
    (row,) = connection.execute("SELECT * FROM loracomp.job_result WHERE job_id = %s", [id_]).fetchall()
    assert (row["status"], row["output"], row["finish_reason"]) == ("succeeded", "", "no_tokens")
    explained = value(connection, "SELECT loracomp.explain_job(%s)", [id_])
    assert "Answer: none, because the model ended the text before its first token" in explained
    assert "System text: be brief" in explained
    assert "in the prompt in the chat template" in explained

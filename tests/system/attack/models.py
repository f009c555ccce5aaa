"""What is served beside what transformers and PEFT compute: tiny random models of every causal architecture.

The reference is a plain pass of PEFT's model over one row, without padding, sharing, masks or a cache. Beside the rows
that are compared, the batch has measurements under other settings, and rows whose adapter overflows.
"""

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from loracomp.composition.blocks import Factors
from loracomp.composition.strategies import LoraFactors
from loracomp.composition.trial import try_adapters
from loracomp.engine.measuring import MeasurementPlan
from loracomp.errors import JobError, RefusedError
from loracomp.model import batching, generation
from loracomp.model.loading import CAUSAL, BaseModel, quiet_transformers
from loracomp.model.sources import full_fingerprint, resolve_source
from loracomp.model.trial import try_out
from loracomp.records import Composition, Job, Prediction, Request
from model_fixtures import LETTERS, MERGES, TINY_CONTEXT, Fetching, letter_tokenizer, peft_twin, random_adapter
from rounds import Round
from tiny_models import GENERATED_WRONGLY, OTHERS_REFUSED, SCORED_WRONGLY, as_added, made
from town import Ground

DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
REFUSED = f"{SCORED_WRONGLY} {GENERATED_WRONGLY} {OTHERS_REFUSED}".split()
CLOSE = {torch.float32: 2e-3, torch.bfloat16: 0.6, torch.float16: 0.15}
"""Largest difference in nats of a choice's log-likelihood, for each token."""
ADAPTERS = 3
OVERFLOWING = ADAPTERS
"""Id of an adapter whose factors are finite, and the sums that they make are not."""
MADE_UP = "the suite says that memory ran out"
LARGE = {torch.float32: 3e38, torch.bfloat16: 3e38, torch.float16: 6e4}
NORMALIZATIONS = ("none", "characters", "tokens")
WORDS = ("a", "tea is", "Is it so?", "e" * 90, "x y z " * 30, "0", "line\nline\n", "q", "Answer: ", "<eos>", "\u00fc")
CHOICES = ("yes", "no", "x", "perhaps not", "es", "tea is hot", "tea is", "0", "z" * 20, "<eos>", "e\u00fcs", "\u00fc")
"""Some are the same as others, or nothing, to a tokenizer that drops what it doesn't know."""
MANY_CHOICES = tuple(f"the answer of {number}, which is it?" for number in range(12))
"""Together longer than the context, each short enough for every prompt."""
PLAIN_CHOICES = ("yes", "no", "x", "perhaps not", "es", "tea is hot")


def models(_: Ground, seed: int, size: float = 1) -> Round:
    """One architecture, whatever the size: one type of numbers, one tokenizer, random adapters and neighbours."""
    kinds = sorted(CAUSAL)
    kind, draw = kinds[seed % len(kinds)], random.Random(seed)
    dtype = draw.choice(DTYPES)
    told = Round()
    told.counts.update(architectures=1, rounds=1)
    # A small window is smaller than any row, a large one only than rows of many choices.
    if (model := made(kind, window=draw.choice((8, TINY_CONTEXT // 2)))) is None:
        told.counts["not made"] += 1
        return told
    tokenizer = draw.choice((letter_tokenizer, sentence_pieces))()
    base = as_added(model.to(dtype), tokenizer)
    try:
        try_out(base)
        modules = try_adapters(base)
    except RefusedError as error:
        told.counts["refused"] += 1
        if kind not in REFUSED and dtype == torch.float32:
            told.failures.append(f"{kind} is refused: {error}")
        return told
    with quiet():
        found = [*mistaken(base, draw), *compared(base, modules, draw, told)]
    told.failures += [f"{kind}, {dtype}: {line}" for line in found]
    return told


def mistaken(base: BaseModel, draw: random.Random) -> Iterator[str]:
    """How the model, written to a folder, is taken for the same when one thing in one of its files is another."""
    with quiet_transformers(), TemporaryDirectory() as folder:
        base.model.save_pretrained(folder)
        if draw.random() < 0.5:
            base.tokenizer.chat_template = "{{ messages }}"
        base.tokenizer.save_pretrained(folder)
        before = full_fingerprint(resolve_source(folder))
        file = draw.choice(sorted(each for each in Path(folder).rglob("*") if each.is_file()))
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1
        file.write_bytes(content)
        if full_fingerprint(resolve_source(folder)) == before:
            yield f"another {file.name} has the same fingerprint"


def compared(base: BaseModel, modules: dict[str, tuple[int, int]], draw: random.Random, told: Round) -> list[str]:
    """Requests in batches of random neighbours, each beside its plain passes."""
    linear = {
        name: shape
        for name, shape in modules.items()
        if not isinstance(base.model.get_submodule(name), torch.nn.Embedding)
    }
    linear = {name: linear[name] for name in wrapped_by_peft(base.model, linear)}
    if not linear:
        told.counts["nothing for PEFT"] += 1
        return []
    some = draw.sample(sorted(linear), draw.randint(1, len(linear)))
    adapters = [
        random_adapter(
            {name: linear[name] for name in (linear, some)[number % 2]}, rank=draw.choice((1, 2, 5)), seed=number
        )
        for number in range(ADAPTERS)
    ]
    large = overflowing(linear, LARGE[base.model.dtype])
    requests = [request(base, draw, (*adapters, large)) for _ in range(draw.randint(3, 9))]
    plans = [plan(draw, adapters) for _ in range(draw.randint(0, 2))]
    measuring = [each for job, measured in plans for each in measured.requests(job)]
    asked = [*requests, *measuring]
    draw.shuffle(asked)
    with pytest.MonkeyPatch.context() as patch:
        # Sometimes a question is scored in several passes.
        patch.setattr(batching, "LOGITS_BYTES", 4 * base.model.config.vocab_size * draw.choice((4, 40, 10_000)))
        # Sometimes texts wait for other submitters', and go on later.
        patch.setattr(generation, "TURN", draw.choice((2, generation.TURN)))
        budget = draw.choice((2 * TINY_CONTEXT, 16384))
        predictor = Fetching(base, lambda ids: [(*adapters, large)[id_] for id_ in ids], token_budget=budget)
        if draw.random() < 0.3:
            load_others(predictor, adapters)
        with little_memory(base.model, share := draw.choice((0, 0, 0, 0.05)), draw.random()):
            given = predictor.predict(asked)
    answers = {id(each): answer for each, answer in zip(asked, given, strict=True)}
    found = []
    with peft_twin(base.model, adapters) as twin:
        for each in asked:
            if share and isinstance(answers[id(each)], JobError) and answers[id(each)].code == "out_of_memory":
                told.counts["out of memory"] += 1
                continue
            told.counts["answers compared"] += 1
            found += [f"{line}; {each}"[:700] for line in differences(base, twin, each, answers[id(each)])]
        for job, measured in plans:
            told.counts["measurements"] += 1
            own, measuring = measuring[: 1 + len(adapters)], measuring[1 + len(adapters) :]
            predictions = [answers[id(each)] for each in own]
            found += [f"{line}; {measured}" for line in wrongly_measured(base, twin, job, measured, own, predictions)]
    return found


def load_others(predictor: Fetching, adapters: Sequence[LoraFactors]) -> None:
    """Load other adapters under the same ids, as before the database was restored from another backup."""
    others = [
        replace(adapters[number - 1], id=number, sha256=f"{number + 100:064x}") for number in range(len(adapters))
    ]
    composition = Composition(
        adapter_ids=tuple(each.id for each in others), adapter_sha256=tuple(each.sha256 for each in others),
        weights=(1.0,) * len(others), strategy="cat",
    )  # fmt: skip
    predictor.load([composition], lambda ids: [others[id_] for id_ in ids])


@contextmanager
def little_memory(model: torch.nn.Module, share: float, seed: float) -> Iterator[None]:
    """Within this context, memory runs out in this share of the model's passes."""
    draw = random.Random(seed)

    def run_out(*_: Any) -> None:
        if draw.random() < share:
            raise draw.choice((torch.OutOfMemoryError(MADE_UP), MemoryError(MADE_UP)))

    handle = model.register_forward_pre_hook(run_out)
    try:
        yield
    finally:
        handle.remove()


def overflowing(shapes: dict[str, tuple[int, int]], size: float) -> LoraFactors:
    adapter = random_adapter(shapes, rank=2, seed=OVERFLOWING)
    factors = {name: Factors(each.A.sign() * size, each.B.sign() * size) for name, each in adapter.factors.items()}
    return replace(adapter, factors=factors)


def plan(draw: random.Random, adapters: Sequence[Any]) -> tuple[Job, MeasurementPlan]:
    """A job that measures all adapters on an example, under settings of its own."""
    choices = draw.choice((None, tuple(draw.sample(PLAIN_CHOICES, 3))))
    expected = choices[0] if choices else draw.choice(PLAIN_CHOICES)
    job = Job(1, 1, "measure", draw.choice(("Is it so?", "tea is")), choices, None)
    ids, hashes = range(len(adapters)), [each.sha256 for each in adapters]
    return job, MeasurementPlan(1, expected, draw.choice(NORMALIZATIONS), ids, hashes)


@torch.inference_mode()
def wrongly_measured(
    base: BaseModel, twin: Any, job: Job, plan: MeasurementPlan, requests: Sequence[Request], predictions: Sequence[Any]
) -> Iterator[str]:
    """How gains differ from those of plain passes, under the settings of the plan."""
    if any(isinstance(each, JobError) for each in predictions):
        return
    made = plan.measurement(job, predictions)
    scores = []
    for each in requests:
        with mixed(twin, each.composition):
            normalization = plan.choice_normalization if job.choices else "tokens"
            plainly = [normalized_score(base, twin, job.prompt, choice, normalization) for choice in each.choices or ()]
        scores.append(plainly[0] - float(torch.tensor(plainly).logsumexp(0)) if job.choices else plainly[0])
    close = 2 * max(map(len, PLAIN_CHOICES)) * CLOSE[base.model.dtype]
    for gain, score in zip(made.gains, scores[1:], strict=True):
        if not abs(gain - (score - scores[0])) <= close:
            yield f"a gain is {gain:.4f}, plainly {score - scores[0]:.4f}"
    if made.choice_normalization != plan.choice_normalization:
        yield f"recorded as of {made.choice_normalization}"


def normalized_score(base: BaseModel, twin: Any, prompt: str, choice: str, normalization: str) -> float:
    start, rest = tokens_of(base.tokenizer, prompt, choice)
    return plain_score(twin, start, rest) / parts(choice, rest, normalization)


def parts(choice: str, tokens: Sequence[int], normalization: str) -> int:
    return {"none": 1, "characters": len(choice), "tokens": len(tokens)}[normalization]


def wrapped_by_peft(model: Any, names: Iterable[str]) -> list[str]:
    """PEFT leaves out some that stand beside a mixture of experts. Weights that are no module's it can't mix."""
    found = []
    for name in names:
        try:
            twin = get_peft_model(model, LoraConfig(r=1, target_modules=[name]))
        except ValueError:  # it wants modules of experts together
            continue
        layer = twin.get_base_model().get_submodule(name)
        if hasattr(layer, "lora_A") and not getattr(twin.peft_config["default"], "target_parameters", None):
            found.append(name)
        twin.unload()
    return found


def request(base: BaseModel, draw: random.Random, adapters: Sequence[Any]) -> Request:
    """A question of a random length and mix; some fill the context."""
    prompt = " ".join(draw.choices(WORDS, k=draw.choice((1, 1, 3, 8))))[: TINY_CONTEXT - 60]
    ids = draw.sample(range(len(adapters)), draw.randint(0, len(adapters)))
    mix = Composition(
        adapter_ids=tuple(ids), adapter_sha256=tuple(adapters[id_].sha256 for id_ in ids),
        weights=tuple(draw.uniform(0.2, 1) for _ in ids), strategy="cat",
    )  # fmt: skip
    if draw.random() < 0.5:
        choices = draw.choice((MANY_CHOICES, *[tuple(draw.sample(CHOICES, draw.randint(2, 5)))] * 3))
        normalization = draw.choice(NORMALIZATIONS)
        asked = Request(prompt, choices, None, normalization=normalization, composition=mix)
    else:
        asked = Request(prompt=prompt, choices=None, max_new_tokens=draw.choice((1, 2, 9, 30)), composition=mix)
    return replace(asked, submitted_by=draw.choice(("ann", "ann", "bob", "carl")))


@torch.inference_mode()
def differences(base: BaseModel, twin: Any, request: Request, answer: Prediction | JobError) -> Iterator[str]:
    """How an answer differs from plain passes of PEFT's model."""
    if isinstance(answer, JobError) and answer.code in ("prompt_blank", "choice_blank"):
        if not has_nothing(base.tokenizer, request):
            yield f"{answer.code}: {answer}"
        return
    if OVERFLOWING in request.composition.adapter_ids:
        if isinstance(answer, JobError) and answer.code != "not_finite":
            yield f"{answer.code}: {answer}"
        return
    if isinstance(answer, JobError):
        yield f"{answer.code}: {answer}"
        return
    with mixed(twin, request.composition):
        if request.choices is None:
            yield from other_text(base, twin, request, answer)
            return
        for choice, score in zip(request.choices, answer.choice_scores or (), strict=True):
            start, rest = tokens_of(base.tokenizer, request.prompt, choice)
            size = parts(choice, rest, request.normalization)
            expected = plain_score(twin, start, rest) / size
            if not abs(score - expected) <= CLOSE[base.model.dtype] * len(rest) / size:
                yield f"choice {choice!r} has {score:.4f}, plainly {expected:.4f}"


def other_text(base: BaseModel, twin: Any, request: Request, answer: Prediction) -> Iterator[str]:
    """In 16 bits two tokens may be equally likely within rounding, so only float32 is compared, up to near ties."""
    if base.model.dtype != torch.float32:
        return
    tokens = list(base.tokenizer(request.prompt, add_special_tokens=False)["input_ids"])
    start = len(tokens)
    ends = {base.tokenizer.eos_token_id, *as_list(base.model.generation_config.eos_token_id)}
    while len(tokens) < start + (request.max_new_tokens or 0):
        logits = twin(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        (best, second), (token, _) = logits.topk(2)
        if best - second < 1e-3:
            return
        if int(token) in ends:
            break
        tokens.append(int(token))
    expected = base.tokenizer.decode(tokens[start:], skip_special_tokens=True)
    if answer.output.strip() != expected.strip():
        yield f"wrote {answer.output!r}, plainly {expected!r}"


def as_list(setting: Any) -> list[Any]:
    return setting if isinstance(setting, list) else [setting]


@contextmanager
def mixed(twin: Any, mix: Composition) -> Iterator[None]:
    """Within this context PEFT's model has the mix: no adapter, or the exact weighted sum of some."""
    if not mix.adapter_ids:
        with twin.disable_adapter():
            yield
        return
    twin.add_weighted_adapter([str(id_) for id_ in mix.adapter_ids], [*mix.weights], "mix", combination_type="cat")
    twin.set_adapter("mix")
    twin.to(twin.dtype)
    try:
        yield
    finally:
        twin.set_adapter("0")
        twin.delete_adapter("mix")


def plain_score(twin: Any, start: list[int], rest: list[int]) -> float:
    logits = twin(input_ids=torch.tensor([start + rest]), use_cache=False).logits[0].float().log_softmax(-1)
    return float(sum(logits[len(start) + place - 1, token] for place, token in enumerate(rest)))


def has_nothing(tokenizer: Any, request: Request) -> bool:
    """Whether the prompt, or one of the choices after it, has no token."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    if request.choices is None:
        return not encode(request.prompt)
    context = request.prompt.rstrip()
    before = context + (request.prompt[len(context) :] or " ")
    return not encode(context) or any(encode(before + choice) == encode(before) for choice in request.choices)


def tokens_of(tokenizer: Any, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """By lm-evaluation-harness's rule: what follows the prompt's tokens in both together belongs to the choice."""
    context = prompt.rstrip()
    gap = prompt[len(context) :] or " "
    encode: Callable[[str], list[int]] = lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    start, whole = encode(context), encode(context + gap + choice)
    if whole[: len(start)] == start and len(whole) > len(start):
        return start, whole[len(start) :]
    return start, encode(gap + choice)


def sentence_pieces() -> PreTrainedTokenizerFast:
    """Pieces as SentencePiece has them: a word's first piece holds the space before it, a text begins with one."""
    size = 2 + len(LETTERS) + len(MERGES)
    whole = ["\u2581yes", "\u2581no", "\u2581is", "\u2581te", "es", "\u2581x", "\u2581"]
    letters = [letter for letter in LETTERS if letter != " "]
    pieces = ["<unk>", "<eos>", *whole, *letters][:size]
    raw = Tokenizer(Unigram([(piece, -1.0 if len(piece) > 1 else -4.0) for piece in pieces], unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")


@contextmanager
def quiet() -> Iterator[None]:
    """Without what PEFT and transformers say about each other's names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""Compares texts that join and leave at every step with batches that stay as they were claimed until all their texts
end."""

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from statistics import mean
from typing import Any

import torch

from loracomp.composition.layers import AdapterStack
from loracomp.composition.strategies import Mix
from loracomp.engine.answering import Answering, PendingRequest
from loracomp.model.forward import CACHE
from loracomp.model.loading import BaseModel
from loracomp.model.tokens import encode_texts
from loracomp.records import Composition, Request

from .passes import NOTHING, check, endless, pad_left, without_end
from .system import Submitter, working
from .timing import Measured, compare, milliseconds, over, per_second, take_turns, timed
from .workbench import Fetching, Workbench, drawing, from_memory, made_up_jobs

CLAIMED = 16
"""Number of jobs in a batch that runs until all its texts end, which is the worker's default."""
MEAN, SHORTEST, LONGEST = 48, 4, 256
LOAD = 0.8
BEGINNING, ALIKE = 400, 16
STORY = "Write a very long story about a river that wanted to see the mountains.\nOnce upon a time"
TEXT = "INSERT INTO loracomp.job (prompt, max_new_tokens, policy) VALUES (%s, %s, 'cat') RETURNING id"
STATUS = "SELECT r.status FROM loracomp.job_result AS r WHERE r.job_id = %s"


def batching(bench: Workbench, turns: int) -> Measured:
    """Measure tokens per second for texts of different lengths, waits of texts that arrive one by one, and shared
    beginnings."""
    base = endless(bench.base)
    predictor = Fetching(base, from_memory(bench.library))
    with without_end(base):
        return {
            "figures": [
                *_rates(bench, predictor, base, turns),
                *_arrivals(bench, predictor, base, turns),
                _beginnings(bench, base, turns),
            ]
        }


def lengths(count: int, seed: int) -> list[int]:
    """Draw the number of new tokens of each text from a geometric distribution within bounds."""
    draw = random.Random(seed)
    return [min(max(1 + int(draw.expovariate(1 / MEAN)), SHORTEST), LONGEST) for _ in range(count)]


def texts(bench: Workbench, count: int, seed: int, compositions: Sequence[Composition]) -> list[Request]:
    """Make requests of different lengths, each with its own composition."""
    prompts = (job["prompt"] for job in made_up_jobs(count, seed=seed))
    return [
        Request(prompt, None, length, composition=composition)
        for prompt, length, composition in zip(prompts, lengths(count, seed), compositions, strict=True)
    ]


def composed(predictor: Fetching, requests: Sequence[Request]) -> list[Mix]:
    compositions = [request.composition for request in requests]
    found = predictor.compose(compositions, predictor.load(compositions))
    check(found)
    return [each for each in found if isinstance(each, Mix)]


@torch.inference_mode()
def to_the_end(base: BaseModel, requests: Sequence[Request], mixes: Sequence[Mix]) -> None:
    """Answer a batch with `model.generate`. Whenever half of the rows have all their tokens, these rows leave the
    batch."""
    left = [request.max_new_tokens or 0 for request in requests]
    adapters = AdapterStack(base.model, mixes)
    ids, mask = pad_left(encode_texts(base.tokenizer, [request.prompt for request in requests]), base.model.device)
    running, cache = list(range(len(requests))), None
    while running:
        steps = sorted(left[row] for row in running)[(len(running) - 1) // 2]
        with adapters.composed([mixes[row] for row in running], 1 + ids.shape[1] // steps if cache is None else 1):
            output = base.model.generate(
                ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, pad_token_id=0,
                return_dict_in_generate=True, **({CACHE: cache} if cache is not None else {}),
            )  # fmt: skip
        for row in running:
            left[row] -= steps
        places = [place for place, row in enumerate(running) if left[row] > 0]
        running = [running[place] for place in places]
        if running:
            ids = output.sequences[places]
            mask = torch.cat([mask[places], mask.new_ones(len(places), steps)], dim=1)
            cache = getattr(output, CACHE)
            cache.batch_select_indices(torch.tensor(places, device=ids.device))


def in_batches(base: BaseModel, requests: Sequence[Request], mixes: Sequence[Mix]) -> None:
    for start in range(0, len(requests), CLAIMED):
        to_the_end(base, requests[start : start + CLAIMED], mixes[start : start + CLAIMED])


def by_steps(predictor: Fetching, requests: Sequence[Request], mixes: Sequence[Mix]) -> None:
    answering = predictor.begin()
    pending = [answering.add(request, mix) for request, mix in zip(requests, mixes, strict=True)]
    while answering:
        answering.step()
    outcomes: list[Any] = [each.outcome for each in pending]
    check(outcomes)
    assert [each.output_tokens for each in outcomes] == [each.max_new_tokens for each in requests]


def _rates(bench: Workbench, predictor: Fetching, base: BaseModel, turns: int) -> list[Any]:
    count = bench.sizes.texts
    requests = texts(bench, count, 7, drawing(bench.library)(count))
    alone = [replace(request, composition=NOTHING) for request in requests]
    mixes, nothing = composed(predictor, requests), composed(predictor, alone)
    runs: dict[str, Callable[[int], object]] = {
        "batches": lambda _: in_batches(base, requests, mixes),
        "steps": lambda _: by_steps(predictor, requests, mixes),
        "base": lambda _: by_steps(predictor, alone, nothing),
    }
    seconds = take_turns(runs, turns)
    details = per_second(seconds, sum(request.max_new_tokens or 0 for request in requests))
    what = f"{count} texts of {SHORTEST} to {LONGEST} tokens, each with its own mix: tokens/s"
    against = f"batches of {CLAIMED} that run until all their texts end"
    return [
        compare("texts", what, against, ">= 1.6", ratios=over(seconds, "batches", "steps"), details=details),
        compare(
            "texts alone", what, "the same steps without adapters", ">= 0.9",
            ratios=over(seconds, "base", "steps"), details=details,
        ),
    ]  # fmt: skip


def _arrivals(bench: Workbench, predictor: Fetching, base: BaseModel, turns: int) -> list[Any]:
    """Measure how long texts wait that arrive at random times, at LOAD times the rate that `in_batches` can answer."""
    count = bench.sizes.arriving
    requests = texts(bench, count, 8, drawing(bench.library)(count))
    mixes = composed(predictor, requests)
    with timed() as taken:
        in_batches(base, requests, mixes)
    waits: dict[str, list[float]] = {"batches": [], "steps": []}
    for turn in range(turns):
        draw = random.Random(turn)
        due = list(accumulate(draw.expovariate(LOAD * count / taken[0]) for _ in requests))
        waits["batches"].append(mean(_batches_of_arrivals(base, requests, mixes, due)))
        waits["steps"].append(mean(_steps_of_arrivals(predictor, requests, mixes, due)))
    what = f"{count} such texts at random times: mean wait"
    ratios = [ours / theirs for ours, theirs in zip(waits["steps"], waits["batches"], strict=True)]
    details = {f"{name}, s": mean(each) for name, each in waits.items()}
    return [
        compare(
            "arrivals",
            what,
            f"batches of {CLAIMED} that run until all their texts end",
            "<= 0.5",
            ratios=ratios,
            details=details,
        )
    ]


def _batches_of_arrivals(
    base: BaseModel, requests: Sequence[Request], mixes: Sequence[Mix], due: Sequence[float]
) -> list[float]:
    waits, waiting, start = [], deque(range(len(requests))), time.perf_counter()
    while waiting:
        time.sleep(max(0.0, start + due[waiting[0]] - time.perf_counter()))
        now = time.perf_counter() - start
        batch = [waiting.popleft() for _ in range(CLAIMED) if waiting and due[waiting[0]] <= now]
        to_the_end(base, [requests[row] for row in batch], [mixes[row] for row in batch])
        waits += [time.perf_counter() - start - due[row] for row in batch]
    return waits


def _steps_of_arrivals(
    predictor: Fetching, requests: Sequence[Request], mixes: Sequence[Mix], due: Sequence[float]
) -> list[float]:
    waits, waiting, start = [], deque(range(len(requests))), time.perf_counter()
    answering: Answering = predictor.begin()
    running: dict[int, PendingRequest] = {}
    while waiting or answering:
        if not answering:
            time.sleep(max(0.0, start + due[waiting[0]] - time.perf_counter()))
        now = time.perf_counter() - start
        while waiting and due[waiting[0]] <= now:
            row = waiting.popleft()
            running[row] = answering.add(requests[row], mixes[row])
        answering.step()
        ended = [row for row, pending in running.items() if pending.outcome is not None]
        check([running.pop(row).outcome for row in ended])
        waits += [time.perf_counter() - start - due[row] for row in ended]
    return waits


def _beginnings(bench: Workbench, base: BaseModel, turns: int) -> Any:
    """Measure the time to the first token of texts with the same beginning under one mix, when the beginning is
    computed once or for each text."""
    words = " ".join(job["prompt"] for job in made_up_jobs(2 * BEGINNING, seed=9))
    (tokens,) = encode_texts(base.tokenizer, [words])
    beginning = base.tokenizer.decode(tokens[:BEGINNING], skip_special_tokens=True)
    (composition,) = drawing(bench.library)(1)
    requests = [
        Request(f"{beginning}\n{job['prompt']}", None, 1, composition=composition)
        for job in made_up_jobs(ALIKE, seed=10, words=(2, 6))
    ]
    runs: dict[str, Callable[[int], object]] = {}
    for name, shares in (("each its own", False), ("shared", True)):
        predictor = Fetching(replace(base, shares_prompts=shares), from_memory(bench.library))
        mixes = composed(predictor, requests)
        runs[name] = lambda _, predictor=predictor, mixes=mixes: by_steps(predictor, requests, mixes)
    seconds = take_turns(runs, turns)
    what = f"{ALIKE} texts with the same first {BEGINNING} tokens: time to the first new ones"
    ratios = over(seconds, "shared", "each its own")
    return compare("beginnings", what, "each reads all", "<= 0.2", ratios=ratios, details=milliseconds(seconds))


def beside_a_text(bench: Workbench, turns: int) -> Measured:
    """Measure the time from INSERT to visible result of a scored job whose worker is generating a text, against the
    same job but for one word on an idle worker."""
    jobs = [made_up_jobs(1, seed=400 + turn) for turn in range(turns + 1)]
    # A worker remembers the scores of a prompt, so these have one more word.
    others = [[job | {"prompt": f"the {job['prompt']}"} for job in each] for each in jobs]
    with working(bench, bench.sizes.batch) as submitter:
        seconds = take_turns({"idle": lambda turn: submitter.ask(jobs[turn], 0.005)}, turns)
        busy = [_beside(submitter, each) for each in others][1:]
    what = f"a scored job during a text of {LONGEST} tokens: time"
    both = {"busy": busy, "idle": seconds["idle"]}
    found = over(both, "busy", "idle")
    return {"figures": [compare("beside", what, "an idle worker", "<= 1.5", ratios=found, details=milliseconds(both))]}


def _beside(submitter: Submitter, jobs: list[dict[str, Any]]) -> float:
    """Return the seconds of the scored job, which must end while the text is still being generated."""
    while True:
        text = submitter.one(TEXT, STORY, LONGEST)
        while submitter.one(STATUS, text) == "queued":
            time.sleep(0.01)
        time.sleep(random.Random(text).uniform(0.2, 0.4))
        with timed() as taken:
            submitter.ask(jobs, 0.005)
        still_ran = submitter.one(STATUS, text) == "running"
        while submitter.one(STATUS, text) in ("queued", "running"):
            time.sleep(0.05)
        if still_ran:
            return taken[0]

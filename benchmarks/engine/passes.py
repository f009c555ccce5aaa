"""Compares passes under many compositions with the base model alone, and measures how the time of a pass grows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loracomp.composition.blocks import Factors
from loracomp.composition.strategies import LoraFactors
from loracomp.model.loading import BaseModel
from loracomp.model.tokens import encode_texts
from loracomp.records import Composition, Request

from .timing import Figure, Measured, Seconds, compare, milliseconds, over, per_second, take_turns
from .workbench import Draw, Fetching, Workbench, drawing, made_up_jobs, to_score

NOTHING = Composition()
SCALING = 2.0
"""The scaling (alpha / rank) of random adapters."""
SCORED = ("cat", "linear")
"""The measured strategies: the default one, and the one of the paper."""


def scoring(bench: Workbench, turns: int) -> Measured:
    """Compare a batch in which each job has another composition with the base model alone on the same batch."""
    jobs = made_up_jobs(bench.sizes.batch, seed=1)
    mixed = {each: asking(bench.predictor(), jobs, drawing(bench.library, strategy=each)) for each in SCORED}
    seconds = take_turns({"base": asking(bench.predictor(), jobs), **mixed}, turns)
    return {"figures": [_scoring(bench, seconds, strategy) for strategy in SCORED]}


def _scoring(bench: Workbench, seconds: Seconds, strategy: str) -> Figure:
    jobs, both = bench.sizes.batch, {each: seconds[each] for each in ("base", strategy)}
    what = f"scoring, {jobs} new mixes by {strategy}: jobs/s"
    details = per_second(both, jobs) | milliseconds(both)
    found = over(both, "base", strategy)
    return compare(f"scoring {strategy}", what, "base model alone", ">= 0.95", ratios=found, details=details)


def asking(predictor: Fetching, jobs: Sequence[dict[str, Any]], draw: Draw | None = None) -> Any:
    """Return a function that loads missing adapters, composes, and scores the jobs."""

    def run(_: int) -> None:
        compositions = draw(len(jobs)) if draw else [NOTHING] * len(jobs)
        check(predictor.predict(to_score(jobs, compositions)))

    return run


def check(answers: Sequence[object]) -> None:
    """Raise if an answer is an error, because a failing run would look fast."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def generation(bench: Workbench, turns: int) -> Measured:
    """Compare greedy generation, each job under another composition, with `model.generate` without adapters."""
    alone, mixed = generating(bench)
    with without_end(bench.base):
        seconds = take_turns({"base": alone, "mixed": mixed}, turns)
    jobs = bench.sizes.generating
    what = f"generation, {jobs} new mixes by cat: tokens/s"
    details = per_second(seconds, jobs * bench.sizes.new_tokens)
    against = "`model.generate` without adapters"
    return {
        "figures": [
            compare("generation", what, against, ">= 0.9", ratios=over(seconds, "base", "mixed"), details=details)
        ]
    }


def generating(bench: Workbench) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Return two runs for `without_end`: `model.generate` without adapters, and ours with a different mix for each
    job."""
    base = endless(bench.base)
    prompts = [job["prompt"] for job in made_up_jobs(bench.sizes.generating, seed=2)]
    predictor, draw = bench.predictor(base=base), drawing(bench.library)
    ids, mask = pad_left(encode_texts(base.tokenizer, prompts), base.model.device)

    def alone(_: int) -> None:
        with torch.inference_mode():
            output = base.model.generate(
                ids, attention_mask=mask, max_new_tokens=bench.sizes.new_tokens, do_sample=False, pad_token_id=0
            )
        assert output.shape[1] == ids.shape[1] + bench.sizes.new_tokens

    def mixed(_: int) -> None:
        requests = [
            Request(prompt, None, bench.sizes.new_tokens, composition=composition)
            for prompt, composition in zip(prompts, draw(bench.sizes.generating), strict=True)
        ]
        answers = predictor.predict(requests)
        check(answers)
        assert all(answer.output_tokens == bench.sizes.new_tokens for answer in answers)

    return alone, mixed


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask [rows, longest], padded on the left, so that all next tokens follow the last
    column."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def endless(base: BaseModel) -> BaseModel:
    """Return the base model with a tokenizer without an end-of-text token, so that every answer has the full length."""
    tokenizer = type(base.tokenizer).from_pretrained(base.tokenizer.name_or_path)
    tokenizer.eos_token = None
    return replace(base, tokenizer=tokenizer)


@contextmanager
def without_end(base: BaseModel) -> Iterator[None]:
    """Within this context, the model's generation settings have no end-of-text token."""
    settings = base.model.generation_config
    end, settings.eos_token_id = settings.eos_token_id, None
    try:
        yield
    finally:
        settings.eos_token_id = end


def random_adapter(
    shapes: Mapping[str, tuple[int, int]], rank: int, number: int, *, norm: float, std: float
) -> LoraFactors:
    """Make an adapter in bfloat16. Each row of A has about the norm `norm`; the elements of B have standard deviation
    `std`."""
    generator = torch.Generator().manual_seed(number)

    def normal(*shape: int, std: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * std).bfloat16()

    factors = {
        module: Factors(normal(rank, d_in, std=norm * d_in**-0.5), normal(d_out, rank, std=std))
        for module, (d_out, d_in) in shapes.items()
    }
    return LoraFactors(number, f"{number:064x}", SCALING, factors)

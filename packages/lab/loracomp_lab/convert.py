"""Converts any PEFT adapter to the nearest plain LoRA, and reports how much of the adapter is lost.

PEFT can merge an adapter of any kind (DoRA, full `modules_to_save`, LoHa, LoKr, VeRA, trained tokens) into the base
model's weights. The nearest change of a given rank is the truncated SVD of that change (Eckart and Young 1936).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from loracomp.composition.blocks import Factors
from loracomp.errors import RefusedError, UsageError
from loracomp.model.loading import BaseModel, quiet_transformers
from loracomp.registry.adapter_files import check_new, read_folder, write_folder

EVERYTHING = "(everything)"


@dataclass(frozen=True, slots=True)
class Converted:
    """How well LoRA expresses the adapter's change of one module or parameter, or of all of them together."""

    module: str
    rank: int
    """Rank of the LoRA; 0 if LoRA can't express the change (biases, norms, experts)."""
    norm: float
    """Frobenius norm of the adapter's change."""
    relative_error: float
    """Frobenius norm of the difference between the change and its LoRA, divided by `norm`."""


def convert_adapter(
    folder: Path, output: Path, base: BaseModel, rank: int, *, any_base: bool = False
) -> list[Converted]:
    """Write the nearest LoRA of the given rank as a PEFT folder; returns the error of each module and, last, of all
    modules together.

    `base` must be loaded in float32; the adapter is merged into it, so it can't be used afterwards. The rounding of the
    base model's weights limits the accuracy to about 1e-7 of the weights' norm. Raises RefusedError if `read_folder`
    refuses the folder, if PEFT can't load or merge the adapter, if the adapter's change contains NaN, or if the adapter
    changes nothing that LoRA can express; UsageError if the output folder is not empty or the rank is below 1.
    """
    if rank < 1:
        raise UsageError(f"rank is {rank}; it must be 1 or more")
    check_new(output)
    config, training, weights = read_folder(folder, base, any_base=any_base)
    if not _reaches_both(config):
        _untie_head(base)
    before = {name: parameter.detach().clone() for name, parameter in _parameters(base).items()}
    _merge(folder, base)
    changes = {
        name: change
        for name, parameter in _parameters(base).items()
        if bool((change := parameter.detach() - before[name]).any())
    }
    factors, report = {}, []
    for name, change in sorted(changes.items()):
        module = name.removesuffix(".weight")
        if not change.isfinite().all():
            raise RefusedError(
                f"adapter {folder}: it changes {module} by NaN or infinity; its training went wrong, so train it again"
            )
        if module not in base.modules or name == module:
            report.append(Converted(name, 0, float(change.norm()), 1.0))
            continue
        turned = isinstance(base.model.get_submodule(module), nn.Linear)
        factors[module], converted = _nearest(module, change if turned else change.mT, rank)
        report.append(converted)
    if not factors:
        raise RefusedError(f"adapter {folder}: it changes no linear layer and no embedding, so LoRA cannot express it")
    report.append(_together(report))
    origin = {"sha256": sha256(weights).hexdigest(), "peft_type": config.get("peft_type"), "rank": rank}
    lineage = {"converted_from": origin | {"relative_error": report[-1].relative_error}}
    about = {"base_model": {"name": base.name, "fingerprint": base.fingerprint}}
    _write(output, base, factors, about | training | lineage)
    return report


def _parameters(base: BaseModel) -> dict[str, nn.Parameter]:
    """Return all parameters by name; a tied parameter appears under each of its names."""
    return dict(base.model.named_parameters(remove_duplicate=False))


def _reaches_both(config: Mapping[str, Any]) -> bool:
    """Return whether PEFT adapts the output head too when the head is tied to the embedding.

    PEFT does so if the config asks for it, and always for adapters of single tokens.
    """
    single_tokens = config.get("trainable_token_indices") or config.get("peft_type") == "TRAINABLE_TOKENS"
    return bool(config.get("ensure_weight_tying") or single_tokens)


def _untie_head(base: BaseModel) -> None:
    """Give the output head its own copy of the weight that it shares with the embedding.

    PEFT adapts only one of two tied modules, but would merge the change into both.
    """
    head = base.model.get_output_embeddings()
    if head.weight is base.model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        base.model.config.tie_word_embeddings = False


def _merge(folder: Path, base: BaseModel) -> None:
    from peft import PeftModel  # noqa: PLC0415  seconds, and for conversions only

    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT uses names that transformers has deprecated
            PeftModel.from_pretrained(base.model, folder).merge_and_unload()
    except Exception as error:  # PEFT's adapter kinds raise many types of exception
        first_line = str(error).strip().partition("\n")[0]
        raise RefusedError(
            f"adapter {folder}: PEFT cannot merge it into {base.name}: {type(error).__name__}: {first_line}"
        ) from error


def _nearest(module: str, change: Tensor, rank: int) -> tuple[Factors, Converted]:
    """Return the LoRA factors nearest to a change [d_out, d_in]. Their rank is the given one, or the change's own rank
    if that is lower."""
    U, S, Vh = torch.linalg.svd(change.float(), full_matrices=False)
    root = S[:rank].sqrt()
    norm, lost = float(S.norm()), float(S[rank:].norm())
    return Factors(root[:, None] * Vh[:rank], U[:, :rank] * root), Converted(module, len(root), norm, lost / norm)


def _together(parts: Sequence[Converted]) -> Converted:
    norm = math.hypot(*(part.norm for part in parts))
    lost = math.hypot(*(part.norm * part.relative_error for part in parts))
    return Converted(EVERYTHING, max(part.rank for part in parts), norm, lost / norm)


def _write(output: Path, base: BaseModel, factors: Mapping[str, Factors], training: Mapping[str, Any]) -> None:
    rank = max(len(A) for A, _ in factors.values())
    lower = {module: len(A) for module, (A, _) in factors.items() if len(A) < rank}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.source,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": lower,
        "alpha_pattern": lower,
        "target_modules": sorted(factors),
        "inference_mode": True,
    }
    tensors = {}
    for module, pair in factors.items():
        lookup = isinstance(base.model.get_submodule(module), nn.Embedding)
        for side, tensor in zip("AB", pair, strict=True):
            name = f"lora_embedding_{side}" if lookup else f"lora_{side}.weight"
            tensors[f"base_model.model.{module}.{name}"] = tensor.contiguous()
    write_folder(output, config, training, save(tensors))

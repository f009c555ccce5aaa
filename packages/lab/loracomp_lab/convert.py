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
MERGEABLE = {
    "LORA", "ADALORA", "BOFT", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR",
    "MISS", "OFT", "RANDLORA", "ROAD", "SHIRA", "TRAINABLE_TOKENS", "VBLORA", "VERA", "WAVEFT",
}  # fmt: skip
"""Kinds of adapter (`peft_type`) that PEFT merges, and of which it reads the folder's files alone. Other kinds may name
files elsewhere, or adapters on the hub."""
WRONG = 0.01
"""Largest error of the logits of the merged adapter, as a share of the adapter's effect on them."""
ROUNDING = 2e-5
"""Largest rounding of these logits, as a share of their size."""


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
    refuses the folder, if PEFT can't load or merge such an adapter, if merging changes its logits or adds layers, if
    its change contains NaN, or if it changes nothing that LoRA can express; UsageError if the output folder is not
    empty or the rank is below 1.
    """
    if rank < 1:
        raise UsageError(f"rank is {rank}; it must be 1 or more")
    check_new(output)
    config, training, weights = read_folder(folder, base, any_base=any_base)
    if (kind := config.get("peft_type")) not in MERGEABLE or config.get("megatron_config"):
        raise RefusedError(
            f"adapter {folder}: PEFT cannot merge an adapter of the kind {kind!r}; "
            f"it merges {', '.join(sorted(MERGEABLE))}"
        )
    before = {name: parameter.detach().clone() for name, parameter in _parameters(base).items()}
    _merge(folder, base)
    after = _parameters(base)
    if after.keys() != before.keys():
        raise RefusedError(
            f"adapter {folder}: it adds or removes layers or parameters of {base.name}, so LoRA cannot express it"
        )
    changes = {
        name: change for name, parameter in after.items() if bool((change := parameter.detach() - before[name]).any())
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


def _untie(base: BaseModel) -> None:
    """Give modules that share a parameter, such as an embedding and the output head, a copy each.

    PEFT may change one of them only, or both of them, but would merge every change into what they share.
    """
    known = set()
    for module in base.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in known:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            known.add(parameter)
    base.model.config.tie_word_embeddings = False


def _merge(folder: Path, base: BaseModel) -> None:
    """Merge the adapter into the base model. Raises RefusedError if this gives other logits than the adapter itself."""
    from peft import PeftModel  # noqa: PLC0415  seconds, and for conversions only

    plain = _logits(base)
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT uses names that transformers has deprecated
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # `_untie` follows
            adapted = PeftModel.from_pretrained(base.model, folder)
            loaded = _logits(base)
            _untie(base)
            adapted.merge_and_unload()
    except Exception as error:  # PEFT's adapter kinds raise many types of exception
        first_line = str(error).strip().partition("\n")[0]
        raise RefusedError(
            f"adapter {folder}: PEFT cannot merge it into {base.name}: {type(error).__name__}: {first_line}"
        ) from error
    wrong = _distance(loaded, _logits(base))
    if wrong > WRONG * _distance(plain, loaded) + ROUNDING * _distance(loaded, torch.zeros_like(loaded)):
        raise RefusedError(
            f"adapter {folder}: merged into {base.name} by PEFT, it gives logits that differ by {wrong:.2g} from those "
            "of the adapter itself, so LoRA made from it would be another adapter"
        )


def _logits(base: BaseModel) -> Tensor:
    """Return the logits [tokens, vocabulary] of tokens from the whole vocabulary, in short rows."""
    size = base.model.get_input_embeddings().weight.shape[0]
    tokens = torch.linspace(0, size - 1, 64).long().view(-1, 4).to(base.model.device)
    with torch.inference_mode():
        logits: Tensor = base.model(input_ids=tokens, use_cache=False).logits
    return logits.flatten(0, 1)


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference in a token's logits; of the tokens, the median, because rounding can make a
    mixture of experts choose others in a few of them."""
    return float((one - other).abs().amax(-1).median())


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

"""Adapters as PEFT folders (adapter_config.json, adapter_model.safetensors): read whole, checked before anything else.

Plain LoRA on linear layers is accepted. Every other feature of PEFT is refused by name, because composing would
silently drop it.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from loracomp.composition.blocks import Factors
from loracomp.errors import RefusedError
from loracomp.registry.base_models import RegisteredBaseModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRAINING = "training.json"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Settings that do not change what the stored factors mean. Any other one must be absent, null, false or empty.
HARMLESS = """
    peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r lora_alpha
    use_rslora lora_dropout target_modules exclude_modules layers_to_transform layers_pattern init_lora_weights
    megatron_core megatron_config loftq_config eva_config corda_config lora_ga_config runtime_config
    qalora_group_size ensure_weight_tying
"""
# Starts that take a part out of the base model's weights: the factors fit the changed weights only.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
KNOWN_KEYS = {
    "lora_magnitude_vector": "DoRA (use_dora)",
    ".bias": "biases (bias, lora_bias)",
    "modules_to_save": "modules_to_save",
    "lora_embedding_": "an adapted embedding",
}


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A checked adapter: everything that the registry keeps of it."""

    weights: bytes
    """The safetensors file as it came."""
    config: Mapping[str, Any]
    training: Mapping[str, Any]
    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    """Full names in the base model, sorted."""
    parameter_count: int

    @property
    def sha256(self) -> str:
        """Hex digest of the safetensors file."""
        return hashlib.sha256(self.weights).hexdigest()

    @property
    def scaling(self) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA (PEFT's LoraLayer.scaling)."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def read_adapter(folder: Path, base: RegisteredBaseModel, *, any_base: bool = False) -> AdapterFile:
    """Read a PEFT folder and check all of it against the base model.

    Shapes and module names decide whether it fits. The name of a base model in its config is a hint: one that is
    clearly another's is refused unless `any_base`. A fingerprint in its training.json is proof, and must be the base
    model's. Raises RefusedError that names the folder and what is wrong, with the way out.
    """
    try:
        config = _read_json(folder / CONFIG)
        training = _read_json(folder / TRAINING) if (folder / TRAINING).exists() else {}
        rank, alpha = _check_config(config)
        _check_base(config, training, base, any_base)
        weights = _read_weights(folder)
        factors = parse_factors(weights)
        _check_factors(factors, rank, base)
        _check_targets(config, factors, base)
    except RefusedError as error:
        raise RefusedError(f"adapter {folder}: {error}") from error
    return AdapterFile(
        weights=weights,
        config=config,
        training=training,
        rank=rank,
        alpha=alpha,
        use_rslora=bool(config.get("use_rslora")),
        target_modules=tuple(sorted(factors)),
        parameter_count=sum(A.numel() + B.numel() for A, B in factors.values()),
    )


def parse_factors(weights: bytes) -> dict[str, Factors]:
    """Factors by module out of a safetensors file, in its precision. Raises RefusedError naming what is wrong."""
    try:
        tensors = load(weights)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{WEIGHTS} is corrupt or cut off: {error}") from error
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise RefusedError(_strange_key(key))
        pairs.setdefault(match["module"], {})[match["factor"]] = tensor
    if not pairs:
        raise RefusedError(f"{WEIGHTS} holds no factors")
    if halves := [module for module, pair in pairs.items() if len(pair) < 2]:
        raise RefusedError(f"{WEIGHTS} lacks one of the two factors of {', '.join(halves)}")
    return {module: Factors(pair["A"], pair["B"]) for module, pair in sorted(pairs.items())}


def _strange_key(key: str) -> str:
    for part, name in KNOWN_KEYS.items():
        if part in key:
            return f"{WEIGHTS} holds {key}: {name} cannot be composed; train the adapter without"
    return f"{WEIGHTS} holds {key}, which is no factor of plain LoRA (base_model.model.MODULE.lora_A.weight)"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError:
        raise RefusedError(f"there is no {path.name}: name a folder that PEFT's save_pretrained wrote") from None
    except (OSError, ValueError) as error:
        raise RefusedError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise RefusedError(f"{path.name} is not a JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _read_weights(folder: Path) -> bytes:
    path = folder / WEIGHTS
    if path.is_file():
        return path.read_bytes()
    if pickles := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        raise RefusedError(
            f"{pickles[0]} is a pickle, which can run code when loaded; save the adapter as {WEIGHTS} "
            "(save_pretrained with safe_serialization=True)"
        )
    raise RefusedError(f"there is no {WEIGHTS}")


def _check_config(config: Mapping[str, Any]) -> tuple[int, float]:
    """Rank and alpha of a plain LoRA; raises RefusedError by name for everything else."""
    if config.get("peft_type") != "LORA":
        raise RefusedError(f"peft_type is {config.get('peft_type')!r}; only LORA can be composed")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise RefusedError(f"task_type is {config['task_type']!r}; base models are causal language models (CAUSAL_LM)")
    for name, value in config.items():
        if name not in HARMLESS.split() and value not in (None, False, [], {}, "", "none"):
            raise RefusedError(f"{name} is {value!r}: not plain LoRA, and cannot be composed; train it without {name}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise RefusedError(
            f"init_lora_weights is {start!r}, which changes the base model; convert the adapter to plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 65536:
        raise RefusedError(f"r is {rank!r}; it must be a whole number from 1 to 65536")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 1e-6 <= alpha <= 1e6:
        raise RefusedError(f"lora_alpha is {alpha!r}; it must be a number from 1e-6 to 1e6")
    return rank, float(alpha)


def _check_base(
    config: Mapping[str, Any], training: Mapping[str, Any], base: RegisteredBaseModel, any_base: bool
) -> None:
    trained_on = training.get("base_model")
    if isinstance(trained_on, dict) and trained_on.get("fingerprint"):
        if trained_on["fingerprint"] != base.fingerprint:
            raise RefusedError(
                f"it was trained on {trained_on.get('name')} (fingerprint {str(trained_on['fingerprint'])[:12]}), "
                f"not on {base.name} ({base.fingerprint[:12]}): register that base model and name it"
            )
        return
    hint = config.get("base_model_name_or_path")
    if any_base or not hint or _short(str(hint)) in {_short(base.name), _short(base.source), base.fingerprint}:
        return
    raise RefusedError(
        f"its config names the base model {hint!r}, not {base.name} ({base.source}): "
        "name the right base model, or say --any-base if they are the same weights"
    )


def _short(name: str) -> str:
    """Last part of a hub id or path, without a GGUF file's ending and the name of its quantisation."""
    last = name.removeprefix("package:").rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    return re.sub(r"[.-](i?q\d\w*|b?f(p)?(16|32))$", "", last)


def _check_factors(factors: Mapping[str, Factors], rank: int, base: RegisteredBaseModel) -> None:
    for module, (A, B) in factors.items():
        if module not in base.modules:
            raise RefusedError(f"module {module} is no linear layer of base model {base.name}")
        d_out, d_in = base.modules[module]
        if tuple(A.shape) != (rank, d_in) or tuple(B.shape) != (d_out, rank):
            raise RefusedError(
                f"module {module} has factors A {list(A.shape)} and B {list(B.shape)}; with r = {rank}, "
                f"base model {base.name} needs A {[rank, d_in]} and B {[d_out, rank]}"
            )
        for name, tensor in (("A", A), ("B", B)):
            if tensor.dtype not in DTYPES:
                raise RefusedError(f"module {module}: factor {name} is {tensor.dtype}; save it as bfloat16 or float32")
            if not bool(torch.isfinite(tensor).all()):
                raise RefusedError(f"module {module}: factor {name} holds NaN or infinity; the training went wrong")


def _check_targets(config: Mapping[str, Any], factors: Mapping[str, Factors], base: RegisteredBaseModel) -> None:
    """Compare the modules in the file with those that PEFT would adapt for the config."""
    if config.get("target_modules") == "all-linear":
        return
    from peft.tuners.tuners_utils import check_target_module_exists  # noqa: PLC0415  seconds, and for registration only

    names = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    settings = SimpleNamespace(**{name: config.get(name) for name in names})
    try:
        meant = {module for module in base.modules if check_target_module_exists(settings, module)}
    except (re.error, TypeError) as error:
        raise RefusedError(f"target_modules {config.get('target_modules')!r} cannot be read: {error}") from error
    if missing := sorted(meant - factors.keys()):
        raise RefusedError(f"{WEIGHTS} lacks factors for {', '.join(missing[:3])}, which target_modules names")
    if surplus := sorted(factors.keys() - meant):
        raise RefusedError(f"{WEIGHTS} has factors for {', '.join(surplus[:3])}, which target_modules does not name")

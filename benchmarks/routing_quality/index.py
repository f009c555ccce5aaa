"""An index of a library's examples, searched and weighted in NumPy exactly as the SQL functions do it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.databases import batches
from loracomp.model.encoder import Encoder
from loracomp.model.encoding import (
    CHOICE_LENGTH_SHARE,
    CHOICE_LENGTHS,
    COUNT_SHARE,
    PROMPT_LENGTH_SHARE,
    PROMPT_LENGTHS,
    SHAPE,
    VIEWS,
    shape,
)
from loracomp.registry.library_files import read_examples_file, read_manifest

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Query:
    """A row of a data set, worded in several ways."""

    task: str
    family: str
    prompts: dict[str, str]
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    k: int = 30
    temperature: float = 0.1
    top_p: float = 0.95
    max_adapters: int = 8


@dataclass(frozen=True)
class Shares:
    """Shares in the cosine, as in `model.encoding`; `prompt` is the prompt's part of the share that texts have."""

    prompt_length: float = PROMPT_LENGTH_SHARE
    choice_length: float = CHOICE_LENGTH_SHARE
    count: float = COUNT_SHARE
    prompt: float = 0.5

    @property
    def texts(self) -> float:
        return 1 - self.prompt_length - self.choice_length - self.count


NO_SHAPE = Shares(0, 0, 0)
PARTS = np.cumsum([len(PROMPT_LENGTHS), len(CHOICE_LENGTHS)])
"""Indexes at which the parts of a shape end: the prompt's length, the choices' length, their number."""


class Index:
    """A library's examples: unit vectors of prompts and choices [n, d], parts of the shape, and tasks."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self.encoder = manifest.encoder.source
        self.tasks = sorted(manifest.tasks)
        self.families = np.array([manifest.tasks[task].family for task in self.tasks])
        files = [read_examples_file(folder, task) for task in self.tasks]
        self.source_refs = [reference for file in files for reference in file.source_refs]
        vectors = np.concatenate([file.embeddings for file in files]).astype(float)
        texts, shapes = np.split(vectors, [vectors.shape[1] - SHAPE], axis=1)
        self.prompts, self.choices = map(unit, np.split(texts, VIEWS, axis=1))
        self.shapes = [unit(part) for part in np.split(shapes, PARTS, axis=1)]
        self.owners = np.repeat(np.arange(len(files)), [len(file.source_refs) for file in files])
        self.places = np.concatenate([np.arange(len(file.source_refs)) for file in files])


def unit(vectors: Array) -> Array:
    """The vectors scaled to length 1; zero vectors stay zero."""
    lengths: Array = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


class Embedder:
    """The encoder with a cache of embeddings, optionally in a file, which contains hashes of the texts, no texts."""

    def __init__(self, encoder: Encoder, cache: Path | None) -> None:
        self._encoder, self._cache = encoder, cache
        self._known: dict[str, Array] = {}
        if cache and cache.is_file():
            stored = np.load(cache)
            self._known = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))

    def __call__(self, texts: Sequence[str]) -> Array:
        """Unit vectors [n, d] of single texts."""
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        unknown = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        for some in batches(sorted(unknown, key=lambda key: len(unknown[key])), 512):
            vectors = self._encoder.encode([(unknown[key], None) for key in some])
            prompts = unit(vectors[:, : (self._encoder.dimensions - SHAPE) // VIEWS])
            self._known |= dict(zip(some, prompts, strict=True))
            if self._cache:
                np.savez(self._cache, keys=list(self._known), vectors=np.array(list(self._known.values())))
        return np.array([self._known[key] for key in keys], dtype=float)


def joined(choices: Sequence[str]) -> str:
    return " | ".join(choices)


def nearest(similarities: Array, owners: npt.NDArray[np.int64], k: int = 200) -> tuple[Array, npt.NDArray[np.int64]]:
    """For each row its k largest similarities [m, k], in descending order, and their tasks."""
    some = np.argpartition(-similarities, min(k, similarities.shape[1]) - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similarities, some, 1), axis=1)
    best = np.take_along_axis(some, order, 1)
    return np.take_along_axis(similarities, best, 1), owners[best]


def weigh(found: tuple[Array, npt.NDArray[np.int64]], tasks: int, use: Settings) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Probabilities [m, tasks], and which tasks the nucleus keeps, as in `loracomp.task_weights`."""
    similarities, owners = found[0][:, : use.k], found[1][:, : use.k]
    shares = np.exp((similarities - similarities[:, :1]) / use.temperature)
    shares /= shares.sum(1, keepdims=True)
    place = (np.arange(len(shares))[:, None] * tasks + owners).ravel()
    masses: Array = np.bincount(place, shares.ravel(), len(shares) * tasks).reshape(len(shares), tasks)
    order = np.argsort(-masses, axis=1, kind="stable")
    falling = np.take_along_axis(masses, order, 1)
    kept = (falling > 0) & (np.arange(tasks) < use.max_adapters)
    kept &= np.cumsum(falling, 1) - falling < use.top_p - 1e-9
    inside = np.zeros_like(kept)
    np.put_along_axis(inside, order, kept, 1)
    return masses, inside


class Similarities:
    """Similarities [m, n] between queries and the examples of an index, separately for each part of the vectors."""

    def __init__(self, index: Index, queries: Sequence[Query], embed: Embedder) -> None:
        self._index, self._queries = index, queries
        texts = embed([joined(query.choices) for query in queries])
        # For a query without choices this part of the similarity is 0.
        self._choices = texts @ index.choices.T * np.array([[bool(query.choices)] for query in queries])
        forms = queries[0].prompts
        self._prompts = {form: embed([q.prompts[form] for q in queries]) @ index.prompts.T for form in forms}
        self._shapes = {form: self._shape(form) for form in forms}

    def _shape(self, form: str) -> list[Array]:
        shapes = np.array([shape(query.prompts[form], query.choices) for query in self._queries])
        parts = map(unit, np.split(shapes.astype(float), PARTS, axis=1))
        return [ours @ theirs.T for ours, theirs in zip(parts, self._index.shapes, strict=True)]

    def __call__(self, form: str, shares: Shares = Shares()) -> Array:
        """The cosines that `loracomp.model.encoding.join_views` would give with these shares."""
        parts = (self._prompts[form], self._choices, *self._shapes[form])
        weights = (
            shares.texts * shares.prompt,
            shares.texts * (1 - shares.prompt),
            shares.prompt_length,
            shares.choice_length,
            shares.count,
        )
        chosen = np.array([[bool(query.choices)] for query in self._queries])
        missing = np.where(chosen, 0, weights[1] + weights[3])
        total: Array = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / np.sqrt(1 - missing)
        return total

"""Files measurements/<task>.safetensors of a library: scores of a task's examples under adapters, without text."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loracomp.errors import RefusedError
from loracomp.registry.checked_files import Form, Part, StorableText, read_arrays

ABOUT = "measurements"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MeasuredExample:
    """A measured example, without its text."""

    content_hash: bytes
    label: int
    """Index of the right choice, from 0."""
    digest: bytes
    """Sha256 of the prompt and choices that were scored."""


@dataclass(frozen=True, slots=True)
class Gains:
    """Gains of m adapters on n examples; a gain is NaN if the adapter was not measured on the example."""

    base_scores: npt.NDArray[np.float64]
    """[n], log-probability of the right choice under the base model alone, in nats."""
    bases_are_right: npt.NDArray[np.bool_]
    """[n], whether the base model alone chooses the right choice."""
    gains: npt.NDArray[np.float64]
    """[n, m], log-probability of the right choice under an adapter alone, minus the base model's, in nats."""
    are_right: npt.NDArray[np.bool_]
    """[n, m], whether the adapter alone chooses the right choice."""


@dataclass(frozen=True, slots=True)
class MeasuredExamples:
    """Scores of examples under the base model and under adapters, each alone."""

    base_model: str
    """Fingerprint of the base model."""
    normalization: str
    """How the choices' log-likelihoods were normalised: none, or divided by characters or tokens."""
    adapters: Mapping[str, str]
    """For each task the digest of its adapter (`AdapterFile.digest`), in the order of the columns.

    Scores are valid only for an adapter with this digest.
    """
    examples: tuple[MeasuredExample, ...]
    scores: Floats
    """[examples, 1 + adapters, choices], normalised log-likelihoods in nats; index 0 is the base model.

    NaN after an example's last choice, and if an adapter was not measured.
    """

    def gains(self) -> Gains:
        """The gain of each adapter on each example: log softmax of the right choice, minus the base model's."""
        labels = np.array([example.label for example in self.examples], dtype=int)
        scores = np.where(np.isnan(self.scores), -np.inf, self.scores).astype(np.float64)
        measured = np.isfinite(scores[:, :, 0])
        highest = np.where(measured, scores.max(2, initial=-np.inf), 0)
        totals = highest + np.log(np.where(measured, np.exp(scores - highest[:, :, None]).sum(2), 1))
        right = np.take_along_axis(scores, labels[:, None, None], 2)[:, :, 0]
        logs = np.where(measured, right - totals, np.nan)
        are_right = measured & (scores.argmax(2) == labels[:, None])
        return Gains(logs[:, 0], are_right[:, 0], logs[:, 1:] - logs[:, :1], are_right[:, 1:])


class _About(Part):
    base_model: StorableText
    normalization: StorableText
    adapters: dict[StorableText, StorableText]


def measurements_path(folder: Path, task: str) -> Path:
    """Path of the file with the measurements on a task's examples."""
    return folder / "measurements" / f"{task}.safetensors"


def read_measurements(path: Path) -> MeasuredExamples | None:
    """Read a file of measurements; None if it does not exist. Raises RefusedError if it is not valid."""
    if not path.is_file():
        return None
    forms: dict[str, Form] = {
        "content_hashes": (("U8",), ("examples", 32)),
        "labels": (("U8", "I64"), ("examples",)),
        "digests": (("U8",), ("examples", 32)),
        "scores": (("F32",), ("examples", "base model and adapters", "choices")),
    }
    about, arrays = read_arrays(path, _About, ABOUT, forms)
    labels, scores = arrays["labels"].astype(int), arrays["scores"]
    if scores.shape[1] != 1 + len(about.adapters):
        raise RefusedError(f"{path}: the number of adapters differs from the shape of the scores")
    _check_scores(path, labels, scores)
    rows = zip(arrays["content_hashes"], labels, arrays["digests"], strict=True)
    examples = tuple(
        MeasuredExample(content.tobytes(), int(label), digest.tobytes()) for content, label, digest in rows
    )
    (content_hash, times), *_ = Counter(example.content_hash for example in examples).most_common(1) or [(b"", 1)]
    if times > 1:
        raise RefusedError(f"{path}: the example with content hash {content_hash.hex()} is measured {times} times")
    return MeasuredExamples(about.base_model, about.normalization, about.adapters, examples, scores)


def _check_scores(path: Path, labels: npt.NDArray[np.int_], scores: Floats) -> None:
    if scores.shape[2] == 0 or (labels.size and (labels.min() < 0 or labels.max() >= scores.shape[2])):
        raise RefusedError(f"{path}: a label is not the index of a choice")
    right = np.take_along_axis(scores, labels[:, None, None], 2)[:, :, 0]
    if np.isinf(scores).any() or (np.isnan(right) & ~np.isnan(scores[:, :, 0])).any():
        raise RefusedError(f"{path}: a score is infinite, or missing for the right choice")

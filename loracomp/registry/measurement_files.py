"""Files measurements/<task>.safetensors of a library: scores of a task's examples under adapters, without text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from loracomp.errors import RefusedError

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
        """The gain of each adapter on each example: log softmax of the right choice, minus that of the base model."""
        labels = np.array([example.label for example in self.examples], dtype=int)
        scores = np.where(np.isnan(self.scores), -np.inf, self.scores).astype(np.float64)
        measured = np.isfinite(scores[:, :, 0])
        highest = np.where(measured, scores.max(2, initial=-np.inf), 0)
        totals = highest + np.log(np.where(measured, np.exp(scores - highest[:, :, None]).sum(2), 1))
        right = np.take_along_axis(scores, labels[:, None, None], 2)[:, :, 0]
        logs = np.where(measured, right - totals, np.nan)
        are_right = measured & (scores.argmax(2) == labels[:, None])
        return Gains(logs[:, 0], are_right[:, 0], logs[:, 1:] - logs[:, :1], are_right[:, 1:])


def measurements_path(folder: Path, task: str) -> Path:
    """Path of the file with the measurements on a task's examples."""
    return folder / "measurements" / f"{task}.safetensors"


def read_measurements(path: Path) -> MeasuredExamples | None:
    """Read a file of measurements; None if it does not exist. Raises RefusedError if it is not valid."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()[ABOUT])
            rows = (file.get_tensor(name) for name in ("content_hashes", "labels", "digests"))
            examples = tuple(
                MeasuredExample(content_hash.tobytes(), int(label), digest.tobytes())
                for content_hash, label, digest in zip(*rows, strict=True)
            )
            scores = file.get_tensor("scores")
        found = MeasuredExamples(about["base_model"], about["normalization"], about["adapters"], examples, scores)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"{path} is corrupt or cut off: {error}") from error
    if scores.shape[:2] != (len(examples), 1 + len(found.adapters)):
        raise RefusedError(f"{path}: the numbers of examples and adapters differ from the shape of the scores")
    return found

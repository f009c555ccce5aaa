"""The frozen records that pass between a job's six steps. Nothing here computes anything but a digest."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Strategy = str
"""One of: linear, cat, ties, magnitude_prune, dare_linear, dare_ties (DESIGN: strategies)."""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job, as `claim_jobs` returns it. `lease_token` fences every later write."""

    id: int
    lease_token: int
    kind: str
    """'predict', 'route' for the weights alone, or 'measure' for what adapters are worth on an example."""
    prompt: str
    choices: tuple[str, ...] | None
    max_new_tokens: int | None
    stop: tuple[str, ...] = ()
    attempts: int = 1
    timeout_s: float = 600.0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    """Of text that is drawn; None: the job's id."""

    def __hash__(self) -> int:
        # A batch's jobs are looked up some twenty times each, and their texts would be hashed with them.
        return self.id


@dataclass(frozen=True, slots=True)
class Composition:
    """Adapters and weights, with how they are merged. No adapters: the base model alone."""

    adapter_ids: tuple[int, ...] = ()
    adapter_sha256: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    strategy: Strategy = "linear"
    density: float = 1.0
    seed: int = 0
    random_parameters: bool = False
    """A control: each adapter's factors are replaced by random ones of the same norm, drawn from `seed`."""

    def digest(self, base_fingerprint: str, scalings: Sequence[float]) -> str:
        """Sha256 hex of what decides the result: base model, settings of the merge, sorted adapters with weights.

        `scalings` are the adapters' own (alpha / rank), which their files don't hold. Weights count to 1e-6, so two
        routes that differ by rounding share a digest.
        """
        weights = (round(weight * 1_000_000) for weight in self.weights)
        adapters = sorted(zip(self.adapter_sha256, scalings, weights, strict=True))
        content = [base_fingerprint, self.strategy, round(self.density, 6), self.seed, self.random_parameters, adapters]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Trace(bytes):
    """A job's trace: a loracomp.route_trace as the server sent it. Nobody looks inside; it goes back as it came."""


@dataclass(frozen=True, slots=True)
class Routed:
    """What `route_jobs` decided for one job."""

    job_id: int
    composition: Composition
    normalization: str
    contrast: float
    """Both as for `Request`."""
    trace: Trace


@dataclass(frozen=True, slots=True)
class MeasurementPlan:
    """What `plan_measurements` says to score for one job of kind 'measure'."""

    job_id: int
    answer: str
    """The right one."""
    normalization: str
    """As for `Request`."""
    adapter_ids: tuple[int, ...]
    adapter_sha256: tuple[str, ...]

    @property
    def compositions(self) -> tuple[Composition, ...]:
        """The base model alone, then each adapter alone."""
        pairs = zip(self.adapter_ids, self.adapter_sha256, strict=True)
        return Composition(), *(Composition((id_,), (sha256,), (1.0,), "cat") for id_, sha256 in pairs)


@dataclass(frozen=True, slots=True)
class Request:
    """What the model is asked for one row of a batch: a job's text, scored or generated, under one composition."""

    prompt: str
    choices: tuple[str, ...] | None
    max_new_tokens: int | None
    stop: tuple[str, ...] = ()
    normalization: str = "none"
    """none, characters or tokens: what a choice's summed log-likelihood is divided by (lm-eval's acc, acc_norm)."""
    contrast: float = 0.0
    """This times the base model's log-likelihood of a choice is subtracted from the composition's."""
    composition: Composition = field(default_factory=Composition)
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    """How generated text is drawn; at temperature 0 it is the most likely token each time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model answered. `choice_scores` are summed log-likelihoods in nats, normalised as asked."""

    output: str
    choice_index: int | None = None
    """1-based, as SQL arrays are: choices[choice_index] = output."""
    choice_scores: tuple[float, ...] | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    norm_ratio: float | None = None
    """Frobenius norm of the composed delta over that of the exact weighted sum; None for the base model alone."""
    cosine: float | None = None
    """Cosine between the composed delta and the exact weighted sum; None for the base model alone."""


@dataclass(frozen=True, slots=True)
class Versions:
    """Who answers: the same for all that one worker process records."""

    device: str
    """Device and number type, such as cpu/bfloat16."""
    base_model: str
    base_fingerprint: str
    encoder: str
    """Name and input version, such as all-MiniLM-L6-v2/3."""
    code_version: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is recorded for one job."""

    job_id: int
    trace: Trace
    answer: Answer | None
    """None for a job of kind 'route'."""
    composition_digest: str | None
    """None where nothing was composed: a job of kind 'route'."""
    batch_size: int
    """Jobs that were answered together."""
    timings: Mapping[str, float]
    """Step -> milliseconds that the step took for the whole batch."""
    versions: Versions


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one job of kind 'measure' found. Scores are log-probabilities of the right answer, in nats.

    With choices: given the choices, log softmax over their normalised scores. Of a text: its log-likelihood a token.
    """

    job_id: int
    normalization: str
    base_score: float
    base_is_right: bool | None
    """Whether the right choice scores highest; None where there are no choices."""
    adapter_ids: tuple[int, ...]
    gains: tuple[float, ...]
    """Score under each adapter alone, minus `base_score`."""
    are_right: tuple[bool | None, ...]
    timings: Mapping[str, float]
    """Milliseconds of each step for its batch."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one job cannot be answered."""

    job_id: int
    code: str
    message: str
    retry: bool = False

"""The frozen records that pass between a job's steps. They compute nothing but a digest."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

KINDS = ("predict", "route", "measure")
"""Kinds of jobs that this release knows; a worker claims no others."""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job, as `claim_jobs` returns it. Every later write must show `lease_token`, the fence token."""

    id: int
    lease_token: int
    kind: str
    """'predict', 'route' (only the routing weights), or 'measure' (how much each adapter helps on an example)."""
    prompt: str
    choices: tuple[str, ...] | None
    max_new_tokens: int | None
    descriptions: tuple[str, ...] | None = None
    """What each of the choices means; None: they are not described."""
    text_at: tuple[int, int] | None = None
    """Which characters of the prompt are the text that the question is about: from, and up to; None: all."""
    stop: tuple[str, ...] = ()
    attempts: int = 1
    timeout_s: float = 600.0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    """Seed of sampled text; None: the job's id is the seed."""
    system_text: str | None = None
    """As `Request.system_text`."""
    background: bool = False
    """Whether everyday jobs come first: a measurement, or a job with a priority below 0."""
    submitted_by: str = ""

    def __hash__(self) -> int:
        # Hash only the id, because each job is looked up some twenty times in a batch, and the default would hash its
        # text each time.
        return self.id


Scaling = tuple[float, Sequence[tuple[str, float]]]
"""An adapter's scaling, and (name, scaling) of each module with its own scaling, sorted by name."""


@dataclass(frozen=True, slots=True)
class Composition:
    """Adapters, their weights, and how they are merged. Without adapters it is the base model alone."""

    adapter_ids: tuple[int, ...] = ()
    adapter_sha256: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    strategy: str = "linear"
    """One of `loracomp.composition.strategies.STRATEGIES`."""
    density: float = 1.0

    def digest(self, base_fingerprint: str, scalings: Sequence[Scaling]) -> str:
        """Sha256 in hex of everything that decides the result: base model, merge settings, adapters and weights.

        `scalings` are the adapters' scalings, which their safetensors files don't contain. The order of the adapters
        does not matter. Weights are rounded to 1e-6, so that compositions that differ only by rounding errors have the
        same digest.
        """
        weights = (round(weight * 1_000_000) for weight in self.weights)
        adapters = sorted(zip(self.adapter_sha256, scalings, weights, strict=True))
        content = [base_fingerprint, self.strategy, round(self.density, 6), adapters]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Trace(bytes):
    """A job's trace: the bytes of a loracomp.route_trace from the server, which are sent back without being read or
    changed."""


@dataclass(frozen=True, slots=True)
class Routed:
    """The decision of `route_jobs` for one job."""

    job_id: int
    composition: Composition
    normalization: str
    chat_template: bool
    """normalization and chat_template are as in `Request`."""
    calibration_examples: tuple[int, ...]
    """Ids of the labelled examples that calibrate the choices' scores; empty if the job is not calibrated."""
    trace: Trace
    description_weight: float | None = None
    """Weight of the prompt's similarity to each described choice, in nats; None if the choices are not described."""


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A prompt whose right choice is known."""

    prompt: str
    label: str
    vector: "npt.NDArray[np.floating]"
    """Its embedding, as `Encoder.encode` makes it."""


MIX_ALONE = (1.0, 0.0, 0.0)
"""Score weights of a request whose choices are neither calibrated nor described."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the model: a prompt whose choices are scored, or after which text is generated."""

    prompt: str
    choices: tuple[str, ...] | None
    max_new_tokens: int | None
    stop: tuple[str, ...] = ()
    normalization: str = "none"
    """How a choice's log-likelihood is normalised: none (lm-eval's acc), or divided by its characters (acc_norm) or
    tokens."""
    choice_biases: tuple[float, ...] = ()
    """Biases that are added to the normalised log-likelihoods, one for each choice. If empty, the other requests of its
    series give them, if it has a series."""
    label_scores: tuple[float, ...] = ()
    """Scores of a classifier trained on labelled rows, times its weight, which are added too; empty: none."""
    classifier: "Callable[[npt.NDArray[np.float32]], tuple[float, ...]] | None" = field(
        default=None, repr=False, compare=False
    )
    """Returns label_scores, which depend on the prompt's state and are known only after the pass."""
    reads_state: bool = False
    """Whether the pass also reads the prompt's state (`model.states`)."""
    description_similarities: tuple[float, ...] = ()
    """Similarity of the prompt to each described choice, which is added too, times its weight; empty: none."""
    score_weights: tuple[float, float, float] = MIX_ALONE
    """Weights of the normalised log-likelihoods, of the classifier's scores (0: none) and of the similarities."""
    composition: Composition = field(default_factory=Composition)
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    """temperature, top_p and seed sample generated text; at temperature 0 the most likely token is taken."""
    chat_template: bool = False
    """Whether the prompt is put into the base model's chat template, as the user's message."""
    system_text: str | None = None
    """The system's message before the prompt, in the chat template; None: the template's own, if it has one."""
    series: bytes | None = None
    """Identifies the requests that differ from this one only in their text; None: it is in no series."""
    submitted_by: str | None = None
    """The submitter. A worker scores equal requests of one submitter only once (`engine.repeats`). If None, the request
    is scored even if the worker has scored an equal one."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's result for one request.

    `choice_scores` are the choices' log-likelihoods in nats, normalised, weighted and calibrated as the request says.
    """

    output: str
    choice_index: int | None = None
    """Counted from 1, as in SQL arrays: choices[choice_index] = output."""
    choice_scores: tuple[float, ...] | None = None
    choice_biases: tuple[float, ...] | None = None
    """None if this part does not count in the scores, like the next three fields, which are copied from the request."""
    label_scores: tuple[float, ...] | None = None
    description_similarities: tuple[float, ...] | None = None
    score_weights: tuple[float, float, float] | None = None
    """None if the scores come from the composition alone."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    """As `model.generation.Generated.finish_reason`; None if choices were scored."""


@dataclass(frozen=True, slots=True)
class Versions:
    """Device, models and code version of a worker process, which it records with every prediction."""

    device: str
    """Device and dtype, such as cpu/bfloat16."""
    base_model: str
    base_fingerprint: str
    encoder: str
    """Name and input version of the encoder, such as all-MiniLM-L6-v2/3."""
    code_version: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why one job cannot be answered."""

    job_id: int
    code: str
    message: str
    retry: bool = False


@dataclass(frozen=True)
class KnownBaseModel:
    """The properties of a base model that adapters are checked against."""

    name: str
    source: str
    revision: str | None
    fingerprint: str
    """Sha256 in hex of weights, settings and tokenizer (`model.sources.full_fingerprint`)."""
    modules: dict[str, tuple[int, int]]
    """Every module that an adapter may change: name -> (d_out, d_in). See `loading.adaptable_modules`."""


@dataclass(frozen=True)
class BaseModelDescription(KnownBaseModel):
    """What the database stores about a base model."""

    architecture: str
    context_length: int
    """Maximum number of tokens of prompt and answer together."""
    parameter_count: int
    """Number of parameters; shared (tied) parameters count once."""
    has_chat_template: bool
    """Whether the model's tokenizer has a chat template (`model.tokens.render`)."""

"""Runs a stored composition again and compares the two answers."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from loracomp.composition.fidelity import TOLERANCE, TOLERANCE_OF_16_BITS, fidelity, merged
from loracomp.composition.strategies import Mix, merge
from loracomp.database.connections import Connection, storable
from loracomp.engine.engine import Engine
from loracomp.errors import JobError, wrong_fields
from loracomp.records import MIX_ALONE, Composition, Prediction, Request
from loracomp.registry.adapter_store import fetch_adapters


@dataclass(frozen=True, slots=True)
class Replay:
    """How the answer of a second run compares with the recorded answer."""

    job: int
    outcome: str
    """equal, different or impossible."""
    detail: str
    largest_difference: float | None = None
    """Largest difference between the two runs' scores of a choice, in nats; None if text was generated."""
    norm_ratio: float | None = None
    cosine: float | None = None
    """The figures of `composition.fidelity`; None if nobody asked for them, or if the base model answered alone."""


class _Stored(BaseModel):
    """The fields of a trace that its composition needs to run. They are checked here, because the database does not
    check them."""

    model_config = ConfigDict(frozen=True, strict=True)

    adapter_ids: list[int]
    adapter_sha256: list[str]
    adapter_weights: list[FiniteFloat]
    choice_normalization: Literal["none", "characters", "tokens"]
    strategy: str
    density: FiniteFloat
    choices: list[str] | None
    choice_biases: list[FiniteFloat] | None
    label_scores: list[FiniteFloat] | None
    description_similarities: list[FiniteFloat] | None
    score_weights: list[FiniteFloat] | None = Field(min_length=3, max_length=3)

    @model_validator(mode="after")
    def _is_one_of_each(self) -> "_Stored":
        for name in ("choice_biases", "label_scores", "description_similarities"):
            added = getattr(self, name)
            if added is not None and len(added) != len(self.choices or ()):
                raise ValueError(f"choices and {name} differ in length")
        if not len(self.adapter_ids) == len(self.adapter_sha256) == len(self.adapter_weights):
            raise ValueError("adapter_ids, adapter_sha256 and adapter_weights differ in length")
        return self

    @property
    def composition(self) -> Composition:
        return Composition(
            adapter_ids=tuple(self.adapter_ids),
            adapter_sha256=tuple(self.adapter_sha256),
            weights=tuple(self.adapter_weights),
            strategy=self.strategy,
            density=self.density,
        )


STORED = (
    "adapter_ids", "adapter_sha256", "adapter_weights", "choices", "choice_biases", "label_scores",
    "description_similarities", "score_weights",
)  # fmt: skip


def replay(
    engine: Engine,
    connection: Connection,
    trace: dict[str, Any],
    tolerance: float | None = None,
    *,
    by_merging: bool = False,
) -> Replay:
    """Answer a job again with the composition in its trace (a row of `job_trace`), and compare with the stored answer.

    The job is not routed again. `tolerance` is in nats; None means TOLERANCE, or TOLERANCE_OF_16_BITS if either run
    used 16 bits. `by_merging` merges the mix into the model's weights, as PEFT does, so that the answer does not depend
    on how a pass applies many mixes. The result then also says how far the mix is from the exact weighted sum.
    """
    if tolerance is None:
        exact = {str(trace["device"]).rpartition("/")[2], engine.device.rpartition("/")[2]} == {"float32"}
        tolerance = TOLERANCE if exact else TOLERANCE_OF_16_BITS
    if reason := _missing(engine, trace):
        return Replay(trace["job_id"], "impossible", reason)
    try:
        stored = _Stored.model_validate(trace["policy_settings"] | {name: trace[name] for name in STORED})
    except ValidationError as error:
        return Replay(
            trace["job_id"], "impossible", f"its trace does not describe a composition: {wrong_fields(error, 3)}"
        )
    request = _request(trace, stored)
    if not by_merging:
        return _compared(trace, engine.predict(connection, [request])[0], tolerance)
    return _merged(engine, connection, trace, request, tolerance)


def _merged(
    engine: Engine, connection: Connection, trace: dict[str, Any], request: Request, tolerance: float
) -> Replay:
    predictor, composition = engine.predictor, request.composition
    adapters = predictor.load([composition], partial(fetch_adapters, connection))
    mix, exact = predictor.compose([composition, replace(composition, strategy="cat")], adapters)
    if isinstance(mix, JobError) or isinstance(exact, JobError):
        return _compared(trace, next(each for each in (mix, exact) if isinstance(each, JobError)), tolerance)
    with merged(engine.base.model, merge(mix)):
        (now,) = predictor.answer([request], [Mix()])
    found = _compared(trace, now, tolerance)
    if (far := fidelity(mix, exact)) is None:
        return found
    detail = f"{found.detail}; against the exact weighted sum: norm ratio {far[0]:.3f}, cosine {far[1]:.3f}"
    return replace(found, detail=detail, norm_ratio=far[0], cosine=far[1])


def _missing(engine: Engine, trace: dict[str, Any]) -> str | None:
    if trace["status"] != "succeeded" or trace["kind"] != "predict":
        return f"the job is {trace['status']}, of kind {trace['kind']}: it has no answer to compare"
    if trace["base_fingerprint"] != engine.base.fingerprint:
        return f"it was answered by base model {trace['base_model']}, {trace['base_fingerprint'][:12]}, not by this one"
    return None


def _request(trace: dict[str, Any], stored: _Stored) -> Request:
    of_mix, of_labels, of_descriptions = stored.score_weights or MIX_ALONE
    return Request(
        prompt=trace["prompt"],
        choices=tuple(trace["choices"]) if trace["choices"] else None,
        max_new_tokens=trace["max_new_tokens"],
        stop=tuple(trace["stop"]),
        normalization=stored.choice_normalization,
        choice_biases=tuple(stored.choice_biases or ()),
        label_scores=tuple(stored.label_scores or ()),
        description_similarities=tuple(stored.description_similarities or ()),
        score_weights=(of_mix, of_labels, of_descriptions),
        composition=stored.composition,
        temperature=trace["temperature"],
        top_p=trace["top_p"],
        seed=trace["seed"] or 0,
        chat_template=bool(trace["chat_template"]),
        system_text=trace["system_text"],
    )


def _compared(trace: dict[str, Any], now: Prediction | JobError, tolerance: float) -> Replay:
    if isinstance(now, JobError):
        return Replay(trace["job_id"], "impossible", str(now))
    if now.choice_scores is None:
        equal = storable(now.output) == trace["output"]
        detail = "the same text" if equal else f"now {now.output!r}, then {trace['output']!r}"
        return Replay(trace["job_id"], "equal" if equal else "different", detail)
    same_choice = "the same choice" if now.output == trace["output"] else f"now {now.output!r}"
    largest = _largest_difference(now.choice_scores, trace["choice_scores"])
    if largest is None:
        detail = f"{same_choice}; its trace does not have a score for each of the {len(now.choice_scores)} choices"
        return Replay(trace["job_id"], "different", detail)
    detail = f"{same_choice}; scores differ by at most {largest:.6f} nats"
    equal = now.output == trace["output"] and largest <= tolerance
    return Replay(trace["job_id"], "equal" if equal else "different", detail, largest)


def _largest_difference(now: tuple[float, ...], then: list[Any] | None) -> float | None:
    """Largest difference between new and stored scores; None unless a finite number is stored for each choice."""
    if then is None or len(then) != len(now) or not all(isinstance(x, float) and math.isfinite(x) for x in then):
        return None
    return max(abs(one - float(other)) for one, other in zip(now, then, strict=True))

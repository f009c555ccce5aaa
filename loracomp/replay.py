"""Run a stored composition again and compare: what promise 10 of the design asks for."""

from dataclasses import dataclass
from typing import Any

from loracomp.db import Connection, storable
from loracomp.errors import JobError
from loracomp.pipeline import Pipeline
from loracomp.records import Answer, Composition, Request


@dataclass(frozen=True, slots=True)
class Replay:
    """How a second run compares with the first."""

    job: int
    outcome: str
    """equal, different or impossible."""
    detail: str
    largest_difference: float | None = None
    """Of the choices' scores, in nats; None where text was generated."""


TOLERANCE, TOLERANCE_OF_16_BITS = 0.05, 0.25
"""Nats by which scores may differ and still be equal: another device or batch rounds otherwise, in 16 bits more so."""


def replay(pipeline: Pipeline, connection: Connection, trace: dict[str, Any], tolerance: float | None = None) -> Replay:
    """Answer a job again by its stored composition (not by routing again) and compare with a row of `job_trace`.

    `tolerance` in nats; None: TOLERANCE, or TOLERANCE_OF_16_BITS where either run was in 16 bits.
    """
    if tolerance is None:
        exact = {str(trace["device"]).rpartition("/")[2], pipeline.device.rpartition("/")[2]} == {"float32"}
        tolerance = TOLERANCE if exact else TOLERANCE_OF_16_BITS
    if reason := _missing(pipeline, trace):
        return Replay(trace["job_id"], "impossible", reason)
    answer = pipeline.predict(connection, [_request(trace)])[0]
    if isinstance(answer, JobError):
        return Replay(trace["job_id"], "impossible", str(answer))
    return _compared(trace, answer, tolerance)


def _missing(pipeline: Pipeline, trace: dict[str, Any]) -> str | None:
    if trace["status"] != "succeeded" or trace["kind"] != "predict":
        return f"the job is {trace['status']}, of kind {trace['kind']}: it has no answer to compare with"
    if trace["base_fingerprint"] != pipeline.base.fingerprint:
        return f"it was answered by base model {trace['base_model']}, {trace['base_fingerprint'][:12]}; this is another"
    return None


def _request(trace: dict[str, Any]) -> Request:
    policy = trace["policy_settings"]
    return Request(
        prompt=trace["prompt"],
        choices=tuple(trace["choices"]) if trace["choices"] else None,
        max_new_tokens=trace["max_new_tokens"],
        stop=tuple(trace["stop"]),
        normalization=policy["choice_normalization"],
        contrast=policy.get("contrast", 0.0),  # not in older traces
        composition=Composition(
            adapter_ids=tuple(trace["adapter_ids"]),
            adapter_sha256=tuple(trace["adapter_sha256"]),
            weights=tuple(trace["adapter_weights"]),
            strategy=policy["strategy"],
            density=policy["density"],
            seed=policy["seed"],
            random_parameters=policy["router"] == "random_parameters",
            rescale=policy.get("rescale", False),  # not in older traces
        ),
        temperature=trace["temperature"],
        top_p=trace["top_p"],
        seed=trace["seed"] or 0,
    )


def _compared(trace: dict[str, Any], answer: Answer, tolerance: float) -> Replay:
    if answer.choice_scores is None or trace["choice_scores"] is None:
        equal = storable(answer.output) == trace["output"]
        detail = "the same text" if equal else f"now {answer.output!r}, then {trace['output']!r}"
        return Replay(trace["job_id"], "equal" if equal else "different", detail)
    pairs = zip(answer.choice_scores, trace["choice_scores"], strict=True)
    largest = max(abs(now - then) for now, then in pairs)
    same_choice = "the same choice" if answer.output == trace["output"] else f"now {answer.output!r}"
    detail = f"{same_choice}; scores differ by at most {largest:.6f} nats"
    equal = answer.output == trace["output"] and largest <= tolerance
    return Replay(trace["job_id"], "equal" if equal else "different", detail, largest)

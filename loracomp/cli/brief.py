"""A job's answer in few words, from a row of the query `job_results`."""

from collections.abc import Iterator
from typing import Any


def brief(row: dict[str, Any]) -> Iterator[str]:
    """The answer and its confidence, then three lines that explain it: nearest tasks, composition, and scores of the
    choices; and a fourth if the choices are described: the one whose description is closest."""
    sure = "" if row["confidence"] is None else f"  (confidence {row['confidence']:.2f})"
    yield f"{row['output'] or 'no text'}{sure}"
    yield f"near    {row['nearest'] or 'nothing was retrieved'}"
    yield f"mix     {composed(row, 3)}"
    yield f"scores  {_scores(row)}" if row["choices"] else f"text    {row['output_tokens']} tokens, {_end(row)}"
    if row["closest"]:
        yield f"closest {shortened(row['closest'], 70)}"


def composed(row: dict[str, Any], named: int) -> str:
    """Return the `named` adapters with the largest weights and the number of other adapters, or only the number if all
    weights are equal."""
    parts = (row["composition"] or "nothing").split(" + ")
    weights = {part.rpartition(" ")[2] for part in parts}
    if len(parts) > named and len(weights) == 1:
        return f"{len(parts)} adapters at {weights.pop()} each"
    more = [f"{len(parts) - named} more"] if len(parts) > named else []
    return " + ".join(parts[:named] + more) + (f": {row['fallback']}" if row["fallback"] else "")


def shortened(text: str, width: int) -> str:
    """Return the text on one line. If it is longer than `width`, its middle is cut out, because a question is usually
    at the end."""
    text = " ".join(text.split())
    half = max(1, (width - 3) // 2)
    return text if len(text) <= width else f"{text[:half].rstrip()} … {text[-half:].lstrip()}"


def _scores(row: dict[str, Any]) -> str:
    """The two best choices, with their scores."""
    # A faulty worker may have recorded too few scores.
    best = sorted(zip(row["choice_scores"] or (), row["choices"], strict=False), key=lambda pair: -pair[0])
    told = ", ".join(f"{shortened(choice, 21)} {score:.3f}" for score, choice in best[:2])
    return f"{told} (labelled rows included)" if row["label_scores"] else told


def _end(row: dict[str, Any]) -> str:
    """Say what ended a generated text."""
    ends = {"stop": "a stop text", "length": "max_new_tokens"}
    return f"ended by {ends.get(row['finish_reason'], 'the model')}"

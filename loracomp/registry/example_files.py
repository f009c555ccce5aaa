"""Examples in a file of one's own: JSON lines of {prompt, choices, answer, split}."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from loracomp.errors import NotFoundError, RefusedError
from loracomp.registry.examples import Example, canonical_json


class Line(BaseModel):
    """One line: what the model is asked, the possible answers (none: free text), the right one, the split."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str
    choices: list[str] | None = None
    answer: str
    split: Literal["train", "validation", "test"] = "train"

    @model_validator(mode="after")
    def _has_texts(self) -> "Line":
        if not self.prompt.strip():
            raise ValueError("prompt is blank")
        if self.choices is None:
            return self
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices) or not all(map(str.strip, self.choices)):
            raise ValueError("choices must be two or more, distinct, none blank; leave them out where it is free text")
        if self.answer not in self.choices:
            raise ValueError(f"answer {self.answer!r} is none of the choices")
        return self


def read_lines(path: Path, task: str) -> Iterator[Example]:
    """Examples of a JSON-lines file, in order; content_hash is of prompt, choices and answer, so not of the split.

    Raises NotFoundError, or RefusedError naming the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _example(line, f"{path}, line {number}", f"{task}/{path.name}#{number}")


def _example(line: str, place: str, source_ref: str) -> Example:
    try:
        row = Line.model_validate_json(line)
    except ValidationError as error:
        wrong = "; ".join(": ".join(filter(None, [".".join(map(str, e["loc"])), e["msg"]])) for e in error.errors())
        raise RefusedError(f"{place}: {wrong}") from None
    content = canonical_json({"prompt": row.prompt, "choices": row.choices, "answer": row.answer})
    return Example(
        split=row.split,
        prompt=row.prompt,
        choices=tuple(row.choices) if row.choices else None,
        answer=row.answer,
        content_hash=hashlib.sha256(content.encode()).digest(),
        source_ref=source_ref,
    )

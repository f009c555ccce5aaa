"""Reads examples from a user's files, JSON lines or CSV, with the fields prompt, choices, label and split."""

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from loracomp.database.connections import storable
from loracomp.errors import NotFoundError, RefusedError, wrong_fields
from loracomp.registry.examples import Example, content_hash, json_object

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
SPLITS = ("train", "validation", "test")


class Line(BaseModel):
    """One line of a file: the prompt, the choices (null if the answer is free text), the label (the right answer) and
    the split."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str
    choices: list[str] | None = None
    label: str
    split: Literal["train", "validation", "test"] = "train"

    @model_validator(mode="after")
    def _has_texts(self) -> "Line":
        if not self.prompt.strip():
            raise ValueError("prompt is blank")
        if any(storable(text) != text for text in (self.prompt, *(self.choices or ()), self.label)):
            raise ValueError("a text contains a NUL character or half a surrogate pair: remove it")
        if self.choices is None:
            return self
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices) or not all(map(str.strip, self.choices)):
            raise ValueError(
                "choices must be two or more different texts that are not blank; leave them out if the answer is "
                "free text"
            )
        if self.label not in self.choices:
            raise ValueError(f"label {self.label!r} is not one of the choices")
        return self


def files_of(path: Path) -> list[Path]:
    """Return the path itself if it is a file; for a folder, return the sorted files in it whose names end in one of
    SUFFIXES. Raises NotFoundError if there are none."""
    if path.name.endswith(SUFFIXES) and not path.is_dir():
        return [path]
    if not path.is_dir():
        there = "exists, but its name has another ending" if path.exists() else "does not exist"
        raise NotFoundError(
            f"examples come from a file ({', '.join(SUFFIXES)}) or a folder of such files: {path.absolute()} {there}"
        )
    if files := sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES)):
        return files
    raise NotFoundError(f"folder {path.absolute()} contains no file whose name ends in {', '.join(SUFFIXES)}")


def read_files(path: Path, task: str) -> list[Example]:
    """The examples in a file, or in all files of a folder (`files_of`); errors are as for `read_lines`."""
    return [example for file in files_of(path) for example in read_lines(file, task)]


def read_lines(path: Path, task: str) -> Iterator[Example]:
    """The examples in a file, in order. content_hash covers prompt, choices and label, but not the split.

    A row without a split gets the split that the file is named after (test.jsonl), or else train. In CSV, choices are a
    JSON array or texts separated by |; an empty cell means no value. Raises NotFoundError, or RefusedError, which names
    the line and the field.
    """
    rows = _csv_rows if path.name.endswith((".csv", ".csv.gz")) else _json_rows
    stem = path.name.partition(".")[0]
    defaults = {"split": stem} if stem in SPLITS else {}
    for number, row in rows(_text(path), str(path)):
        yield _example(defaults | row, f"{path}, line {number}", f"{task}/{path.name}#{number}")


def _text(path: Path) -> str:
    """The text of a file, which may be compressed with gzip and may begin with a byte order mark."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise NotFoundError(f"no file {path.absolute()}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise RefusedError(f"{path} cannot be read: {error}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RefusedError(f"{path}, line {line}: not UTF-8 ({error.reason}): save the file as UTF-8") from None


def _json_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, json_object(line, f"{path}, line {number}")


def _csv_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses cells of more than 131,072 characters
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if twice := [name for name, times in Counter(reader.fieldnames or ()).items() if times > 1]:
            raise RefusedError(f"{path}: the first line names the column {twice[0]!r} twice")
        if lacking := [name for name in ("prompt", "label") if name not in (reader.fieldnames or [])]:
            raise RefusedError(
                f"{path}: the first line must name the columns, and lacks {' and '.join(lacking)}: write "
                "prompt,choices,label,split"
            )
        for row in reader:
            if None in row or None in row.values():
                raise RefusedError(
                    f"{path}, line {reader.line_num}: the line does not have as many cells as the first line"
                )
            yield reader.line_num, {name: _cell(name, value) for name, value in row.items() if value}
    except csv.Error as error:
        raise RefusedError(f"{path}, line {reader.line_num}: not CSV: {error}") from None


def _cell(name: str, value: str) -> Any:
    if name != "choices":
        return value
    if not value.startswith("["):
        return [choice.strip() for choice in value.split("|")]
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # the check of the field `choices` will refuse it, because it is not a list


def _example(row: dict[str, Any], place: str, source_ref: str) -> Example:
    try:
        line = Line.model_validate(row)
    except ValidationError as error:
        raise RefusedError(f"{place}: {wrong_fields(error)}") from None
    return Example(
        split=line.split,
        prompt=line.prompt,
        choices=tuple(line.choices) if line.choices else None,
        label=line.label,
        content_hash=content_hash(line.prompt, line.choices, line.label),
        source_ref=source_ref,
    )

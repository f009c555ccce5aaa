"""Corrections of a declaration as CSV: a line for each row, with the columns of the key, the answer and the correction.

For example: ``id,answer,correct``.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from loracomp.cli.common import warn
from loracomp.database.connections import Connection, row_of, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError, RefusedError, UsageError


class Imported(NamedTuple):
    """How many lines of a file had each outcome."""

    corrected: int
    unchanged: int
    refused: int


def written_corrections(connection: Connection, name: str) -> str:
    """Return a declaration's corrections as CSV. Raises NotFoundError unless the declaration is the caller's."""
    lines = io.StringIO()
    # By default, Python 3.11 leaves texts with a carriage return unquoted, and readers take it for the end of a line.
    writer = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_ALL)
    corrections = rows_of(connection, QUERIES["list_corrections"], {"name": name})
    writer.writerow([*_key_columns(connection, name), "answer", "correct"])
    for row in corrections:
        writer.writerow([*row["key"], row["answer"], row["correct"]])
    return lines.getvalue()


def import_corrections(connection: Connection, name: str, lines: Iterable[str]) -> Imported:
    """Correct the rows of a CSV file one after another; a line without a correction changes nothing.

    A line that can't be used is named in a warning, and the others are used. Raises UsageError, and corrects nothing,
    unless the file is CSV and has each column of the key, and the column correct, once.
    """
    rows = iter(list(_read(lines)))
    _, header = next(rows, (0, []))
    columns = _key_columns(connection, name)
    named = (*columns, "correct")
    for count, fault in ((0, "no column"), (2, "several columns")):
        if wrong := [column for column in named if min(header.count(column), 2) == count]:
            raise UsageError(f"the file has {fault} {', '.join(wrong)}: its first line must name each column once")
    given = rows_of(connection, QUERIES["list_corrections"], {"name": name})
    current = {tuple(row["key"]): row["correct"] for row in given}
    counts = {"corrected": 0, "unchanged": 0, "refused": 0}
    for number, fields in rows:
        try:
            if len(fields) != len(header):
                raise UsageError(f"it must have {len(header)} fields ({', '.join(header)}), and has {len(fields)}")
            row = dict(zip(header, fields, strict=True))
            key, correct = tuple(row[column] for column in columns), row["correct"]
            seen = current.get(key)
            if not correct or correct == seen:
                counts["unchanged"] += 1
                continue
            values = {"name": name, "key": list(key), "answer": correct, "seen": seen, "job_id": None}
            rows_of(connection, QUERIES["correct_row"], values)
        except (NotFoundError, RefusedError, UsageError) as error:
            warn(f"line {number} is left out: {error}")
            counts["refused"] += 1
        else:
            current[key] = correct
            counts["corrected"] += 1
    return Imported(**counts)


def _key_columns(connection: Connection, name: str) -> list[str]:
    return list(row_of(connection, QUERIES["key_columns"], {"name": name})["names"])


def _read(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line that is not empty. A line is numbered where it ends."""
    csv.field_size_limit(2**31 - 1)  # the default refuses fields of more than 131,072 characters
    reader = csv.reader(lines, strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"after line {reader.line_num}: not a CSV file in UTF-8: {error}") from error

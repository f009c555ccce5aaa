"""Reads the raw rows of a dataset, from the hub (package datasets) or from a folder of JSON lines."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loracomp.errors import NotFoundError, RefusedError, UsageError
from loracomp.registry.examples import json_object


def rows_of(data: str, name: str | None, split: str, hub_split: str) -> Iterator[dict[str, Any]]:
    """Read the rows of a split: from the file `data`/<split>.jsonl if `data` is a folder, otherwise from the dataset on
    the hub.

    Raises NotFoundError or UsageError, which say what to do, or RefusedError, which names file and line.
    """
    folder = Path(data).expanduser()
    if folder.is_dir():
        return _json_lines(folder, split)
    if data.startswith((".", "/", "~")):
        raise NotFoundError(f"data {data!r}: no such folder")
    return _hub_rows(data, name, hub_split)


def _json_lines(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    plain, packed = folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"
    path = plain if plain.is_file() else packed
    if not path.is_file():
        raise NotFoundError(
            f"data: no file {plain.absolute()} (or {packed.name}); a local dataset is a folder with train.jsonl and "
            "validation.jsonl"
        )
    # utf-8-sig removes a byte order mark.
    try:
        with (gzip.open if path is packed else open)(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                yield json_object(line, f"{path}, line {number}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise RefusedError(f"{path} cannot be read: {error}") from None


def _hub_rows(path: str, name: str | None, split: str) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset  # noqa: PLC0415  an extra, and slow to import
    except ImportError as error:
        raise UsageError(
            "reading the hub needs datasets: `pip install 'loracomp-lab[data]'`, or name a folder"
        ) from error
    try:
        return iter(load_dataset(path, name, split=split))
    except (OSError, ValueError) as error:  # the errors of `datasets` are subclasses of these
        reason = str(error).partition("\n")[0]
        raise NotFoundError(
            f"data {path!r}: the hub did not return split {split!r}: {reason}; or name a folder"
        ) from error

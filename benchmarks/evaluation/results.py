"""Raw results in files rows/<part>/<task>.csv.gz: one line a job, with numbers and names but without texts."""

import csv
import gzip
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from .plan import PARTS, POLICIES, Part, Unit

COLUMNS = (
    "part",
    "task",
    "family",
    "policy",
    "router",
    "is_mix",
    "row",
    "excluded",
    "expected_index",
    "choice_index",
    "correct",
    "nearest_task",
    "nearest_similarity",
    "top_task",
    "mix",
    "adapters",
    "entropy_bits",
    "norm_ratio",
    "cosine",
    "expected_gain",
    "log_probability",
    "device",
    "digest",
)
Row = dict[str, str]


def path_of(folder: Path, part: str, task: str) -> Path:
    """Path of the file for a part and a task."""
    return folder / "rows" / part / f"{task}.csv.gz"


def read_rows(path: Path) -> list[Row]:
    """The lines of a file; none if the file does not exist."""
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a file, or remove it if there are no rows. The same rows always give the same bytes."""
    ordered = sorted(rows, key=lambda row: (_order(row["policy"]), row["policy"], int(row["row"])))
    if not ordered:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ordered)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    unfinished.replace(path)


def _order(policy: str) -> int:
    return POLICIES.index(policy) if policy in POLICIES else len(POLICIES)


def add_rows(folder: Path, part: str, task: str, rows: Sequence[Row]) -> None:
    """Add new lines to a task's file; they replace older lines of the same policy and row."""
    path = path_of(folder, part, task)
    kept = {(row["policy"], row["row"]): row for row in [*read_rows(path), *rows]}
    write_rows(path, kept.values())


def drop_stale(folder: Path, units: Iterable[Unit], parts: Iterable[Part] = PARTS) -> int:
    """Remove lines of `parts` that were measured with another digest than their unit has now; returns how many."""
    current = {(unit.part.name, unit.task, unit.policy, unit.digest) for unit in units}
    dropped = 0
    for part in parts:
        for path in sorted((folder / "rows" / part.name).glob("*.csv.gz")):
            rows = read_rows(path)
            kept = [row for row in rows if (row["part"], row["task"], row["policy"], row["digest"]) in current]
            if len(kept) < len(rows):
                write_rows(path, kept)
                dropped += len(rows) - len(kept)
    return dropped


def count_rows(folder: Path, units: Iterable[Unit]) -> dict[Unit, int]:
    """Number of lines of each unit."""
    by_name = {(unit.part.name, unit.task, unit.policy): unit for unit in units}
    files = {(part, task) for part, task, _ in by_name}
    counts = Counter(
        (row["part"], row["task"], row["policy"])
        for part, task in files
        for row in read_rows(path_of(folder, part, task))
    )
    return {unit: counts[name] for name, unit in by_name.items()}

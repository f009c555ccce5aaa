"""How fast adapters are read, and whether jobs wait for it: python -m benchmarks.adapter_reading [--help].

The adapters have rank 16 on all linear layers of Llama-3.2-1B's shape (22.6 MB), and no two are equal. They are stored
in a database of their own, on the server that LORACOMP_DATABASE_URL names (a superuser's) or else on an embedded one,
and also in a folder, as files named by their sha256, which is what a worker's cache on disk would be. First, each is
read, checked by its sha256 and parsed, as workers do. Then a worker answers batches of 16 jobs with a model that sleeps
half a second for each batch; each batch needs some adapters that are new. Its jobs per second are compared by where
adapters are read. Writes docs/performance/adapter_reading.json, and fills tables of docs/scaling.md.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import sleep
from typing import Annotated, Any

import torch
import typer
from psycopg.types.json import Jsonb
from rich.console import Console
from safetensors.torch import load_file, save

from benchmarks.databases import timed
from benchmarks.evaluation.report import as_markdown, copy_tables
from benchmarks.queue.systems.loracomp import BASE_MODEL, NoModel
from benchmarks.routing import database
from loracomp.composition.strategies import AdapterWeights
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.records import Job, Prediction
from loracomp.registry.adapter_weights import copy_weights, fetch_adapters, parse_adapter
from loracomp.worker.loop import Worker
from routing_data import add_adapter, add_base_model

OUT = Path(__file__).parents[1] / "docs" / "performance" / "adapter_reading.json"
RANK = 16
LAYERS = 16
MODULES = {
    "self_attn.q_proj": (2048, 2048), "self_attn.k_proj": (512, 2048), "self_attn.v_proj": (512, 2048),
    "self_attn.o_proj": (2048, 2048), "mlp.gate_proj": (8192, 2048), "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}  # fmt: skip
"""(d_out, d_in) of the linear layers of one of Llama-3.2-1B's 16 blocks."""
BATCH = 16
MODEL_S = 0.5
"""Seconds that the model sleeps for a batch."""
NEW = (0, 1, 2, 4, 8, 16)
"""Adapters of a batch that the worker does not have yet."""
WHERE = ("Postgres", "file")
TOGETHER = 4
"""Adapters that are read by one statement where the rate of reading is measured."""
ADD_TASK = "INSERT INTO loracomp.task (name) VALUES (%s)"
GIVE_FILE = """
UPDATE loracomp.adapter SET byte_count = %(byte_count)s, sha256 = %(sha256)s, config = %(config)s WHERE id = %(id)s
RETURNING id AS adapter_id, name, version, scaling, sha256, byte_count, config
"""
STORED = """
SELECT current_setting('data_directory') AS folder, pg_relation_filepath(c.reltoastrelid) AS path
FROM pg_class AS c WHERE c.oid = 'loracomp.adapter_part'::regclass
"""
INSERT = "INSERT INTO loracomp.job (prompt) SELECT 'x' FROM generate_series(1, %s)"
RATE = """
SELECT count(*) / extract(EPOCH FROM max(j.finished_at) - min(j.claimed_at)) AS rate
FROM loracomp.job AS j WHERE j.status = 'succeeded'
"""
console = Console(stderr=True, highlight=False)


def main(
    files: Annotated[int, typer.Option(help="Adapters; at least 20.", min=20)] = 40,
    repeats: Annotated[int, typer.Option(help="Readings of all of them; the median counts.")] = 3,
    seconds: Annotated[float, typer.Option(help="Seconds for which each worker works.")] = 15,
    out: Annotated[Path, typer.Option(help="JSON file of the figures.")] = OUT,
) -> None:
    """Measure, write the figures, print them."""
    with tempfile.TemporaryDirectory(prefix="loracomp-adapters-") as folder, database() as url:
        with db.connect(url) as connection:
            library = fill(connection, Path(folder), files)
            rates = {name: shown(name, rate(*way, library, repeats)) for name, way in ways(connection, library).items()}
        waits = [waiting(url, library, where, new, seconds) for where in WHERE for new in NEW]
    figures = {
        "day": f"{datetime.now():%Y-%m-%d}",
        "mb": library.mb,
        "files": files,
        "mb_per_s": rates,
        "waiting": waits,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    tables = {"adapter-reading": reading_table(figures), "adapter-waiting": waiting_table(figures)}
    written = {name: as_markdown(table) for name, table in tables.items()}
    if (page := out.resolve().parents[1] / "scaling.md").is_file():
        copy_tables(page, written)
    print(*written.values(), sep="\n")


Rows = Sequence[dict[str, Any]]
"""What is registered of adapters."""


@dataclass(frozen=True)
class Library:
    """Adapters in the database and in a folder; `rows` are what is registered of them."""

    folder: Path
    rows: list[dict[str, Any]]

    @property
    def mb(self) -> float:
        """Size of a file."""
        return round(self.rows[0]["byte_count"] / 1e6, 1)

    def path(self, row: dict[str, Any]) -> Path:
        return self.folder / row["sha256"]

    def from_postgres(self, connection: db.Connection, rows: Rows) -> list[AdapterWeights]:
        return fetch_adapters(connection, [row["adapter_id"] for row in rows])

    def from_files(self, rows: Rows) -> list[AdapterWeights]:
        return [parse_adapter(row, self.path(row).read_bytes()) for row in rows]

    def unchecked(self, rows: Rows) -> list[Any]:
        return [load_file(self.path(row)) for row in rows]


Read = Callable[[Rows], object]


def fill(connection: db.Connection, folder: Path, files: int) -> Library:
    """Register adapters with files of random numbers, and write the same files into the folder."""
    add_base_model(connection, BASE_MODEL)
    rows = []
    for number in range(files):
        connection.execute(ADD_TASK, [f"t{number}"])
        file = random_file(number)
        (folder / hashlib.sha256(file).hexdigest()).write_bytes(file)
        given = {
            "id": add_adapter(connection, f"t{number}", base_model=BASE_MODEL), "byte_count": len(file),
            "sha256": hashlib.sha256(file).hexdigest(), "config": Jsonb({"lora_alpha": 16}),
        }  # fmt: skip
        rows += connection.execute(GIVE_FILE, given).fetchall()
        copy_weights(connection, given["id"], file)
    connection.execute("CHECKPOINT")
    os.sync()
    return Library(folder, rows)


def random_file(seed: int) -> bytes:
    """A safetensors file of the shape of MODULES, in half precision."""
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).half()

    return bytes(save({
        f"base_model.model.model.layers.{layer}.{module}.lora_{name}.weight": factor(*shape)
        for layer in range(LAYERS)
        for module, (d_out, d_in) in MODULES.items()
        for name, shape in {"A": (RANK, d_in), "B": (d_out, RANK)}.items()
    }))  # fmt: skip


def ways(connection: db.Connection, library: Library) -> dict[str, tuple[Read, Callable[[], None]]]:
    """How adapters can be read, and what is done before."""
    postgres = partial(library.from_postgres, connection)
    files = [library.path(row) for row in library.rows]
    stored = relation_files(connection)
    from_disk = {"Postgres, from disk": (postgres, partial(forget, stored))} if stored else {}
    return {
        "Postgres": (postgres, nothing),
        "file, by its sha256": (library.from_files, nothing),
        "file, not checked": (library.unchecked, nothing),
        **from_disk,
        "file, by its sha256, from disk": (library.from_files, partial(forget, files)),
    }


def relation_files(connection: db.Connection) -> list[Path]:
    """The server's files that hold the weights; none if this user can't read them, or they are on another host."""
    row = connection.execute(STORED).fetchone()
    path = Path(row["folder"]) / row["path"]
    return sorted(path.parent.glob(f"{path.name}*")) if os.access(path, os.R_OK) else []


def nothing() -> None:
    """What comes before reading from the page cache."""


def forget(files: Sequence[Path]) -> None:
    """Take files out of the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(read: Read, before: Callable[[], None], library: Library, repeats: int) -> int:
    """Megabytes a second: the median of readings of the whole library, some adapters at a time."""
    parts = [library.rows[start : start + TOGETHER] for start in range(0, len(library.rows), TOGETHER)]
    spent = []
    for _ in range(repeats):
        before()
        spent.append(timed(lambda: [read(part) and None for part in parts]))
    return round(library.mb * len(library.rows) / median(spent) * 1000)


class Sleeper(NoModel):
    """A worker's pipeline that reads so many adapters for each batch, and whose model sleeps."""

    def __init__(self, read: Callable[[db.Connection, Rows], object], library: Library, new: int) -> None:
        super().__init__()
        self._read, self._new = read, new
        self._coming = cycle(library.rows)

    def prepare(self, connection: db.Connection, jobs: Sequence[Job]) -> Sequence[Job]:
        self._read(connection, list(islice(self._coming, self._new)))
        return super().prepare(connection, jobs)

    def answer(
        self, prepared: Sequence[Job], wanted: Callable[[Job], bool], arriving: Callable[[], Sequence[Job]]
    ) -> Iterator[list[Prediction]]:
        while prepared:
            sleep(MODEL_S)
            yield self.predictions(prepared)
            prepared = arriving()


def waiting(url: str, library: Library, where: str, new: int, seconds: float) -> dict[str, Any]:
    """Jobs a second of a worker that reads `new` adapters for each batch."""
    read = {"Postgres": library.from_postgres, "file": lambda _, rows: library.from_files(rows)}[where]
    with db.connect(url) as connection:
        connection.execute(INSERT, [BATCH * round(seconds / MODEL_S)])
        settings = Settings(batch_size=BATCH, poll_s=0.01)
        Worker(url, Sleeper(read, library, new), base_model=BASE_MODEL, settings=settings, drain=True).run()
        row = connection.execute(RATE).fetchone()
        connection.execute("SELECT loracomp.purge_jobs('0', force => true)")
    speed = round(float(row["rate"]), 1)
    return {"where": where, "new": new, "jobs_per_s": shown(f"{new} new adapters a batch, from {where}, jobs/s", speed)}


def shown(name: str, figure: float) -> float:
    """The same; a line on stderr says what it is."""
    console.print(f"{name}: {figure}")
    return figure


def reading_table(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Megabytes a second, and adapters, by where they are read."""
    return [
        ("read from", "MB/s", f"ms an adapter of {figures['mb']} MB"),
        *((name, f"{speed:,}", f"{figures['mb'] / speed * 1000:,.0f}") for name, speed in figures["mb_per_s"].items()),
    ]


def waiting_table(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Jobs a second, by how many adapters of a batch are new, and by where they are read."""
    rates = {(row["where"], row["new"]): row["jobs_per_s"] for row in figures["waiting"]}
    return [
        ("new adapters a batch of 16", "from Postgres, jobs/s", "from files, jobs/s"),
        *((str(new), *(f"{rates[where, new]:.1f}" for where in WHERE)) for new in NEW),
    ]


if __name__ == "__main__":
    typer.run(main)

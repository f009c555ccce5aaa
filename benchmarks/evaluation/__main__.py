"""Measures how many rows each policy answers correctly, and stores the results, which `make figures` shows.

    python -m benchmarks.evaluation --data ../shared/data

It creates databases of its own, on the server that LORACOMP_DATABASE_URL names (where the login needs the right to
create databases) or on the embedded server. You can stop it at any time, because it writes the results after each task.
The same command, on this machine or another one, then measures only rows without a result, and rows that were measured
with an older library.
"""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb
from rich.console import Console

from loracomp.config import Settings, load_settings
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.embedded import database_url
from loracomp.engine.engine import Engine
from loracomp.registry.library import load_library
from loracomp.registry.library_files import MANIFEST, packaged, read_manifest
from loracomp.worker.process import serve
from loracomp.worker.start import load_engine
from loracomp.worker.worker import Worker

from .labelled import KEPT, add_labelled, leave_to_labelled
from .measure import measure, stages
from .plan import ADDED_POLICIES, LIBRARY, PARTS, Unit
from .prompts import import_validation
from .results import drop_stale
from .state import read_state

ROOT = Path(__file__).parents[2]
BATCH = 64
"""Number of jobs in a claim: many, so that jobs of similar length can share a pass with little padding."""
console = Console(stderr=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    settings = load_settings().model_copy(update={"batch_size": BATCH})
    server = database_url(settings)
    parts = [part for part in PARTS if options.only in (None, part.name)]
    measure_all({part.database: own_database(server, part.database) for part in parts}, settings, options)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="../shared/data", help="folder with TASK/validation.jsonl")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository whose results are written")
    parser.add_argument("--rows", type=int, help="most rows of each task; by default first 50, then 100, 250 and all")
    parser.add_argument("--control-rows", type=int, default=100, help="most rows of each task for the controls; 100")
    parser.add_argument("--only", choices=[part.name for part in PARTS], help="one part")
    parser.add_argument("--tasks", help="some tasks only, such as piqa,rte")
    parser.add_argument("--policies", help="some policies only, such as base,own_task,default")
    return parser.parse_args(arguments)


def own_database(server: str, name: str) -> str:
    """URL of the database `name` (a `Part.database`), which is created if it is missing.

    Its full name ends in a digest of the library's manifest, examples and measurements. When these change, a new
    database is created, so that no outdated example is searched.
    """
    files = [packaged() / MANIFEST]
    for folder in (packaged(), KEPT):
        files += sorted(folder.glob("examples/*.safetensors")) + sorted(folder.glob("measurements/*.safetensors"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    name = f"evaluation_{name}_{digest[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchall():
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = psycopg.conninfo.make_conninfo(server, dbname=name)
    schema.initialize(url)
    return url


def fill_database(connection: db.Connection, settings: Settings, name: str, data: str) -> None:
    """Load the shipped library, import the rows to evaluate and the labelled rows, and add the missing policies."""
    with console.status(f"loading the library and the rows to evaluate: {name}"):
        load_library(connection, settings=settings)
        for policy, values in ADDED_POLICIES.items():
            connection.execute("SELECT loracomp.set_policy(%s, %s)", [policy, Jsonb(values)])
        parts = [part for part in PARTS if part.database == name]
        for prompts, task in {(part.prompts, task): None for part in parts for task in part.tasks}:
            import_validation(connection, task, prompts, data)
        for count, task in {(part.labelled, task): None for part in parts if part.labelled for task in part.tasks}:
            if task in LIBRARY:
                leave_to_labelled(connection, task)
            add_labelled(connection, task, count, data, base_model=read_manifest(packaged()).base_model.name)


def measure_all(urls: dict[str, str], settings: Settings, options: argparse.Namespace) -> None:
    """Measure the rows that the options select and that have no stored result."""
    units: list[Unit] = []
    parts = [part for part in PARTS if part.database in urls]
    for name, url in urls.items():
        with db.connect(url) as connection:
            fill_database(connection, settings.model_copy(update={"database_url": url}), name, options.data)
            state = read_state(connection)
            units += [unit for part in parts if part.database == name for unit in state.units(part)]
    results = options.root / "benchmarks" / "evaluation"
    if dropped := drop_stale(results, units, parts):
        console.print(f"{dropped} lines removed that were measured on another library or under other settings")
    models = Models(settings)
    for stage in stages(options.rows):
        for part in parts:
            url = urls[part.database]
            wanted = [unit for unit in units if unit.part == part and is_wanted(unit, options)]
            with db.connect(url) as connection:
                steps = measure(
                    connection,
                    results,
                    wanted,
                    partial(models.answer, connection, url),
                    rows=stage,
                    control_rows=options.control_rows,
                )
                for step in steps:
                    console.print(step)
                    if step.startswith("stopped"):
                        return


def is_wanted(unit: Unit, options: argparse.Namespace) -> bool:
    return (
        options.only in (None, unit.part.name)
        and (options.tasks is None or unit.task in options.tasks.split(","))
        and (options.policies is None or unit.policy in options.policies.split(","))
    )


class Remembering:
    """An embedding model with a cache, because each row is evaluated under many policies."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str], **options: Any) -> list[npt.NDArray[np.float32]]:
        """A vector for each text, in order."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= zip(new, self._model.encode(new, **options), strict=True)
        return [self._known[text] for text in texts]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._model)

    def __getitem__(self, place: int) -> Any:
        return self._model[place]


class Models:
    """Engines, one for each database, which are loaded when they are needed and share a cache of embeddings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engines: dict[str, Engine] = {}

    def answer(self, connection: db.Connection, url: str) -> None:
        """Run a worker in this process until all queued jobs of a database are answered."""
        settings = self._settings.model_copy(update={"database_url": url})
        if url not in self._engines:
            with console.status("loading the models"):
                engine = load_engine(settings, connection)
            known = next(iter(self._engines.values()), None)
            remembering = Remembering(engine.encoder.model) if known is None else known.encoder.model
            engine.encoder = replace(engine.encoder, model=remembering)
            self._engines[url] = engine
        base_model = self._engines[url].base_name
        worker = Worker(url, self._engines[url], base_model=base_model, settings=settings, drain=True)
        serve(worker, settings.grace_s)


if __name__ == "__main__":
    main()

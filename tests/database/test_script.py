"""`loracomp sql`: psql makes of it what `loracomp init` makes, to the last byte of a dump."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from conftest import create_database, drop_database, url_of
from loracomp import __version__
from loracomp.database import revision, schema, script
from loracomp.errors import NotFoundError, UsageError

RESTRICTED = re.compile(r"^\\(un)?restrict .*$", re.M)  # pg_dump's random key
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.\d]*\+00(\t\d+\.\d+)?")  # also how long something took then
HEAD = revision.head()
NEXT = f"""
from alembic import op
revision, down_revision = "9998", "{HEAD}"
def upgrade():
    op.execute("ALTER TABLE loracomp.prediction ALTER COLUMN output TYPE varchar")
"""
OF_OTHERS = """
CREATE ROLE reader_of_scripts;
GRANT SELECT ON loracomp.job_result TO reader_of_scripts WITH GRANT OPTION;
GRANT EXECUTE ON FUNCTION loracomp.explain_job TO reader_of_scripts;
CREATE VIEW public.statuses AS SELECT job_id, status FROM loracomp.job_result;
CREATE VIEW public.short_statuses WITH (security_barrier) AS SELECT left(status, 3) AS status FROM public.statuses;
COMMENT ON VIEW public.statuses IS 'A user''s.';
"""


def psql(programs: Path, url: str, source: str) -> subprocess.CompletedProcess[str]:
    command = [programs / "psql", "--no-psqlrc", "--quiet", "--dbname", url]
    return subprocess.run(command, input=source, text=True, capture_output=True, check=False)


def applied(programs: Path, url: str, source: str) -> None:
    done = psql(programs, url, source)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def dump(programs: Path, url: str) -> str:
    text = subprocess.check_output([programs / "pg_dump", "--no-owner", url], text=True)
    return TIME.sub("<time>", RESTRICTED.sub("", text))


def test_the_script_makes_what_init_makes(database: str, empty_database: str, programs: Path) -> None:
    applied(programs, empty_database, script.schema_script())
    assert dump(programs, empty_database) == dump(programs, database)
    assert schema.initialize(empty_database) == []
    again = psql(programs, empty_database, script.schema_script())
    assert again.returncode == 3
    assert (
        "ERROR:  loracomp is installed here\nHINT:  Print the difference: loracomp sql --from RELEASE." in again.stderr
    )


@pytest.fixture
def owned(server: str, template: str) -> Iterator[str]:
    """URL of a managed database, as its owner: an administrator made pgvector and the roles."""
    owner, name = f"script_owner_{os.getpid()}", f"script_owned_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as administrator:
        administrator.execute(f"CREATE ROLE {owner} LOGIN".encode())
        create_database(server, name)
        administrator.execute(f"ALTER DATABASE {name} OWNER TO {owner}".encode())
        with psycopg.connect(url_of(server, name)) as inside:
            inside.execute("CREATE EXTENSION vector")
        yield url_of(server, name, user=owner)
        drop_database(server, name)
        administrator.execute(f"DROP ROLE {owner}".encode())


def test_a_plain_owner_runs_the_script(owned: str, server: str, database: str, programs: Path) -> None:
    applied(programs, owned, script.schema_script())
    assert schema.initialize(owned) == []
    assert dump(programs, owned) == dump(programs, database)


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the code is a made-up release with a migration, a changed file and one file less."""
    for name in ("migrations", "sql"):
        shutil.copytree(revision.packed_folder(name), tmp_path / name)
    for module in (revision, script):
        monkeypatch.setattr(module, "packed_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(script, "RELEASES", {"1.0": HEAD, "1.1": "9998"})
    (tmp_path / "migrations/versions/9998_next.py").write_text(NEXT)
    (tmp_path / "sql/80_bi/41_queue_health.sql").unlink()
    changed = tmp_path / "sql/80_bi/30_accuracy.sql"
    changed.write_text(changed.read_text() + "COMMENT ON VIEW bi.accuracy_by_day IS 'Another.';\n")


@pytest.mark.usefixtures("next_release")
def test_the_difference_makes_what_an_upgrade_by_init_makes(
    database: str, server: str, template: str, programs: Path
) -> None:
    name = f"script_{os.getpid()}"
    second = create_database(server, name, template)
    try:
        applied(programs, database, OF_OTHERS)
        applied(programs, second, OF_OTHERS.replace("CREATE ROLE reader_of_scripts;", ""))
        assert schema.initialize(database) == [f"schema {HEAD} -> 9998", "sql/ applied"]
        applied(programs, second, script.schema_script("1.0"))
        assert dump(programs, second) == dump(programs, database)
        assert schema.initialize(second) == []
        refused = psql(programs, second, script.schema_script("1.0"))
        assert f"the schema of this database is not at revision {HEAD}" in refused.stderr
        applied(programs, second, script.schema_script("1.1"))  # as init --again, which puts rows elsewhere in a table
        assert sorted(dump(programs, second).splitlines()) == sorted(dump(programs, database).splitlines())
    finally:
        drop_database(server, name)
        psql(programs, database, "DROP OWNED BY reader_of_scripts; DROP ROLE reader_of_scripts")


def test_releases_that_this_program_does_not_have_are_named() -> None:
    with pytest.raises(NotFoundError, match=r"no release 0\.9 before this one: --from is one of 1\.0"):
        script.schema_script("0.9")
    with pytest.raises(UsageError, match=r"knows only its own schema: install loracomp 7\.0 for --to"):
        script.schema_script(to="7.0")
    with pytest.raises(UsageError, match=r"install loracomp later for --to"):
        script.schema_script(to="later")


def test_this_release_has_its_schemas_revision() -> None:
    releases = {revision.minor(release): number for release, number in revision.RELEASES.items()}
    assert releases[revision.minor(__version__)] == HEAD

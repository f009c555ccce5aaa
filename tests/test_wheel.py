"""The wheels are enough: migrations/ and sql/ travel in loracomp's, and `loracomp init` runs from anywhere."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without isolation: the build tools are among the test tools."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def environment(folder: Path, wheel: Path, *pip_options: str) -> Path:
    """Programs' folder of a new virtual environment with the wheel in it."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip_options]
    subprocess.run([*pip, wheel], check=True)
    return folder / "bin"


def initialize(programs: Path, database: str, folder: Path) -> None:
    """`loracomp init` by the wheel's command, from another folder; the tables and functions are there afterwards."""

    def run(*command: str) -> str:
        return subprocess.check_output(
            [programs / command[0], *command[1:]],
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "LORACOMP_DATABASE_URL": database},
            cwd=folder,
            text=True,
        )

    origin = run("python", "-c", "import loracomp; print(loracomp.__file__)")
    assert Path(origin).is_relative_to(programs.parent)
    assert "schema empty ->" in run("loracomp", "init")
    assert "nothing to do" in run("loracomp", "init")
    with psycopg.connect(database) as connection:
        connection.execute("SELECT * FROM loracomp.job_result")
        connection.execute("SELECT * FROM loracomp.claim_jobs('worker', 'base model', 1, '1 s')")


def test_every_file_that_is_read_at_run_time_is_packed(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [path for name in ("loracomp", "migrations", "sql") for path in (ROOT / name).rglob("*") if path.is_file()]
    names = [path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"]
    wanted = {name if name.startswith("loracomp/") else f"loracomp/{name}" for name in names}
    assert wanted - packed == set()


def test_init_from_the_wheel_alone(wheel: Path, empty_database: str, tmp_path: Path) -> None:
    programs = environment(tmp_path / "venv", wheel, "--no-deps")
    # The dependencies are borrowed from the tests' own environment, but for loracomp itself.
    library = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (library / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    initialize(programs, empty_database, tmp_path)


@pytest.mark.slow
def test_init_in_an_empty_environment(wheel: Path, empty_database: str, tmp_path: Path) -> None:
    initialize(environment(tmp_path / "venv", wheel), empty_database, tmp_path)

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


def build(folder: Path, project: Path) -> Path:
    """A wheel, built without isolation: the build tools are among the test tools."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), ROOT)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of the lab and the library, by their folders' names."""
    return {name: build(tmp_path_factory.mktemp(name), ROOT / name) for name in ("lab", "library")}


def environment(folder: Path, *options: Path | str) -> Path:
    """Programs' folder of a new virtual environment, in which pip has installed wheels."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]
    subprocess.run(pip, check=True)
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


def test_lab_and_library_are_packed_apart(wheel: Path, others: dict[str, Path]) -> None:
    assert wheel.stat().st_size < 2e6 < 20e6 < others["library"].stat().st_size
    for name, path in others.items():
        packed = set(zipfile.ZipFile(path).namelist())
        files = {file for file in (ROOT / name / f"loracomp_{name}").rglob("*") if file.is_file()}
        wanted = {file.relative_to(ROOT / name).as_posix() for file in files if file.suffix != ".pyc"}
        assert wanted - packed == set()
        assert {file.split("/")[0] for file in packed if ".dist-info" not in file} == {f"loracomp_{name}"}


def test_init_and_the_labs_commands_from_the_wheels_alone(
    wheel: Path, others: dict[str, Path], empty_database: str, tmp_path: Path
) -> None:
    programs = environment(tmp_path / "venv", "--no-deps", wheel, *others.values())
    # The dependencies are borrowed from the tests' own environment, but for loracomp itself.
    library = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (library / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    initialize(programs, empty_database, tmp_path)
    where = "from loracomp.registry.library_files import packaged; print(packaged())"
    shipped = subprocess.check_output([programs / "python", "-c", where], env={}, cwd=tmp_path, text=True)
    assert Path(shipped.strip()) == library / "loracomp_library"
    told = subprocess.check_output([programs / "loracomp", "train", "--help"], env={}, cwd=tmp_path, text=True)
    assert "Train a LoRA adapter" in told


@pytest.mark.slow
def test_init_in_an_empty_environment(wheel: Path, empty_database: str, tmp_path: Path) -> None:
    initialize(environment(tmp_path / "venv", wheel), empty_database, tmp_path)

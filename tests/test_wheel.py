"""The wheels are enough: migrations/ and sql/ travel in loracomp's, and `loracomp init` runs from anywhere."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import psycopg
import pytest
from packaging.requirements import Requirement

from loracomp import __version__

ROOT = Path(__file__).parent.parent
PACKAGES = ROOT / "packages"


def build(folder: Path, project: Path, *options: str) -> Path:
    """A wheel, built without isolation: the build tools are among the test tools."""
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", folder, project]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """loracomp's wheel, built from its sdist, which stands next to it."""
    return build(tmp_path_factory.mktemp("wheel"), ROOT)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of the lab and the library, by their folders' names."""
    return {name: build(tmp_path_factory.mktemp(name), PACKAGES / name, "--wheel") for name in ("lab", "library")}


def files(*folders: str, of: Path = ROOT) -> set[str]:
    """What git would keep in folders, by paths in `of`."""
    found = {path for folder in folders for path in (of / folder).rglob("*") if path.is_file()}
    return {path.relative_to(of).as_posix() for path in found if path.suffix != ".pyc"}


def contents(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def metadata(wheel: Path) -> Message:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(archive.read(name))


def environment(folder: Path, *options: Path | str) -> Path:
    """Programs' folder of a new virtual environment, in which pip has installed wheels."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-compile", *options], check=True)
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


def test_the_wheel_has_what_is_read_at_run_time_and_nothing_else(wheel: Path) -> None:
    assert contents(wheel) == files("loracomp") | {f"loracomp/{name}" for name in files("migrations", "sql")}


def test_the_sdist_has_what_the_wheel_is_built_of_and_what_people_read(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("loracomp", "migrations", "sql", "docs", "examples", "deploy")
    single = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "PKG-INFO", ".gitignore"}
    assert packed == files(*folders) | single


def test_lab_and_library_are_packed_apart(wheel: Path, others: dict[str, Path]) -> None:
    assert wheel.stat().st_size < 2e6 < 20e6 < others["library"].stat().st_size < 40e6
    for name, path in others.items():
        assert contents(path) == files(f"loracomp_{name}", of=PACKAGES / name)


def test_the_wheels_say_what_they_are(wheel: Path, others: dict[str, Path]) -> None:
    for path in (wheel, *others.values()):
        said = metadata(path)
        assert said["Summary"] and said["License-Expression"] == "Apache-2.0" and said["License-File"] == "LICENSE"
        assert "Operating System :: POSIX :: Linux" in said.get_all("Classifier", [])
    assert metadata(wheel)["Version"] == metadata(others["lab"])["Version"] == __version__
    extras = set(metadata(wheel).get_all("Provides-Extra", []))
    assert {"demo", "lab", "ray", "data"} <= extras
    assert {"loracomp/py.typed", "loracomp_lab/py.typed"} <= contents(wheel) | contents(others["lab"])
    needs = [Requirement(each) for each in metadata(others["lab"]).get_all("Requires-Dist", [])]
    (ours,) = (each.specifier for each in needs if each.name == "loracomp")
    major, minor, _ = __version__.split(".")
    assert __version__ in ours and f"{major}.{int(minor) + 1}.0" not in ours


def test_the_files_that_make_runs_are_there() -> None:
    named = re.findall(r"(?<![\w/.])(?:tests|deploy|docs|packages)/[\w/.]+\b", (ROOT / "Makefile").read_text())
    assert len(named) > 10 and [path for path in named if not (ROOT / path).exists()] == []


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first and first[1] == __version__


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

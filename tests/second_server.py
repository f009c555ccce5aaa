"""Runs a command with another PostgreSQL: `python tests/second_server.py [--pooled] COMMAND ...`.

Debian's PostgreSQL 17 with pgvector, in a temporary folder, listens only on sockets. Missing packages are installed if
apt-get is available and permitted, and are named otherwise. COMMAND finds the server as LORACOMP_TEST_SERVER and, with
--pooled, a pgbouncer in transaction mode before it as LORACOMP_TEST_POOLER. It exits with COMMAND's exit code, or with
69 if it can't start a server.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import memory

BINARIES = Path("/usr/lib/postgresql/17/bin")
NEEDED = {
    "postgresql-17": BINARIES / "initdb",
    "postgresql-17-pgvector": Path("/usr/share/postgresql/17/extension/vector.control"),
    "pgbouncer": Path("/usr/sbin/pgbouncer"),
}
PORT, POOLED_PORT = 5417, 6417
"""Ports of sockets in a folder of their own, so nothing else can have them."""
POOLER = f"""
[databases]
* = host={{folder}} port={PORT}
[pgbouncer]
unix_socket_dir = {{folder}}
listen_addr =
listen_port = {POOLED_PORT}
auth_type = trust
auth_file = {{folder}}/logins
auth_user = postgres
pool_mode = transaction
default_pool_size = 20
max_client_conn = 500
server_idle_timeout = 5
ignore_startup_parameters = extra_float_digits
max_prepared_statements = 0
admin_users = postgres
logfile = {{folder}}/pgbouncer.log
pidfile = {{folder}}/pgbouncer.pid
"""
"""The server is asked for other logins. No prepared statements: older ones, and those of some hosts, know none."""


def main(arguments: list[str]) -> int:
    pooled = arguments[:1] == ["--pooled"]
    if missing := install():
        print(f"no second server: {', '.join(missing)} not installed, and apt-get can't do it here", file=sys.stderr)
        return 69
    with server() as folder:
        environment = {**os.environ, "LORACOMP_TEST_SERVER": url(folder, PORT)}
        if pooled:
            environment["LORACOMP_TEST_POOLER"] = str(POOLED_PORT)
        return subprocess.run(arguments[pooled:], env=environment, check=False).returncode


def install(more: dict[str, Path] | None = None) -> list[str]:
    """Install Debian's packages; returns those that are missing and can't be installed. `more` has packages in addition
    to the server's, each with a file that it contains."""
    needed = NEEDED | (more or {})
    if absent(needed) and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL}
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)
        # Do not make or start a cluster of the machine's own.
        subprocess.run(
            ["apt-get", "install", "-qq", "--yes", "--no-install-recommends",
             "-o", "DPkg::Options::=--force-confdef", *absent(needed)], check=False, env=environment, **quiet
        )  # fmt: skip
    return absent(needed)


def absent(needed: dict[str, Path]) -> list[str]:
    return [package for package, file in needed.items() if not file.exists()]


@contextmanager
def server() -> Iterator[Path]:
    """Start a server and its pooler, and stop both at the end; yields the folder of their sockets."""
    with tempfile.TemporaryDirectory(prefix="loracomp-17-", dir=memory.folder(), ignore_cleanup_errors=True) as name:
        folder = Path(name)
        own(folder)
        data = folder / "data"
        run("initdb", "-D", data, "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8")
        options = f"-h '' -k {folder} -p {PORT} -c fsync=off -c max_connections=200"
        run("pg_ctl", "start", "-D", data, "-w", "-l", folder / "log", "-o", options)
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(POOLER.format(folder=folder))
        (folder / "logins").write_text('"postgres" ""\n')
        pooler = subprocess.Popen([str(NEEDED["pgbouncer"]), "-q", str(configuration)], **as_user())
        try:
            wait_for(folder / f".s.PGSQL.{POOLED_PORT}")
            yield folder
        finally:
            pooler.terminate()
            pooler.wait()
            run("pg_ctl", "stop", "-D", data, "-m", "immediate")


def run(program: str, *arguments: object) -> None:
    done = subprocess.run(
        [str(BINARIES / program), *map(str, arguments)], stdout=subprocess.DEVNULL, check=False, cwd="/", **as_user()
    )
    if done.returncode:
        raise SystemExit(f"{program} failed")


def as_user() -> dict[str, object]:
    """Return arguments of subprocess that run a program as the package's user if this is root, because PostgreSQL and
    pgbouncer refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


def own(folder: Path) -> None:
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        folder.chmod(0o755)


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"{file} did not appear")
        time.sleep(0.05)


def url(folder: Path, port: int) -> str:
    return f"postgresql://postgres@/postgres?host={quote(str(folder), safe='/')}&port={port}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

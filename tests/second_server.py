"""A command with another PostgreSQL to run on: `python tests/second_server.py [--pooled] COMMAND ...`.

Debian's PostgreSQL 17 with pgvector, in a temporary folder, on sockets alone; what is missing of it is installed where
apt-get and the right to do so are there, and else named. COMMAND finds the server as LORACOMP_TEST_SERVER and, with
--pooled, a pgbouncer in transaction mode before it as LORACOMP_TEST_POOLER. Exits with its code, or 69 where no server
can be had.
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

BINARIES = Path("/usr/lib/postgresql/17/bin")
NEEDED = {
    "postgresql-17": BINARIES / "initdb",
    "postgresql-17-pgvector": Path("/usr/share/postgresql/17/extension/vector.control"),
    "pgbouncer": Path("/usr/sbin/pgbouncer"),
}
PORT, POOLED_PORT = 5417, 6417
"""Of sockets in a folder of their own: nothing else can have them."""
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
    """Debian's packages that are not there and can't be had; `more` beside those of a server, by a file of each."""
    needed = NEEDED | (more or {})
    if absent(needed) and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL}
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)
        # No cluster of the machine's own is made or started.
        subprocess.run(
            ["apt-get", "install", "-qq", "--yes", "--no-install-recommends",
             "-o", "DPkg::Options::=--force-confdef", *absent(needed)], check=False, env=environment, **quiet
        )  # fmt: skip
    return absent(needed)


def absent(needed: dict[str, Path]) -> list[str]:
    return [package for package, file in needed.items() if not file.exists()]


@contextmanager
def server() -> Iterator[Path]:
    """The folder of the sockets of a server and its pooler, both stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="loracomp-17-", ignore_cleanup_errors=True) as name:
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
    """Neither PostgreSQL nor pgbouncer runs as root: as the package's user then."""
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

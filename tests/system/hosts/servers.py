"""A primary and a standby on hosts of their own: Debian's, as `second_server` installs them."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

import second_server
from network import NET, Host

PORT = 5432
ONE = f"""
listen_addresses = '*'
port = {PORT}
max_connections = 200
# Writes that survive a crash are what is tried here. pg_rewind needs the hints.
wal_log_hints = on
wal_keep_size = 512MB
archive_mode = on
archive_command = 'cp %p {{archive}}/%f'
# A host that is silent is noticed soon.
wal_sender_timeout = 5s
wal_receiver_timeout = 5s
wal_retrieve_retry_interval = 200ms
tcp_user_timeout = 5s
"""
"""Settings of every server."""
LOGINS = f"""
host all all {NET}.0/24 trust
host replication all {NET}.0/24 trust
"""
PATRONI = {
    "patroni": Path("/usr/bin/patroni"),
    "python3-etcd": Path("/usr/lib/python3/dist-packages/etcd/__init__.py"),
    "etcd-server": Path("/usr/bin/etcd"),
}
"""Debian's packages for a cluster."""


@dataclass
class Postgres:
    """One server on one host; `folder` has its data, its socket and its log."""

    host: Host
    folder: Path
    archive: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def conninfo(self) -> str:
        """Return the conninfo for hosts."""
        return f"host={self.host.address} port={PORT} user=postgres"

    @classmethod
    def on(cls, host: Host, folder: Path, archive: Path) -> "Postgres":
        """Make a server in a new folder of its own."""
        folder.mkdir()
        second_server.own(folder)
        return cls(host, folder, archive)

    def url(self, dbname: str, *, by_socket: bool = False) -> str:
        """Return the URL for hosts, or for this process, which is not on a host."""
        return url_of([self], dbname, by_socket=by_socket)

    def initialize(self) -> None:
        second_server.run("initdb", "-D", self.data, "--auth=trust", "--username=postgres", "--encoding=UTF8",
                          "--locale=C.UTF-8")  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(ONE.format(archive=self.archive))
        with (self.data / "pg_hba.conf").open("a") as logins:
            logins.write(LOGINS)

    def start(self, **settings: str) -> None:
        """Settings that belong to the host alone are on the command line: the files are copied between servers."""
        options = "".join(f" -c {name}={quoted(value)}" for name, value in settings.items())
        self._on_host("pg_ctl", "start", "-w", "-t", "120", "-D", self.data, "-l", self.folder / "log",
                      "-o", f"-k {self.folder}{options}")  # fmt: skip

    def follow(self, primary: "Postgres") -> None:
        """Start as a standby."""
        (self.data / "standby.signal").touch()
        name = f"application_name={self.host.name}"
        self.start(primary_conninfo=f"{primary.conninfo} {name} connect_timeout=2")

    def copy(self, primary: "Postgres") -> None:
        """Copy another server with pg_basebackup."""
        self._on_host("pg_basebackup", "-D", self.data, "-d", primary.conninfo, "-c", "fast", "-X", "stream")

    def rewind(self, primary: "Postgres") -> None:
        """Undo changes that the other server lacks; this server was the primary until it died."""
        reached = [
            *self.host.prefix,
            str(second_server.BINARIES / "pg_isready"),
            "-q",
            "-t",
            "2",
            "-d",
            primary.conninfo,
        ]
        wait(lambda: subprocess.run(reached, check=False).returncode == 0)
        self._on_host("pg_rewind", "-D", self.data, "--source-server", f"{primary.conninfo} dbname=postgres")

    def archive_all(self) -> None:
        """Wait until the archive has everything written so far."""
        written = self.ask("SELECT pg_walfile_name(pg_switch_wal())")
        wait(lambda: self.ask("SELECT last_archived_wal >= %s FROM pg_stat_archiver", written))

    def restore(self, moment: float) -> None:
        """Start the copy in the state of a given moment, as a primary on a new timeline."""
        self.set(
            restore_command=f"cp {self.archive}/%f %p",
            recovery_target_time=f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S.%f+00}",
            recovery_target_action="promote",
        )
        (self.data / "recovery.signal").touch()
        self.start(archive_mode="off")
        wait(lambda: not self.ask("SELECT pg_is_in_recovery()"))

    def promote(self) -> None:
        second_server.run("pg_ctl", "promote", "-w", "-D", self.data)

    def kill(self) -> None:
        """Kill all processes of the server by SIGKILL."""
        first = int((self.data / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, check=False).stdout.split()
        processes = (first, *map(int, children))
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait(lambda: not any(lives(pid) for pid in processes))
        # As after a boot, no process has this number.
        for file in (self.data / "postmaster.pid", self.folder / f".s.PGSQL.{PORT}.lock"):
            file.unlink()

    def stop(self) -> None:
        if (self.data / "postmaster.pid").exists():
            second_server.run("pg_ctl", "stop", "-w", "-D", self.data, "-m", "immediate")

    def set(self, **settings: str) -> None:
        """Write a setting into postgresql.auto.conf, as ALTER SYSTEM would, which a standby can't run."""
        lines = [f"{name} = {quoted(value)}\n" for name, value in settings.items()]
        (self.data / "postgresql.auto.conf").write_text("".join(lines))
        if (self.data / "postmaster.pid").exists():
            second_server.run("pg_ctl", "reload", "-D", self.data)

    def ask(self, statement: str, *parameters: Any, dbname: str = "postgres") -> Any:
        """Run a query through the server's socket; returns the only column of the first row, or None if there is no
        row."""
        url = f"host={self.folder} port={PORT} user=postgres dbname={dbname}"
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute(statement.encode(), parameters).fetchone()
        return row and row[0]

    def _on_host(self, program: str, *arguments: object) -> None:
        command = [*self.host.prefix, *as_postgres(), str(second_server.BINARIES / program), *map(str, arguments)]
        # A server that pg_ctl starts keeps its output: a pipe would never end.
        output = subprocess.DEVNULL if program == "pg_ctl" else subprocess.PIPE
        done = subprocess.run(command, stdout=output, stderr=output, text=True, check=False, cwd="/")
        assert done.returncode == 0, f"{program}: {done.stderr or (self.folder / 'log').read_text()[-2000:]}"


def url_of(servers: Sequence[Postgres], dbname: str, *, by_socket: bool) -> str:
    places = ",".join(str(each.folder) if by_socket else each.host.address for each in servers)
    return f"host={places} port={PORT} user=postgres dbname={dbname} target_session_attrs=read-write connect_timeout=2"


def quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def lives(pid: int) -> bool:
    """Return whether a process runs; a dead process remains as a zombie until its parent has asked for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def as_postgres() -> tuple[str, ...]:
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")


@dataclass
class Pair:
    """Two servers, of which one is the primary now."""

    primary: Postgres
    standby: Postgres
    synchronous: bool = False

    def url(self, dbname: str, *, by_socket: bool = False) -> str:
        """Return the URL of the server that is the primary."""
        both = sorted((self.primary, self.standby), key=lambda each: each.host.name)
        return url_of(both, dbname, by_socket=by_socket)

    def wait_for_standby(self) -> None:
        """Wait until the standby has what the primary has; if wanted, commits wait for the standby from then on."""
        if self.synchronous:
            self.primary.set(synchronous_standby_names="*")
        written = self.primary.ask("SELECT pg_current_wal_lsn()::text")
        state = "sync" if self.synchronous else "async"
        behind = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = %s AND flush_lsn >= %s::pg_lsn"
        wait(lambda: self.primary.ask(behind, state, written))

    @contextmanager
    def commits_wait(self) -> Iterator[None]:
        """Let commits wait for the server that is the standby."""
        self.synchronous = True
        try:
            self.wait_for_standby()
            yield
        finally:
            self.synchronous = False
            self.primary.set()

    def fail_over(self) -> None:
        """Make the standby the primary, whose commits wait for no other server, because there is none yet."""
        self.standby.set()
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    def take_back(self) -> None:
        """Bring the dead server back as a standby."""
        self.standby.rewind(self.primary)
        self.standby.set()
        self.standby.follow(self.primary)
        self.wait_for_standby()

    def stop(self) -> None:
        for each in (self.standby, self.primary):
            each.stop()


@contextmanager
def pair(folder: Path, primary: Host, standby: Host) -> Iterator[Pair]:
    """Start both servers; the standby streams from the primary."""
    archive = folder / "archive"
    for place in (folder, archive):
        place.mkdir()
        second_server.own(place)
    first, second = (Postgres.on(host, folder / host.name, archive) for host in (primary, standby))
    both = Pair(first, second)
    try:
        first.initialize()
        first.start()
        second.copy(first)
        second.follow(first)
        yield both
    finally:
        both.stop()


def wait(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in {seconds:g} s"
        time.sleep(0.02)


def missing() -> list[str]:
    """Return packages that are not installed and can't be installed."""
    found = second_server.install(PATRONI)
    return found if shutil.which("pgrep") else [*found, "procps"]

"""Servers under Debian's Patroni, with etcd on a host of its own: the trial itself neither promotes nor rewinds."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg

import second_server
from arena import ROOT
from failovers import fail_over_under_load
from lab import Lab, Outcome, make_template
from network import Host
from pooler import Pooler
from servers import Pair, Postgres, as_postgres, wait

SETTINGS = ROOT / "deploy" / "patroni" / "patroni.yml"
ETCD_PORT = 2379
IS_PRIMARY = "SELECT NOT pg_is_in_recovery()"


def patroni(lab: Lab, failovers: int = 3) -> Outcome:
    """The leader's host dies under load; Patroni notices, promotes, and brings the dead server back."""
    with cluster(lab) as place:
        return fail_over_under_load(place, failovers, synchronous=True)


@contextmanager
def cluster(lab: Lab) -> Iterator[Lab]:
    """Make the network with two servers that Patroni runs, a pooler in front of them, and the trials' template."""
    folder = lab.folder / "patroni"
    folder.mkdir()
    second_server.own(folder)
    with ExitStack() as stack:
        password = stack.enter_context(password_of_all())
        etcd = stack.enter_context(running_etcd(lab.host("etcd"), folder / "etcd"))
        hosts = [lab.host(name) for name in ("pa", "pb")]
        members = [Member.on(host, folder / host.name, folder / "archive") for host in hosts]
        for member in members:
            member.write_settings(etcd, password)
            member.start()
            stack.callback(member.stop)
            # The second server copies the first one's cluster.
            wait(lambda: members[0].answers(IS_PRIMARY), 120)
        pair = Patroni(members[0], members[1])
        pair.wait_for_standby()
        pooler = stack.enter_context(Pooler(lab.host("ppooler"), folder / "pooler").running(pair.primary))
        make_template(pair)
        yield replace(lab, folder=folder, pair=pair, pooler=pooler, databases=0)


@contextmanager
def password_of_all() -> Iterator[str]:
    """Set the superuser's password for programs that are started meanwhile."""
    os.environ["PGPASSWORD"] = secrets.token_hex()
    try:
        yield os.environ["PGPASSWORD"]
    finally:
        del os.environ["PGPASSWORD"]


@contextmanager
def running_etcd(host: Host, folder: Path) -> Iterator[Host]:
    """Run an etcd with one member, which is enough for a trial, but not to survive a fault of etcd."""
    url = f"http://{host.address}:{ETCD_PORT}"
    options = ["--data-dir", str(folder), "--listen-client-urls", url, "--advertise-client-urls", url]
    with (folder.parent / "etcd.log").open("w") as log:
        process = subprocess.Popen([*host.prefix, "etcd", *options], stdout=log, stderr=log)
    try:
        yield host
    finally:
        process.kill()
        process.wait()


@dataclass
class Member(Postgres):
    """A server that is started and stopped by Patroni on its host."""

    def write_settings(self, etcd: Host, password: str) -> None:
        """Write the settings of deploy/ with this host's names, folders and password."""
        text = SETTINGS.read_text()
        for example, value in {
            "db-a": self.host.address,
            "etcd.example": etcd.address,
            "/var/lib/postgresql/17/loracomp": self.data,
            "/usr/lib/postgresql/17/bin": second_server.BINARIES,
            "/var/lib/postgresql/patroni.pgpass": self.folder / "pgpass",
            "/var/run/postgresql": self.folder,
            "change-me": password,
        }.items():
            assert example in text, example
            text = text.replace(example, str(value))
        (self.folder / "patroni.yml").write_text(text)

    def command(self, *words: str) -> list[str]:
        """Without this process's Python path."""
        return [*self.host.prefix, *as_postgres(), "env", "-i", "PATH=/usr/bin", *words]

    def start(self, **_: str) -> None:
        command = self.command("patroni", str(self.folder / "patroni.yml"))
        with (self.folder / "log").open("a") as log:
            self.patroni = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")

    def may_take_over(self) -> bool:
        """Return whether etcd knows that commits wait for a standby. It learns this a moment after they begin."""
        command = self.command("patronictl", "-c", str(self.folder / "patroni.yml"), "list", "--format", "json")
        return '"Sync Standby"' in subprocess.run(command, capture_output=True, text=True, check=False, cwd="/").stdout

    def kill(self) -> None:
        """Kill Patroni and all processes of the server by SIGKILL, as if the host had died."""
        self.host.kill_all()
        self.patroni.wait()

    stop = kill

    def answers(self, question: str) -> bool:
        """Return whether the server is reachable and answers yes."""
        try:
            return bool(self.ask(question))
        except psycopg.OperationalError:
            return False


@dataclass
class Patroni(Pair):
    """Waits for what Patroni does."""

    primary: Member
    standby: Member

    @contextmanager
    def commits_wait(self) -> Iterator[None]:
        self.wait_for_standby()
        yield

    def wait_for_standby(self) -> None:
        wait(self.standby.may_take_over, 120)

    def fail_over(self) -> None:
        wait(lambda: self.standby.answers(IS_PRIMARY), 120)
        self.primary, self.standby = self.standby, self.primary

    def take_back(self) -> None:
        self.standby.start()
        self.wait_for_standby()

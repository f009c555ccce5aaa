"""A pgbouncer on a host of its own: Debian's, as `second_server` installs it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import second_server
from network import Host
from servers import PORT, Postgres, as_postgres

POOLER = """
[databases]
* = host={address} port={port}
[pgbouncer]
listen_addr = *
unix_socket_dir =
listen_port = {port}
auth_type = trust
auth_file = {folder}/logins
auth_user = postgres
pool_mode = transaction
default_pool_size = 20
max_prepared_statements = 0
ignore_startup_parameters = extra_float_digits
server_connect_timeout = 2
server_login_retry = 1
query_timeout = 5
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
"""


@dataclass
class Pooler:
    """A pgbouncer on a host of its own; it must be told which server is the primary."""

    host: Host
    folder: Path

    def url(self, dbname: str) -> str:
        return f"host={self.host.address} port={PORT} user=postgres dbname={dbname} connect_timeout=2"

    def point_at(self, server: Postgres) -> None:
        settings = POOLER.format(folder=self.folder, address=server.host.address, port=PORT)
        (self.folder / "pgbouncer.ini").write_text(settings)

    @contextmanager
    def running(self, server: Postgres) -> Iterator["Pooler"]:
        self.folder.mkdir()
        second_server.own(self.folder)
        (self.folder / "logins").write_text(f'"postgres" "{os.environ.get("PGPASSWORD", "")}"\n')
        self.point_at(server)
        command = [*self.host.prefix, *as_postgres(), "/usr/sbin/pgbouncer", "-q", str(self.folder / "pgbouncer.ini")]
        self.process = subprocess.Popen(command)
        try:
            yield self
        finally:
            self.process.kill()
            self.process.wait()

    def follow(self, server: Postgres) -> None:
        """Reload the pooler with another primary; connections to the old server are closed when their transactions
        end."""
        self.point_at(server)
        self.process.send_signal(signal.SIGHUP)

"""Hosts of one machine: network namespaces on a bridge, each with an address of its own.

A host that is far away is connected by `wire.py`, which delays packets and loses some. Linux' netem would do the same,
but many kernels come without it.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType

NET = "198.18.0"
"""Reserved for tests of networks (RFC 2544); the namespaces reach nothing else."""


@dataclass(frozen=True)
class Host:
    name: str
    namespace: str
    address: str
    port: str
    """The end of the host's cable at the bridge."""
    switch: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return the prefix that makes a command run on this host."""
        return ("ip", "netns", "exec", self.namespace)

    def cut(self) -> None:
        """Unplug the cable: packets vanish, and nobody is told."""
        ip("-n", self.switch, "link", "set", self.port, "down")

    def plug(self) -> None:
        ip("-n", self.switch, "link", "set", self.port, "up")

    def kill_all(self) -> None:
        """Kill every process on the host by SIGKILL."""
        while kill_all(self.namespace):
            time.sleep(0.02)


@dataclass
class Network:
    """A bridge in a namespace of its own, and the hosts on it; all are gone at the end."""

    _stack: ExitStack = field(default_factory=ExitStack)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    def __enter__(self) -> "Network":
        self.switch = f"loracomp-{os.getpid()}-switch"
        self._add_namespace(self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def host(self, name: str, *, round_trip_ms: float = 0, loss: float = 0) -> Host:
        """A new host; `round_trip_ms` to any other, and the share of packets that are lost in each direction."""
        number = next(self._numbers)
        namespace = f"loracomp-{os.getpid()}-{number}-{name}"
        host = Host(name, namespace, f"{NET}.{number}", f"port{number}", self.switch)
        self._add_namespace(namespace)
        if round_trip_ms or loss:
            self._lay_wire(host, round_trip_ms / 2000, loss)
        else:
            ip("-n", self.switch, "link", "add", host.port, "type", "veth", "peer", "eth0", "netns", namespace)
        ip("-n", self.switch, "link", "set", host.port, "master", "bridge", "up")
        ip("-n", namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "eth0", "up")
        return host

    def _lay_wire(self, host: Host, delay_s: float, loss: float) -> None:
        far = f"far{host.port}"
        program = str(Path(__file__).with_name("wire.py"))
        command = ["ip", "netns", "exec", self.switch, sys.executable, program, host.port, far, str(delay_s), str(loss)]
        wire = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._stack.callback(wire.wait)
        self._stack.callback(wire.kill)
        assert wire.stdout and wire.stdout.readline(), "the wire did not start"
        ip("-n", self.switch, "link", "set", far, "netns", host.namespace, "name", "eth0")

    def _add_namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._stack.callback(remove_namespace, name)
        ip("-n", name, "link", "set", "lo", "up")


def remove_namespace(name: str) -> None:
    """Remove a namespace, and kill what still runs in it."""
    kill_all(name)
    ip("netns", "delete", name)


def kill_all(namespace: str) -> int:
    """Kill the processes of a namespace; returns how many there were."""
    pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, check=False).stdout.split()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    return len(pids)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def missing() -> list[str]:
    """Say in words what this machine lacks to have hosts."""
    if os.geteuid() != 0:
        return ["the right to make network namespaces (run it as root)"]
    tools = {"ip": "iproute2", "setpriv": "util-linux"}
    if absent := [f"{tool} (Debian's {package})" for tool, package in tools.items() if not shutil.which(tool)]:
        return absent
    if not Path("/dev/net/tun").exists():
        return ["/dev/net/tun"]
    try:
        with Network() as network:
            network.host("near")
            network.host("far", round_trip_ms=1)
    except (OSError, subprocess.CalledProcessError, AssertionError) as error:
        return [f"network namespaces with a bridge, veth and tap devices ({error})"]
    return []

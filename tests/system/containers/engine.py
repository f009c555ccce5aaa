"""A podman that only the trial uses, and Docker's compose on its socket."""

import ast
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import second_server

ROOT = Path(__file__).parents[3]
NEEDED = {
    "podman": Path("/usr/bin/podman"),
    "runc": Path("/usr/sbin/runc"),
    "netavark": Path("/usr/lib/podman/netavark"),
    "aardvark-dns": Path("/usr/lib/podman/aardvark-dns"),
    "nftables": Path("/usr/sbin/nft"),
    "catatonit": Path("/usr/bin/catatonit"),
    "docker-compose": Path("/usr/bin/docker-compose"),
    "debootstrap": Path("/usr/sbin/debootstrap"),
}
CONTAINERS = """
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{folder}/tmp"
[network]
network_config_dir = "{folder}/networks"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{folder}/images"
runroot = "{folder}/run"
"""


@dataclass
class Engine:
    folder: Path

    def __post_init__(self) -> None:
        limits = {"files": resource.RLIMIT_NOFILE, "processes": resource.RLIMIT_NPROC}
        hard = {name: resource.getrlimit(limit)[1] for name, limit in limits.items()}
        (self.folder / "containers.conf").write_text(CONTAINERS.format(folder=self.folder, **hard))
        (self.folder / "storage.conf").write_text(STORAGE.format(folder=self.folder))
        self.variables = {
            **os.environ,
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
            # `health` asks instead, since not every machine runs systemd.
            "DISABLE_HC_SYSTEMD": "true",
            "DOCKER_HOST": f"unix://{self.folder}/podman.sock",
            "DOCKER_CONFIG": str(self.folder / "docker"),
        }

    def podman(self, *arguments: str, stdin: Any = None, check: bool = True) -> str:
        return self._run(["podman", *arguments], check, stdin=stdin)

    def compose(self, *arguments: str) -> str:
        files = ["--file", str(ROOT / "docker-compose.yml"), "--env-file", str(self.folder / "passwords")]
        return self._run(["docker-compose", *files, *arguments], True)

    def _run(self, command: list[str], check: bool, **options: Any) -> str:
        done = subprocess.run(command, env=self.variables, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr[-3000:]}"
        return done.stdout.strip()

    def build(self, context: Path, torch_options: str, secret: str) -> str:
        """Build the image of a checkout with this machine's settings of pip; `secret` is a remark in pip's file."""
        settings, files = pip_settings()
        configuration = self.folder / "pip.conf"
        configuration.write_text("\n".join([f"# {secret}", "[global]", *settings]))
        return self.podman(
            "build", "--quiet", "--network=host", f"--secret=id=pip,src={configuration}",
            *(f"--volume={file}:{file}:ro" for file in files), f"--build-arg=TORCH_OPTIONS={torch_options}",
            f"--file={context}/deploy/Dockerfile", str(context),
        ).splitlines()[-1]  # fmt: skip

    def has(self, image: str) -> bool:
        return bool(self.podman("image", "ls", "--quiet", image))

    def layers(self, image: str) -> list[str]:
        return json.loads(self.podman("image", "inspect", image))[0]["RootFS"]["Layers"]

    def layer_sizes(self, image: str) -> list[int]:
        """Return the bytes of each layer, the last one first."""
        return [step["size"] for step in json.loads(self.podman("history", "--format=json", image)) if step["size"]]

    def holds(self, image: str, text: str) -> bool:
        """Return whether a text is in a layer, a variable or the history of the image."""
        with subprocess.Popen(["podman", "save", image], env=self.variables, stdout=subprocess.PIPE) as saved:
            found = subprocess.run(["grep", "--text", "--fixed-strings", "--count", text], stdin=saved.stdout,
                                   stdout=subprocess.DEVNULL, check=False)  # fmt: skip
        return found.returncode == 0

    def containers(self, service: str) -> list[dict[str, Any]]:
        """Return the description of each container of a service, running containers first."""
        label = f"label=com.docker.compose.service={service}"
        ids = self.podman("ps", "--all", "--quiet", "--filter", label).split()
        found = json.loads(self.podman("inspect", *ids)) if ids else []
        return sorted(found, key=lambda each: not each["State"]["Running"])

    def healthy(self, service: str, count: int = 1) -> bool:
        states = [each["State"] for each in self.containers(service)]
        return [state["Running"] and state["Health"]["Status"] == "healthy" for state in states].count(True) == count

    @contextmanager
    def running(self) -> Iterator["Engine"]:
        """Run the engine, so that compose finds it, and check the containers' health."""
        command = ["podman", "system", "service", "--time=0", self.variables["DOCKER_HOST"]]
        service = subprocess.Popen(command, env=self.variables, stderr=subprocess.DEVNULL)
        ended = threading.Event()
        asking = threading.Thread(target=self._ask_for_health, args=[ended])
        self.clear()
        asking.start()
        try:
            yield self
        finally:
            ended.set()
            asking.join()
            self.clear()
            service.terminate()
            service.wait()

    def clear(self) -> None:
        """Remove everything except images."""
        self.podman("rm", "--all", "--force", "--time=2")
        self.podman("volume", "rm", "--all", "--force")
        self.podman("network", "prune", "--force")

    def _ask_for_health(self, ended: threading.Event) -> None:
        while not ended.wait(2):
            for container in self.podman("ps", "--quiet", "--filter=health=starting", "--filter=health=healthy",
                                         "--filter=health=unhealthy", check=False).split():  # fmt: skip
                self.podman("healthcheck", "run", container, check=False)


def pip_settings() -> tuple[list[str], set[str]]:
    """Return this machine's settings of pip, as lines of a pip.conf, and the files that they name."""
    listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    pairs = (line.split("=", 1) for line in listed.splitlines())
    settings = {name.rpartition(".")[2].removeprefix("default-"): ast.literal_eval(value) for name, value in pairs}
    words = {word for value in settings.values() for word in value.split()}
    files = {word for word in words if word.startswith("/") and Path(word).exists()}
    return [f"{name} = {' '.join(value.split())}" for name, value in settings.items()], files


@contextmanager
def engine(kept: Path | None) -> Iterator[Engine]:
    """Start an engine in a temporary folder, or in one that keeps the images for another run."""
    folder = kept or Path(tempfile.mkdtemp(prefix="loracomp-containers-", dir="/var/tmp"))
    folder.mkdir(exist_ok=True)
    found = Engine(folder.resolve())
    try:
        with found.running():
            yield found
    finally:
        if not kept:
            found.podman("system", "reset", "--force", check=False)
            shutil.rmtree(folder, ignore_errors=True)


def wait(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.5)


def missing() -> list[str]:
    """Install Debian's packages, and say in words what this machine still lacks to run containers."""
    if os.geteuid() != 0:
        return ["the right to run containers (run it as root)"]
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        return ["the kernel's overlay file system"]
    return second_server.install(NEEDED)

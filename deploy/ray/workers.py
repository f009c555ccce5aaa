"""Sets the number of workers on a Ray cluster: starts the workers that are missing, drains surplus workers.

    python deploy/ray/workers.py --workers 8 --gpus-per-worker 1

Each worker is an actor: a process that Ray places, and restarts elsewhere. Workers get this process's LORACOMP_*
variables. Needs `pip install ray` on each node.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from threading import Thread
from typing import Annotated, Any

import ray
import ray.cloudpickle
import typer
from ray.exceptions import RayActorError
from ray.util import list_named_actors

from loracomp.config import load_settings

NAMESPACE = "loracomp"
COMMAND = (sys.executable, "-m", "loracomp", "worker")
RESTART_S = 5.0
"""Seconds that an actor waits after its worker has ended by itself. Then the actor ends, and Ray restarts it."""
AS_A_CHILD = ("setpriv", "--pdeathsig", "TERM")
"""setpriv (util-linux) starts a process to which Linux sends SIGTERM when its parent dies, so that it gives back its
jobs."""

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes don't have this file


def scale(
    workers: int,
    *,
    gpus_per_worker: float = 0,
    cpus_per_worker: float = 1,
    environment: Mapping[str, str] | None = None,
    drain_s: float = 60,
    command: Sequence[str] = COMMAND,
) -> dict[str, str]:
    """Make the cluster that this process is connected to run this number of workers.

    Starts the actors that are missing, and drains surplus actors: their workers get SIGTERM, and have `drain_s`
    seconds to finish their jobs. Actors are detached, so they outlive this process, and Ray starts them again if a node
    or a process dies. An actor that finds no room waits for a node. `environment` is added to the variables of each
    worker; Ray's dashboard does not show it. Returns for each actor, by its name, what happened to it: started,
    running, drained, gone (it had died), or killed because the time was over.
    """
    before = set(_names())
    wanted = [f"worker-{number}" for number in range(1, workers + 1)]
    options = {
        "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True, "max_restarts": -1,
        "max_concurrency": 2, "num_gpus": gpus_per_worker, "num_cpus": cpus_per_worker,
    }  # fmt: skip
    for name in wanted:
        ray.remote(WorkerActor).options(name=name, **options).remote(tuple(command), dict(environment or {}))
    done = {name: "running" if name in before else "started" for name in wanted}
    leaving = {name: ray.get_actor(name, namespace=NAMESPACE) for name in sorted(before - set(wanted))}
    drained = {name: each.drain.remote() for name, each in leaving.items()}
    ready, _ = ray.wait(list(drained.values()), num_returns=len(drained), timeout=drain_s) if drained else ([], [])
    for name, each in leaving.items():
        done[name] = _outcome(drained[name]) if drained[name] in ready else "killed"
        ray.kill(each)
    return done


def _outcome(drained: Any) -> str:
    try:
        ray.get(drained)
    except RayActorError:
        return "gone"
    return "drained"


def _names() -> list[str]:
    return [each["name"] for each in list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE]


class WorkerActor:
    """A worker process that lives as long as this actor. If the process ends by itself, Ray starts both again."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._draining = False
        self._process = subprocess.Popen([*AS_A_CHILD, *command], env={**os.environ, **environment})  # noqa: S603
        Thread(target=self._end_with_process, daemon=True).start()

    def state(self) -> dict[str, object]:
        """The node, and the process id of the worker there."""
        return {"node": ray.get_runtime_context().get_node_id(), "pid": self._process.pid}

    def drain(self) -> int:
        """Let the worker finish what it runs, and return its exit code."""
        self._draining = True
        self._process.terminate()
        return self._process.wait()

    def _end_with_process(self) -> None:
        self._process.wait()
        if not self._draining:
            time.sleep(RESTART_S)
            os._exit(1)


def run(
    workers: Annotated[int, typer.Option(help="Number of workers to run on the cluster; 0: none.", min=0)],
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs that Ray reserves for each worker.", min=0)] = 0,
    cpus_per_worker: Annotated[float, typer.Option(help="CPU cores that Ray reserves for each worker.", min=0)] = 1,
    address: Annotated[str, typer.Option(help="The Ray cluster: host:port, or auto for this machine's.")] = "auto",
) -> None:
    """Set the number of workers on a Ray cluster."""
    settings = load_settings()
    if settings.database_url is None:
        sys.exit("LORACOMP_DATABASE_URL is not set: name the database that workers on other nodes can reach")
    ray.init(address=address, log_to_driver=False)
    environment = of_each_worker(settings.database_url)
    done = scale(
        workers,
        gpus_per_worker=gpus_per_worker,
        cpus_per_worker=cpus_per_worker,
        environment=environment,
        drain_s=settings.grace_s,
    )
    for name, what in done.items():
        typer.echo(f"{name}\t{what}")


def of_each_worker(database_url: str) -> dict[str, str]:
    """This process's LORACOMP_* variables, without the name and the port, which two workers on one node can't share."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("LORACOMP_")}
    ours.pop("LORACOMP_WORKER", None)
    if "LORACOMP_METRICS_PORT" in ours:
        ours["LORACOMP_METRICS_PORT"] = "0"
    return {**ours, "LORACOMP_DATABASE_URL": database_url}


if __name__ == "__main__":
    typer.run(run)

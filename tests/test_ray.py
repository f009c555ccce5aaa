"""Workers on a Ray cluster of three nodes on this machine: one node dies, then workers are drained."""

import importlib.util
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from job_data import add_jobs, statuses
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from worker_helpers import SCRIPT, claims
from worker_helpers import wait_until as wait_briefly

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

ROOT = Path(__file__).parent.parent
SETTINGS = {"LORACOMP_LEASE_S": "2", "LORACOMP_POLL_S": "0.1", "LORACOMP_BATCH_SIZE": "4", "LORACOMP_GRACE_S": "20"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without room for workers, and two nodes with room for two each."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 otherwise, which is endless on a busy machine
    import ray
    from ray.cluster_utils import Cluster

    memory = 100 << 20
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
    found.workers = [found.add_node(num_cpus=2, object_store_memory=memory) for _ in range(2)]
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@cache
def program() -> Any:
    """deploy/ray/workers.py, as a module."""
    spec = importlib.util.spec_from_file_location("workers_on_ray", ROOT / "deploy" / "ray" / "workers.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_until(condition: Callable[[], object]) -> None:
    """Ray and a worker, which both take seconds to start, on a busy machine."""
    wait_briefly(condition, 240)


def scale(workers: int, database: str) -> dict[str, str]:
    return program().scale(
        workers, environment={**SETTINGS, "PYTHONPATH": os.pathsep.join(sys.path)},
        command=(sys.executable, str(SCRIPT), database),
    )  # fmt: skip


def states() -> Iterator[tuple[str, Any]]:
    """The name of each actor, with what it says of itself."""
    import ray
    from ray.util import list_named_actors

    for each in list_named_actors(all_namespaces=True):
        yield each["name"], ray.get(ray.get_actor(**each).state.remote())


def alive(connection: Connection) -> int:
    rows = connection.execute(QUERIES["worker_status"])
    return sum(row["status"] in {"idle", "busy"} for row in rows)


def test_a_node_dies_and_nothing_is_lost_or_doubled(cluster: Any, connection: Connection, database: str):
    assert scale(3, database) == {f"worker-{number}": "started" for number in (1, 2, 3)}
    wait_until(lambda: alive(connection) == 3)
    jobs = add_jobs(connection, *["sleep 0.2"] * 120)
    wait_until(lambda: Counter(statuses(connection).values())["succeeded"] > 20)
    by_node = Counter(state["node"] for _, state in states())
    assert sorted(by_node.values()) == [1, 2]
    dying = next(node for node in cluster.workers if node.node_id == by_node.most_common(1)[0][0])
    cluster.remove_node(dying, allow_graceful=False)
    cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    (row,) = connection.execute("SELECT count(*) AS answers, count(DISTINCT job_id) AS jobs FROM loracomp.prediction")
    assert row == {"answers": len(jobs), "jobs": len(jobs)}
    wait_until(lambda: alive(connection) == 3)


def test_what_is_too_much_finishes_what_it_runs(cluster: Any, connection: Connection, database: str):
    scale(2, database)
    wait_until(lambda: alive(connection) == 2)
    jobs = add_jobs(connection, *["plod 2"] * 4)
    wait_until(lambda: "running" in statuses(connection).values())
    assert scale(0, database) == {"worker-1": "drained", "worker-2": "drained"}
    assert Counter(statuses(connection).values())["running"] == 0
    assert all(count == 1 for job, count in claims(connection).items() if statuses(connection)[job] == "succeeded")
    assert alive(connection) == 0
    scale(1, database)
    wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    assert len(jobs) == 4


def test_a_worker_that_ends_by_itself_starts_again(cluster: Any, connection: Connection, database: str):
    scale(1, database)
    wait_until(lambda: alive(connection) == 1)
    ((_, first),) = states()
    os.kill(first["pid"], signal.SIGKILL)
    add_jobs(connection, "a")
    wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})


def test_a_killed_actor_takes_its_worker_along(cluster: Any, connection: Connection, database: str):
    import ray

    scale(1, database)
    wait_until(lambda: alive(connection) == 1)
    ((name, state),) = states()
    ray.kill(ray.get_actor(name, namespace=program().NAMESPACE))
    wait_until(lambda: not Path(f"/proc/{state['pid']}").exists())


def test_what_workers_of_one_node_cannot_share_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORKER": "me", "METRICS_PORT": "9000", "BATCH_SIZE": "4", "DATABASE_URL": "old"}.items():
        monkeypatch.setenv(f"LORACOMP_{name}", value)
    passed = program().of_each_worker("new")
    assert "LORACOMP_WORKER" not in passed
    names = ("METRICS_PORT", "BATCH_SIZE", "DATABASE_URL")
    assert [passed[f"LORACOMP_{name}"] for name in names] == ["0", "4", "new"]

"""The calls whose time may grow with the number of adapters, by the purpose of each call."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from benchmarks.databases import timed
from benchmarks.many_examples.made_up import READERS
from loracomp.database import connections as db
from loracomp.database.queries import QUERIES
from loracomp.registry.adapter_store import fetch_adapters
from loracomp.worker.leases import claim_jobs
from routing_data import BASE_MODEL, add_jobs, route_jobs

from .filled import BATCH, STAGED, Filled

Call = Callable[[db.Connection], Callable[[], object]]
"""Prepares a call within a transaction that is rolled back, and returns the function to time."""

STATEMENTS = {
    "activate an adapter": f"SELECT loracomp.activate_adapter('{STAGED}', force => true)",
    "retire an adapter": "SELECT loracomp.retire_adapter('t7')",
    "find an adapter by name": "SELECT loracomp.find_adapter('t7')",
    "delete an adapter": f"SELECT * FROM loracomp.delete_adapter('{STAGED}')",
    "list adapters": QUERIES["list_adapters"],
    "list tasks": QUERIES["list_tasks"],
    "list readable tasks": "SELECT * FROM loracomp.readable_tasks()",
    "list measurements of a task": "SELECT * FROM loracomp.list_measurements('t7')",
    "delete a task": "SELECT * FROM loracomp.delete_task('t7', force => true)",
    "plan the measuring of a task": "SELECT * FROM loracomp.measure_task('t7')",
    "show or set a policy": "SELECT loracomp.set_policy('default', '{\"k\": 30}')",
    "find a worker's models": "SELECT (SELECT count(*) FROM loracomp.show_encoder()), loracomp.find_base_model(NULL)",
    "purge answered jobs": "SELECT loracomp.purge_jobs('0', force => true)",
    "doctor's checks": QUERIES["check_health"],
    "metrics of the database": QUERIES["database_metrics"],
    "demand for workers": "SELECT * FROM loracomp.worker_demand()",
    "refresh reports": "SELECT * FROM loracomp.refresh_reports()",
}
"""Calls that the schema's owner makes."""
INSERTS = {
    "insert a job": "INSERT INTO loracomp.job (prompt) VALUES ('x')",
    "insert a job that excludes tasks": "INSERT INTO loracomp.job (prompt, exclude_tasks) VALUES ('x', '{t3,t4}')",
    "insert a job that names its tasks": "INSERT INTO loracomp.job (prompt, tasks) VALUES ('x', '{t3,t4}')",
    "refuse a job with an unknown task": "INSERT INTO loracomp.job (prompt, tasks) VALUES ('x', '{T3}')",
}
"""Calls that a submitter who may use all tasks makes."""
ALL, SOME = (READERS[share][0] for share in ("all", "1 %"))
VIEWS = "SELECT viewname AS name FROM pg_views WHERE schemaname = 'bi' ORDER BY viewname"
CHARTS = {
    "composed_adapter": "day, task",
    "prediction": "day, policy",
    "retrieved_example": "day, task",
}
"""Fact views, each with the columns of a typical chart, which counts its rows by them. The chart is timed, because
nobody reads the rows one by one."""


def calls(filled: Filled) -> dict[str, Call]:
    """Return the calls that are timed, by the purpose of each call."""
    some = [f"t{number}" for number in range(BATCH)]
    return {
        **{name: partial(execute, statement) for name, statement in STATEMENTS.items()},
        **{name: partial(insert, statement) for name, statement in INSERTS.items()},
        f"claim {BATCH} jobs": claim,
        "route 1 job": partial(route, filled, 1),
        f"route {BATCH} jobs": partial(route, filled, BATCH),
        f"route {BATCH} jobs of a login with 1 % of the tasks": partial(route, filled, BATCH, submitter=SOME),
        f"route {BATCH} jobs that each exclude another task": partial(route, filled, BATCH, excluded=some),
        f"route {BATCH} jobs that each name another task": partial(route, filled, BATCH, named=some),
        f"route {BATCH} jobs by measurements": partial(route, filled, BATCH, policy="measured"),
        f"read {BATCH} adapters": read_adapters,
    }


def took(connection: db.Connection, call: Call, repeats: int) -> float:
    """Return the median milliseconds of a call, whose changes are rolled back."""
    spent = []
    for _ in range(repeats):
        with connection.transaction(force_rollback=True):
            spent.append(timed(call(connection)))
    return round(median(spent), 2)


def views(connection: db.Connection) -> dict[str, Call]:
    """Return a call for each view of bi, by the view's name, that reads the view, or a chart of it if it is a fact
    view. The reader is an analyst from whom all tasks are hidden."""

    def call(view: str, connection: db.Connection) -> Callable[[], object]:
        connection.execute("SET LOCAL ROLE loracomp_analyst")
        return partial(read, connection, question(view))

    return {f"bi.{row['name']}": partial(call, row["name"]) for row in connection.execute(VIEWS).fetchall()}


def question(view: str) -> str:
    if columns := CHARTS.get(view):
        return f"SELECT {columns}, count(*) FROM bi.{view} GROUP BY {columns}"
    return f"SELECT * FROM bi.{view}"


def read(connection: db.Connection, query: str) -> None:
    """Run a query by COPY, and drop its result."""
    with connection.cursor().copy(f"COPY ({query}) TO STDOUT".encode()) as copy:
        for _ in copy:
            pass


def execute(statement: str, connection: db.Connection) -> Callable[[], object]:
    return lambda: connection.execute(statement).fetchall()


def insert(statement: str, connection: db.Connection) -> Callable[[], object]:
    connection.execute("SELECT loracomp.set_queue_limits(1000000)")
    connection.execute(f"SET LOCAL ROLE {ALL}")

    def work() -> None:
        try:
            with connection.transaction():
                connection.execute(statement)
        except db.psycopg.errors.ForeignKeyViolation:
            assert "{T3}" in statement

    return work


def claim(connection: db.Connection) -> Callable[[], object]:
    add_jobs(connection, 10 * BATCH, submitted_by=ALL)
    return partial(claim_jobs, connection, worker="b", base_model=BASE_MODEL, batch_size=BATCH, lease_s=60)


def route(
    filled: Filled, jobs: int, connection: db.Connection, *, submitter: str = ALL, policy: str = "default",
    excluded: Sequence[str] = (), named: Sequence[str] = (),
) -> Callable[[], object]:  # fmt: skip
    ids = add_jobs(connection, jobs, policy, submitted_by=submitter)
    for column, tasks in {"exclude_tasks": excluded, "tasks": named}.items():
        for id_, task in zip(ids, tasks, strict=False):
            connection.execute(f"UPDATE loracomp.job SET {column} = %s WHERE id = %s", [[task], id_])
    return partial(route_jobs, connection, ids, filled.queries[:jobs])


def read_adapters(connection: db.Connection) -> Callable[[], object]:
    rows = connection.execute(
        "SELECT a.id FROM loracomp.adapter AS a WHERE a.status = 'active' ORDER BY a.sha256, a.id LIMIT %s", [BATCH]
    )
    return partial(fetch_adapters, connection, [row["id"] for row in rows])

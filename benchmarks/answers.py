"""What a declaration costs an application, and how soon a row is answered: `python -m benchmarks.answers URL [rows]`.

URL is an empty database of a server that may be used for this, as superuser. Plain and declared runs take turns.
"""

import sys
import threading
import time
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from job_data import add_base_model
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.connections import Connection
from worker_helpers import running

ROUNDS = 7
TABLE = "CREATE TABLE {} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, subject text, body text)"
DECLARE = "SELECT loracomp.create_answers('{0}_answer', '{0}', 'sleep {{body}}', max_new_tokens => 5)"


def rates(connection: Connection, rows: int) -> tuple[float, float]:
    """Rows a second that a table takes plainly, and with a declaration that nobody asks for meanwhile."""
    took: dict[str, list[float]] = {"plain": [], "declared": []}
    statement = "INSERT INTO {} (body) SELECT 'a body of some length ' || i FROM generate_series(1, %s) AS i"
    for _ in range(ROUNDS):
        for table, times in took.items():
            began = time.perf_counter()
            for _ in range(300 if rows == 1 else 10):
                connection.execute(statement.format(table).encode(), [rows])
            times.append(time.perf_counter() - began)
        connection.execute("DELETE FROM loracomp.answer_hint")
    done = rows * (300 if rows == 1 else 10)
    return done / median(took["plain"]), done / median(took["declared"])


def until(connection: Connection, statement: str, number: int) -> None:
    while connection.execute(statement.encode(), [number]).fetchone() is None:
        time.sleep(0.001)


def latencies(connection: Connection) -> tuple[float, float]:
    """Milliseconds to the answer of a submitted job, and to that of an inserted row, in turns on an idle worker."""
    ways = {
        "SELECT loracomp.submit_job('sleep 0') AS id":
            "SELECT FROM loracomp.job WHERE id = %s AND status = 'succeeded'",
        "INSERT INTO declared (body) VALUES ('0') RETURNING id":
            "SELECT FROM declared_answer WHERE id = %s AND answer <> ''",
    }  # fmt: skip
    times: dict[str, list[float]] = {begin: [] for begin in ways}
    for _ in range(60):
        for begin, ended in ways.items():
            began = time.perf_counter()
            (row,) = connection.execute(begin.encode()).fetchall()
            until(connection, ended, row["id"])
            times[begin].append(time.perf_counter() - began)
            time.sleep(0.05)
    submitted, inserted = (1000 * median(each) for each in times.values())
    return submitted, inserted


def backlog(connection: Connection, rows: int) -> tuple[int, float]:
    """Most jobs that waited at once while such a table was asked for 20 s, and milliseconds to a new row's answer."""
    connection.execute(TABLE.format("big").encode())
    connection.execute("INSERT INTO big (body) SELECT '0' FROM generate_series(1, %s)", [rows])
    connection.execute(DECLARE.format("big").encode())
    most, times, end = 0, [], time.perf_counter() + 20
    while time.perf_counter() < end:
        waiting = connection.execute("SELECT count(*) AS n FROM loracomp.job WHERE status = 'queued'").fetchone()
        assert waiting is not None
        most = max(most, waiting["n"])
        began = time.perf_counter()
        (row,) = connection.execute("INSERT INTO big (body) VALUES ('0') RETURNING id").fetchall()
        until(connection, "SELECT FROM big_answer WHERE id = %s AND answer <> ''", row["id"])
        times.append(time.perf_counter() - began)
    return most, 1000 * median(times)


def main(url: str, rows: int = 200_000) -> None:
    schema.initialize(url)
    with db.connect(url) as connection:
        add_base_model(connection)
        connection.execute(TABLE.format("plain").encode())
        connection.execute(TABLE.format("declared").encode())
        connection.execute(DECLARE.format("declared").encode())
        for each in (1, 1000):
            plain, declared = rates(connection, each)
            print(f"{each} rows a statement: {plain:.0f} rows/s, declared {declared:.0f}, {declared / plain:.2f}")
        connection.execute("TRUNCATE declared")
        connection.execute("VACUUM loracomp.answer_hint")
        with running(url, POLL_S=1) as worker:
            assert worker.stderr is not None
            threading.Thread(target=worker.stderr.read, daemon=True).start()  # or its log would fill the pipe
            submitted, inserted = latencies(connection)
            print(f"submit_job {submitted:.1f} ms, INSERT {inserted:.1f} ms, {inserted / submitted:.2f}")
            most, new = backlog(connection, rows)
            print(f"{rows} rows declared: at most {most} jobs waited; a new row was answered in {new:.1f} ms")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

"""Random corrections of a declared table under any policy, until they are measured and used for answering.

Without a model. Rows are corrected, changed, deleted and taken back while workers measure and answer. When nothing is
left to do, each corrected row has been asked again with the help of the others, and the figures of `list_answers` are
those of a plain count.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

from answers_data import work
from histories import known_and_right, percent
from job_data import BASE, add_base_model
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.worker.leases import what_waits
from rounds import Round
from routing_data import add_adapter
from town import Ground, connect, login

MOVES = 20
ROWS = 50
USED_FROM = 16
"""Number of measured corrections from which on they are used for answering."""
POLICIES = ("default", "measured", "measured", "own")
ANSWERS = ("urgent", "not urgent")
ADD = "INSERT INTO notes (id, body) SELECT i, 'row ' || i FROM generate_series(%s::int, %s::int) AS i"
DECLARE = (
    "SELECT loracomp.create_answers('urgency', 'notes', 'Note: {body}', choices => %s, policy => %s, backfill => %s)"
)
MEASURED = """
SELECT count(*) AS n FROM loracomp.measurement AS m JOIN loracomp.task AS t ON t.id = m.task_id
WHERE t.name LIKE 'answers/%'
"""
CORRECTED = """
SELECT key, answer, answered_by, first_answer, correct, draw_number IS NOT NULL AS drawn
FROM loracomp.answer_row WHERE correct IS NOT NULL
"""


@dataclass
class Corrections:
    """A declaration whose rows people correct."""

    owner: Connection
    alice: Connection
    draw: random.Random
    rows: int = 0
    done: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        self.owner.execute("SELECT loracomp.add_task('tea')")
        add_adapter(self.owner, "tea", base_model=BASE)
        self.owner.execute("SELECT loracomp.set_policy('own', '{\"choice_normalization\": \"characters\"}')")
        self.alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, body text)")
        self.add()
        about = [list(ANSWERS), self.draw.choice(POLICIES), self.draw.random() < 0.5]
        self.alice.execute(DECLARE, about)
        self.done.append(f"declared with {about}")

    def add(self) -> None:
        more = self.draw.randint(1, ROWS)
        self.alice.execute(ADD, [self.rows + 1, self.rows + more])
        self.rows += more
        self.done.append(f"{more} rows are added")

    def some(self) -> list[int]:
        return self.draw.sample(range(1, self.rows + 1), self.draw.randint(1, self.rows))

    def correct(self) -> None:
        """Correct answered rows: some that are drawn, or some that somebody happens to look at."""
        label = "CASE WHEN id % 3 = 0 THEN 'urgent' ELSE 'not urgent' END"
        ids = self.some()
        if self.draw.random() < 0.7:
            n = self.draw.choice((1, 5, 20, 50))
            found = self.alice.execute("SELECT key FROM loracomp.rows_to_correct('urgency', %s)", [n])
            ids = [int(row["key"][0]) for row in found]
        update = f"UPDATE urgency SET correct = {label.replace('%', '%%')} WHERE id = ANY (%s) AND status = 'answered'"
        self.alice.execute(update.encode(), [ids])
        self.done.append(f"{len(ids)} rows are corrected")

    def take_back(self) -> None:
        self.alice.execute("UPDATE urgency SET correct = NULL WHERE id = ANY (%s)", [self.some()[:3]])

    def change(self) -> None:
        self.alice.execute("UPDATE notes SET body = body || ' more' WHERE id = ANY (%s)", [self.some()[:5]])
        self.done.append("some rows change")

    def delete(self) -> None:
        self.alice.execute("DELETE FROM notes WHERE id = ANY (%s)", [self.some()[:3]])
        self.done.append("some rows go")

    def alter(self) -> None:
        policy = self.draw.choice(POLICIES)
        self.alice.execute("SELECT loracomp.alter_answers('urgency', policy => %s)", [policy])
        self.done.append(f"the policy becomes {policy}")

    def finish(self) -> None:
        work(self.owner, self.draw.choice(ANSWERS))
        self.done.append("workers finish")
        assert not any(what_waits(self.owner, BASE)), "workers find nothing to do, and rows wait"
        (measured,) = self.owner.execute(MEASURED.encode())
        rows = self.owner.execute(CORRECTED).fetchall()
        self.counts["corrections"] += len(rows)
        if measured["n"] >= USED_FROM:
            self.counts["used"] += 1
            left = [row for row in rows if row["answered_by"] != "corrections"]
            assert not left, (
                f"{measured['n']} corrections are measured, and {len(left)} rows not asked again: {left[0]}"
            )
        (told,) = self.alice.execute("SELECT corrected, before, after FROM loracomp.list_answers()")
        assert told["corrected"] == len(rows), told
        drawn = [row for row in rows if row["drawn"]]
        before = [row["first_answer"] == row["correct"] for row in drawn if row["first_answer"] is not None]
        after = [row["answer"] == row["correct"] for row in drawn if row["answered_by"] == "corrections"]
        for name, right in (("before", before), ("after", after)):
            known, share = known_and_right(told[name])
            is_so = known == len(right) and (share is None or share == percent(sum(right), known))
            assert is_so, f"{name} says {told[name]!r}, and {sum(right)} of {len(right)} rows were right"


def moves_of(corrections: Corrections) -> list[Callable[[], None]]:
    c = corrections
    return [c.add, c.correct, c.correct, c.correct, c.take_back, c.change, c.delete, c.alter, c.finish, c.finish]


def corrections(ground: Ground, seed: int, size: float = 1) -> Round:
    """One declaration. Its log is what a failure is told with."""
    made, draw = Round(), random.Random(seed)
    with ground.empty() as url, db.connect(url) as owner, connect(url, "alice") as alice:
        add_base_model(owner)
        owner.execute("SET statement_timeout = '20s'")
        owner.execute(f"GRANT CREATE ON SCHEMA public TO {login('alice')}".encode())
        history = Corrections(owner, alice, draw)
        try:
            history.begin()
            moves = moves_of(history)
            for _ in range(round(size * MOVES)):
                draw.choice(moves)()
            history.finish()
        except (AssertionError, psycopg.Error) as error:
            made.failures += [f"{type(error).__name__}: {error}", *history.done[-30:]]
    made.counts.update(history.counts)
    made.counts.update(declarations=1, rounds=1)
    return made

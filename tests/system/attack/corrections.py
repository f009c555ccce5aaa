"""Random corrections of a declared table under any policy, until they are measured and used for answering.

Without a model. Three people correct, draw, change, delete and erase the same rows and take corrections back, each in
transactions of any isolation level (the administrator's are READ COMMITTED), which stay open while the others and
workers go on. Some rows have the same text. When nothing is left to do, each row has the correction that was committed
last, each corrected row has been asked again with the help of the others, there are examples of these rows only, and
the figures of `list_answers` are those of a plain count.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import errors

from answers_data import EMBED, UNEMBEDDED, adapter, answered, work
from histories import known_and_right, percent
from job_data import BASE, add_base_model, claim, keep, record
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.engine.measuring import Measurement, record_measurements
from loracomp.worker.leases import what_waits
from rounds import Round
from routing_data import add_adapter
from town import Ground, connect, login

MOVES = 50
ROWS = 50
CONTESTED = 4
"""So many rows are written more often than the others."""
USED_FROM = 16
"""Number of measured corrections from which on they are used for answering."""
POLICIES = ("default", "measured", "measured", "own")
ANSWERS = ("urgent", "not urgent")
ADD = """
INSERT INTO notes (id, body)
SELECT i, 'row ' || CASE WHEN i % 3 = 0 THEN i % 5 ELSE i END FROM generate_series(%s::int, %s::int) AS i
"""
"""A third of the rows have the same five texts."""
DECLARE = (
    "SELECT loracomp.create_answers('urgency', 'notes', 'Note: {body}', choices => %s, policy => %s, backfill => %s)"
)
MEASURED = """
SELECT count(*) AS n FROM loracomp.measurement AS m JOIN loracomp.task AS t ON t.id = m.task_id
WHERE t.name LIKE 'answers/%'
"""
CORRECTED = """
SELECT key, answer, answered_by, first_answer, correct, draw_number IS NOT NULL AS drawn, job_id
FROM loracomp.answer_row WHERE correct IS NOT NULL
"""
ASKED = """
SELECT count(*) AS n FROM loracomp.answer_row
WHERE key[1]::integer = ANY (%s) AND (job_id IS NOT NULL OR status IN ('refused', 'skipped'))
"""
KNOWN = "SELECT key[1]::int AS id, correct, job_id, status FROM loracomp.answer_row ORDER BY 1"
DRAWN = "SELECT draw_number FROM loracomp.answer_row WHERE draw_number IS NOT NULL GROUP BY 1 HAVING count(*) > 1"
UNEVEN = """
SELECT format('row %s has correction %L, and its example %L of %L', n.id, r.correct, e.label, e.prompt) AS what
FROM notes AS n JOIN loracomp.answer_row AS r ON r.key = ARRAY[n.id::text]
LEFT JOIN loracomp.example AS e ON e.id = r.example_id
WHERE (r.correct, 'Note: ' || n.body) IS DISTINCT FROM (e.label, coalesce(e.prompt, 'Note: ' || n.body))
UNION ALL
SELECT format('no row has example %s, %L', e.id, e.prompt)
FROM loracomp.example AS e JOIN loracomp.task AS t ON t.id = e.task_id
WHERE t.name LIKE 'answers/%' AND NOT EXISTS (SELECT FROM loracomp.answer_row AS r WHERE r.example_id = e.id)
UNION ALL
SELECT format('job %s measures an example that is gone', j.id) FROM loracomp.job AS j
WHERE j.kind = 'measure' AND NOT EXISTS (SELECT FROM loracomp.example AS e WHERE e.id = j.example_id)
"""
ISOLATION = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
REFUSED = (errors.SerializationFailure, errors.DeadlockDetected, errors.NoDataFound)
"""What may become of a statement while others write the same rows."""
WAITS_S = 0.1
"""After this time a statement seems to wait for somebody else's transaction."""
ALL_S = 20
"""Nobody waits longer once all others' transactions have ended."""


@dataclass
class Note:
    """A row's new correction, as long as it is not committed."""

    row: int
    text: str | None
    at: int
    """When the row was read for it."""
    seen: tuple[str | None] | None = None
    """The earlier correction that must have been there; None: any."""


@dataclass
class Person:
    name: str
    connection: Connection
    isolation: str | None = None
    """Of the transaction that is open, if any."""
    began: int = 0
    notes: list[Note] = field(default_factory=list)
    changed: set[int] = field(default_factory=set)
    """Rows whose text is another, or that are gone, once the transaction is committed."""


@dataclass
class Corrections:
    """A declaration whose rows people correct."""

    owner: Connection
    people: list[Person]
    writer: Connection
    """Alice's too; it never has a transaction open."""
    pool: ThreadPoolExecutor
    draw: random.Random
    rows: int = 0
    clock: int = 0
    kept: dict[int, str | None] = field(default_factory=dict)
    """The correction of each row, as far as it is known."""
    changed_at: dict[int, int] = field(default_factory=dict)
    is_paused: bool = False
    is_altering: bool = False
    done: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        self.owner.execute("SELECT loracomp.add_task('tea')")
        add_adapter(self.owner, "tea", base_model=BASE)
        self.owner.execute("SELECT loracomp.set_policy('own', '{\"choice_normalization\": \"characters\"}')")
        self.alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, body text, more text)")
        self.add()
        about = [list(ANSWERS), self.draw.choice(POLICIES), self.draw.random() < 0.5]
        self.alice.execute(DECLARE, about)
        self.done.append(f"declared with {about}")

    @property
    def alice(self) -> Connection:
        return self.people[0].connection

    # --- people

    def add(self) -> None:
        self.end_all()
        more = self.draw.randint(1, ROWS)
        self.alice.execute(ADD.replace("% ", "%% ").encode(), [self.rows + 1, self.rows + more])
        self.rows += more
        self.done.append(f"{more} rows are added")

    def add_amid(self) -> None:
        """Whatever others have left open, new rows get jobs."""
        ids = [*range(self.rows + 1, self.rows + self.draw.randint(1, 3) + 1)]
        self.writer.execute(ADD.replace("% ", "%% ").encode(), [ids[0], ids[-1]])
        self.rows = ids[-1]
        self.done.append(f"rows {ids} are added, and {[each.name for each in self.people if each.isolation]} go on")
        deadline = time.monotonic() + ALL_S
        while not self.is_paused:
            keep(self.owner)
            (asked,) = self.owner.execute(ASKED, [ids])
            if asked["n"] == len(ids):
                break
            assert time.monotonic() < deadline, f"only {asked['n']} of {len(ids)} new rows have jobs after {ALL_S} s"
            time.sleep(0.1)

    def some(self, most: int = ROWS) -> list[int]:
        among = min(self.rows, self.draw.choice((CONTESTED, self.rows)))
        return self.draw.sample(range(1, among + 1), self.draw.randint(1, min(most, among)))

    def label(self) -> str:
        return self.draw.choice(ANSWERS)

    def act(self) -> None:
        """Somebody goes on, in a transaction that is open, in a new one, or without one."""
        person = self.draw.choice(self.people)
        if person.isolation and self.draw.random() < 0.2:
            self.end(person)
            return
        if not person.isolation and self.draw.random() < 0.5:
            self.begin_transaction(person)
        seldom = [self.take_back, self.pick, self.change, self.delete, self.erase]
        moves = [*[self.correct] * 4, *[self.correct_row] * 4, *seldom]
        (self.correct_row if person.name == "adam" else self.draw.choice(moves))(person)

    def begin_transaction(self, person: Person) -> None:
        # An administrator's transaction of another level may not have the rows read.
        levels = ISOLATION[:1] if person.name == "adam" else ISOLATION
        person.isolation, person.began = self.draw.choice(levels), self.clock
        person.connection.execute(f"BEGIN ISOLATION LEVEL {person.isolation}".encode())
        person.connection.execute("SELECT FROM loracomp.list_answers()")  # which takes the snapshot
        self.done.append(f"{person.name} begins, {person.isolation}")

    def send(self, person: Person, statement: str, *values: Any) -> list[Any] | None:
        """The rows that a statement returns; None if it was refused. Whoever it waits for must end first."""
        self.clock += 1
        self.done.append(f"{self.clock}: {person.name} sends {statement} {[*values]!r}"[:300])

        def sent() -> list[Any]:
            cursor = person.connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

        future = self.pool.submit(sent)
        others = [each for each in self.people if each.isolation and each is not person]
        self.draw.shuffle(others)
        while others and not wait([future], WAITS_S).done:
            self.done.append(f"{person.name} waits")
            self.end(others.pop())
        try:
            return future.result(ALL_S)
        except REFUSED as error:
            if self.is_altering and isinstance(error, errors.DeadlockDetected):
                raise AssertionError(f"whoever changes the prompt and {person.name} wait for each other") from error
            self.done.append(f"{person.name} is refused: {error}"[:200])
            self.end(person, "ROLLBACK")
            return None

    def sent(self, person: Person) -> None:
        """What a statement wrote is committed at once if no transaction is open."""
        if not person.isolation:
            self.commit(person)

    def end(self, person: Person, how: str = "") -> None:
        if person.isolation:
            how = how or self.draw.choice(("COMMIT", "COMMIT", "ROLLBACK"))
            try:
                person.connection.execute(how.encode())
            except errors.SerializationFailure:
                how = "ROLLBACK"
            self.done.append(f"{person.name}: {how}")
        if how == "COMMIT":
            self.commit(person)
        person.isolation, person.notes, person.changed = None, [], set()

    def end_all(self) -> None:
        for person in self.people:
            self.end(person)

    def commit(self, person: Person) -> None:
        self.clock += 1
        for note in person.notes:
            if note.seen and note.row in self.kept:
                was = self.kept[note.row]
                assert (was,) == note.seen, f"{person.name} saw {note.seen[0]!r}, and has overwritten {was!r}: {note}"
            self.kept[note.row] = note.text
            # It belongs to the text that was there when it was made.
            if self.changed_at.get(note.row, -1) > note.at or note.row in person.changed:
                del self.kept[note.row]
        for row in person.changed:
            self.kept.pop(row, None)
            self.changed_at[row] = self.clock
        person.notes, person.changed = [], set()

    def read_at(self, person: Person) -> int:
        return person.began if person.isolation not in (None, ISOLATION[0]) else self.clock

    def correct(self, person: Person) -> None:
        """Correct answered rows: some that are drawn, or some that somebody happens to look at."""
        ids, text = self.some(self.draw.choice((3, ROWS))), self.label()
        if self.draw.random() < 0.4 and (found := self.draw_rows(person)):
            ids = found
        update = "UPDATE urgency SET correct = %s WHERE id = ANY (%s) AND status = 'answered' RETURNING id"
        at = self.read_at(person)
        if (rows := self.send(person, update, text, ids)) is not None:
            person.notes += [Note(row["id"], text, at) for row in rows]
            self.sent(person)

    def draw_rows(self, person: Person) -> list[int]:
        rows = self.send(
            person, "SELECT key FROM loracomp.rows_to_correct('urgency', %s)", self.draw.choice((1, 2, 5, 10, 50))
        )
        return [int(row["key"][0]) for row in rows or ()]

    def pick(self, person: Person) -> None:
        self.draw_rows(person)

    def pick_at_once(self) -> None:
        """Two people draw rows, and neither may see what the other has drawn."""
        self.end_all()
        for person in self.people[:2]:
            self.begin_transaction(person)
        for person in self.people[:2]:
            self.draw_rows(person)
            if self.draw.random() < 0.5:
                self.end(person)

    def take_back(self, person: Person) -> None:
        at = self.read_at(person)
        update = "UPDATE urgency SET correct = NULL WHERE id = ANY (%s) RETURNING id"
        if (rows := self.send(person, update, self.some(3))) is not None:
            person.notes += [Note(row["id"], None, at) for row in rows]
            self.sent(person)

    def correct_row(self, person: Person) -> None:
        """By its key, whether or not it has a job: mostly as it is, and sometimes as it was."""
        known = self.owner.execute(KNOWN).fetchall()
        if not known:
            return
        held = {note.row for each in self.people if each is not person for note in each.notes}
        contested = [row for row in known if row["id"] in held]
        among = contested if contested and self.draw.random() < 0.7 else known
        row, at = self.draw.choice(among), self.read_at(person)
        seen = row["correct"] if self.draw.random() < 0.8 else self.draw.choice((None, *ANSWERS))
        text, job = self.draw.choice((None, *ANSWERS)), self.draw.choice((None, row["job_id"]))
        call = "SELECT loracomp.correct_row('urgency', ARRAY[%s], %s, %s, %s)"
        if self.send(person, call, str(row["id"]), text, seen, job) is not None:
            person.notes.append(Note(row["id"], text, at, (seen,)))
            self.sent(person)

    def undo(self) -> None:
        """While nobody else writes, every correction can be taken back, even if its row has no job any more."""
        self.end_all()
        corrected = [row for row in self.owner.execute(KNOWN).fetchall() if row["correct"] is not None]
        if corrected:
            row, person = self.draw.choice(corrected), self.draw.choice(self.people)
            self.done.append(f"{person.name} takes the correction of row {row['id']} back")
            undo = "SELECT loracomp.correct_row('urgency', ARRAY[%s], NULL, %s)"
            person.connection.execute(undo, [str(row["id"]), row["correct"]])
            self.kept[row["id"]] = None

    def change(self, person: Person) -> None:
        rows = self.send(
            person, "UPDATE notes SET body = body || ' more' WHERE id = ANY (%s) RETURNING id", self.some(5)
        )
        person.changed |= {row["id"] for row in rows or ()}
        self.sent(person)

    def delete(self, person: Person) -> None:
        rows = self.send(person, "DELETE FROM notes WHERE id = ANY (%s) RETURNING id", self.some(3))
        person.changed |= {row["id"] for row in rows or ()}
        self.sent(person)

    def erase(self, person: Person) -> None:
        jobs = [row["job_id"] for row in self.owner.execute(KNOWN) if row["job_id"] and row["status"] != "waiting"]
        if jobs and not person.isolation:
            self.send(person, "SELECT loracomp.erase_jobs(%s::bigint[])", self.draw.sample(jobs, min(2, len(jobs))))

    def alter(self) -> None:
        self.end_all()
        policy = self.draw.choice(POLICIES)
        self.alice.execute("SELECT loracomp.alter_answers('urgency', policy => %s)", [policy])
        self.done.append(f"the policy becomes {policy}")

    def alter_amid(self) -> None:
        """The prompt names another column, and somebody who has written goes on; neither is refused."""
        person = self.draw.choice(self.people)
        if not person.isolation:
            self.begin_transaction(person)
        moves = [self.correct, self.change, self.delete, self.correct_row, self.pick]
        moves = [self.correct_row] if person.name == "adam" else moves
        self.draw.choice(moves)(person)
        if not person.isolation:
            return
        for other in self.people:  # their writes wait in the queue of the table's lock
            if other is not person:
                self.end(other)
        prompt = self.draw.choice(("Note: {body}", "Note: {body}{more}", "Note: {more}{body}"))
        self.is_altering = True
        altered = self.pool.submit(
            self.writer.execute, "SELECT loracomp.alter_answers('urgency', prompt => %s)", [prompt]
        )
        wait([altered], WAITS_S)
        self.done.append(f"the prompt becomes {prompt!r} while {person.name} goes on")
        for _ in range(self.draw.randint(0, 2)):
            if person.isolation and not altered.done():
                self.draw.choice(moves)(person)
        self.end(person)
        altered.result(ALL_S)
        self.is_altering = False

    def pause(self) -> None:
        self.end_all()
        self.is_paused = not self.is_paused
        self.alice.execute("SELECT loracomp.alter_answers('urgency', paused => %s)", [self.is_paused])
        self.done.append(f"paused: {self.is_paused}")

    # --- workers

    def labour(self) -> None:
        """The keeper and a worker do something, whoever has a transaction open."""
        (unembedded,) = self.owner.execute(UNEMBEDDED)
        if ids := unembedded["ids"]:
            self.owner.execute(EMBED, {"ids": ids, "n": len(ids)})
        keep(self.owner)
        jobs = claim(self.owner, self.draw.choice((4, 100)))
        self.done.append(f"a worker claims {len(jobs)} jobs")
        measured = [job for job in jobs if job.kind == "measure"]
        of = adapter(self.owner)
        record_measurements(
            self.owner, measured,
            [Measurement(job.id, "tokens", -1.0, True, (of,), (0.5,), (True,)) for job in measured],
        )  # fmt: skip
        asked = [job for job in jobs if job.kind == "predict"]
        rows = [answered(self.owner, job.id, self.label()) for job in asked]
        record(self.owner, {job.id: job.lease_token for job in asked}, rows)
        self.owner.execute(  # what it could not record is given back
            "SELECT loracomp.release_jobs(r.ids, r.tokens)"
            " FROM (SELECT array_agg(id) AS ids, array_agg(lease_token) AS tokens"
            " FROM loracomp.job WHERE status = 'running') AS r WHERE ids <> '{}'"
        )

    def finish(self) -> None:
        self.end_all()
        for _ in range(1 + self.is_paused):
            self.done.append("workers finish")
            deadline = time.monotonic() + ALL_S
            while True:  # the keeper rests a second from a declaration whose rows were locked
                work(self.owner, self.label())
                if not any(what_waits(self.owner, BASE)):
                    break
                assert time.monotonic() < deadline, "workers find nothing to do, and rows wait"
                time.sleep(0.2)
            if self.is_paused:
                self.pause()
        (measured,) = self.owner.execute(MEASURED.encode())
        rows = self.owner.execute(CORRECTED).fetchall()
        self.counts["corrections"] += len(rows)
        if measured["n"] >= USED_FROM:
            self.counts["used"] += 1
            left = [row for row in rows if row["job_id"] and row["answered_by"] != "corrections"]
            assert not left, (
                f"{measured['n']} corrections are measured, and {len(left)} rows not asked again: {left[0]}"
            )
        (told,) = self.alice.execute("SELECT corrected, before, after FROM loracomp.list_answers()")
        assert told["corrected"] == len(rows), told
        self.check_rows()
        drawn = [row for row in rows if row["drawn"]]
        before = [row["first_answer"] == row["correct"] for row in drawn if row["first_answer"] is not None]
        after = [row["answer"] == row["correct"] for row in drawn if row["answered_by"] == "corrections"]
        for name, right in (("before", before), ("after", after)):
            known, share = known_and_right(told[name])
            is_so = known == len(right) and (share is None or share == percent(sum(right), known))
            assert is_so, f"{name} says {told[name]!r}, and {sum(right)} of {len(right)} rows were right"

    def check_rows(self) -> None:
        """No correction is lost, and none has come from anywhere; no example is without its rows."""
        found = {row["id"]: row["correct"] for row in self.owner.execute(KNOWN)}
        other = {row: (text, found.get(row)) for row, text in self.kept.items() if found.get(row) != text}
        assert not other, f"committed and kept corrections: {other}"
        uneven = [row["what"] for row in self.owner.execute(UNEVEN.encode())]
        assert not uneven, f"rows and examples: {uneven[:5]}"
        twice = self.owner.execute(DRAWN).fetchall()
        assert not twice, f"numbers that two rows were drawn with: {twice}"
        self.kept = found  # from now on all are known


def moves_of(corrections: Corrections) -> list[Callable[[], None]]:
    c = corrections
    return [
        *[c.act] * 12,
        c.labour,
        c.labour,
        c.labour,
        c.pick_at_once,
        c.undo,
        c.add,
        c.add_amid,
        c.alter,
        c.alter_amid,
        c.pause,
        c.finish,
    ]


def corrections(ground: Ground, seed: int, size: float = 1) -> Round:
    """One declaration. Its log is what a failure is told with."""
    made, draw = Round(), random.Random(seed)
    with ground.empty() as url, db.connect(url) as owner, ThreadPoolExecutor(2) as pool:
        add_base_model(owner)
        owner.execute("SET statement_timeout = '20s'")
        owner.execute(f"GRANT CREATE ON SCHEMA public TO {login('alice')}".encode())
        people = [Person(name, connect(url, name)) for name in ("alice", "alice", "adam")]
        history = Corrections(owner, people, connect(url, "alice"), pool, draw)
        try:
            history.begin()
            moves = moves_of(history)
            for _ in range(round(size * MOVES)):
                draw.choice(moves)()
            history.finish()
        except (AssertionError, psycopg.Error) as error:
            made.failures += [f"{type(error).__name__}: {error}", *history.done[-30:]]
        finally:
            for connection in (history.writer, *(person.connection for person in people)):
                connection.close()
    made.counts.update(history.counts)
    made.counts.update(declarations=1, rounds=1)
    return made

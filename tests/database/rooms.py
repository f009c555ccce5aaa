"""The rooms of SQL: which functions, views, triggers and tables know which, as a database's catalog has it.

A room is a folder of sql/, with the tables that some modules of loracomp.database.tables describe. A room may know
those before it in ROOMS. A table "knows" the functions of its triggers, because a write calls them.

This counts the arrows that lead back, the functions behind a claim and behind a change of a job, and the files on the
way of a job to its answer:

    LORACOMP_DATABASE_URL=postgresql://... .venv/bin/python tests/database/rooms.py
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import Sequence, Table

import loracomp.database.tables
from loracomp.config import load_settings
from loracomp.database import embedded

ROOMS: dict[str, tuple[str, ...]] = {
    "10_values": ("installed", "audit"),
    "20_registry": ("registry", "policies", "measurements"),
    "30_queue": ("jobs", "queue", "workers", "predictions"),
    "40_routing": (),
    "50_measurement": (),
    "60_declarations": ("declarations",),
    "70_people": (),
    "80_bi": ("reports",),
    "85_administration": (),
    "90_grants": (),
}
"""Rooms in their order, with the modules of their tables."""

FILES = "SELECT path, unnest(drops) FROM loracomp.sql_object"
MADE = re.compile(r"DROP (?:FUNCTION|VIEW|MATERIALIZED VIEW|TRIGGER) IF EXISTS (\w+ ON [\w.]+|[\w.]+)")

# What the catalog knows: names in parsed bodies and in views, and types of arguments.
DEPENDENCIES = """
WITH ours AS (
    SELECT 'pg_proc'::regclass AS class, oid, format('%s.%s', pronamespace::regnamespace, proname) AS name FROM pg_proc
    WHERE pronamespace::regnamespace::text IN ('loracomp', 'bi')
    UNION ALL
    SELECT unnest(ARRAY['pg_class'::regclass, 'pg_rewrite', 'pg_type']), unnest(ARRAY[c.oid, w.oid, c.reltype]),
        format('%s.%s', c.relnamespace::regnamespace, c.relname)
    FROM pg_class AS c LEFT JOIN pg_rewrite AS w ON w.ev_class = c.oid
    WHERE c.relnamespace::regnamespace::text IN ('loracomp', 'bi') AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
)
SELECT a.name, b.name FROM pg_depend AS d
JOIN ours AS a ON a.class = d.classid AND a.oid = d.objid
JOIN ours AS b ON b.class = d.refclassid AND b.oid = d.refobjid
"""
# What it doesn't know: bodies that are texts.
BODIES = """
SELECT format('%s.%s', pronamespace::regnamespace, proname), prosrc FROM pg_proc
WHERE pronamespace::regnamespace::text IN ('loracomp', 'bi') AND prosqlbody IS NULL
"""
NAME = re.compile(r"\b(?:loracomp|bi)\.\w+")
COMMENT = re.compile(r"--[^\n]*")
TEXT = re.compile(r"'(?:[^']|'')*'")
RAISE = re.compile(rf"RAISE(?:[^;']|{TEXT.pattern})*;")

INSERT_OR_UPDATE = 4 | 16
"""Bits of pg_trigger.tgtype that say what a trigger fires on."""
TRIGGERS = """
SELECT t.tgname, c.oid::regclass::text, format('%s.%s', p.pronamespace::regnamespace, p.proname), t.tgtype
FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE c.relnamespace::regnamespace::text IN ('loracomp', 'bi') AND NOT t.tgisinternal
"""

WAY = ("loracomp.claim_jobs", "loracomp.route_jobs", "loracomp.record_predictions")
"""The calls of a worker for a job that an INSERT has queued."""


@dataclass
class House:
    """The objects of a database's schema by name, and what each of them knows."""

    rooms: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    known: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    fired: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    """Functions of a table's triggers, with the events that fire them."""

    def arrows(self) -> Iterator[tuple[str, str]]:
        """Pairs of an object and one that it knows."""
        for knowing in (self.known, self.fired):
            for name, others in knowing.items():
                for other in others:
                    yield name, other

    def back_arrows(self) -> list[str]:
        """A sentence for each reference to a later room."""
        places = {room: place for place, room in enumerate(ROOMS)}
        found = {
            f"{self.rooms[name]} -> {self.rooms[other]}: {name} -> {other}"
            for name, other in self.arrows()
            if places[self.rooms[name]] < places[self.rooms[other]]
        }
        return sorted(found)

    def behind(self, names: Iterable[str]) -> set[str]:
        """These functions and views, and all others that they use directly or indirectly."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.known[name]
        return found & self.files.keys()

    def way(self) -> set[str]:
        """Files of sql/ on the way of a job from its INSERT to its answer."""
        written = ("loracomp.job", "loracomp.prediction")
        fired = [name for table in written for name, events in self.fired[table].items() if events & INSERT_OR_UPDATE]
        return {self.files[name] for name in self.behind([*WAY, *fired])}


def read(connection: psycopg.Connection[Any]) -> House:
    """Read the catalog of a database that has this release's schema."""
    house = House()
    for path, statement in connection.execute(FILES):
        if made := MADE.match(statement):
            house.files[made[1]] = path
            house.rooms[made[1]] = path.partition("/")[0]
    for room, modules in ROOMS.items():
        for module in modules:
            members = vars(sys.modules[f"{loracomp.database.tables.__name__}.{module}"]).values()
            house.rooms |= {
                each.fullname if isinstance(each, Table) else f"{each.schema}.{each.name}": room
                for each in members
                if isinstance(each, Table | Sequence)
            }
    _read_arrows(connection, house)
    return house


def _read_arrows(connection: psycopg.Connection[Any], house: House) -> None:
    found = list(connection.execute(DEPENDENCIES))
    for name, body in connection.execute(BODIES):
        found += ((name, other) for other in NAME.findall(without_words(body)))
    for name, other in found:
        if name != other and name in house.rooms and other in house.rooms:
            house.known[name].add(other)
    for trigger, table, function, events in connection.execute(TRIGGERS):
        if (name := f"{trigger} ON {table}") in house.rooms:
            house.known[name] |= {table, function}
        house.fired[table][function] = house.fired[table].get(function, 0) | events


def without_words(body: str) -> str:
    """A body without its comments and the sentences of its errors, as both may name functions that it doesn't call."""
    return RAISE.sub(lambda raised: TEXT.sub("", raised[0]), COMMENT.sub("", body))


def main() -> None:
    """Print the counts, with what they count."""
    with psycopg.connect(embedded.database_url(load_settings())) as connection:
        house = read(connection)
    for title, found in (
        ("arrows back", house.back_arrows()),
        ("functions behind claim_jobs", sorted(house.behind(["loracomp.claim_jobs"]) - {"loracomp.claim_jobs"})),
        ("functions behind triggers of job", sorted(house.behind(house.fired["loracomp.job"]))),
        ("files on a job's way", sorted(house.way())),
    ):
        print(f"{len(found)} {title}", *found, sep="\n    ")


if __name__ == "__main__":
    main()

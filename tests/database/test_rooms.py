"""The rooms of SQL have a direction, as those of Python have. `rooms.py` says which, and reads who knows whom."""

import re

import psycopg
import pytest

from rooms import BODIES, TEXT, read, without_words

WITHOUT_SCHEMA = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE|TABLE) +(\w+)\b(?! *[.(])|(?<![\w.$%])(\w+)\(")


def test_no_room_knows_a_later_one(database: str) -> None:
    with psycopg.connect(database) as connection:
        assert read(connection).back_arrows() == []


def test_bodies_write_the_schema_of_each_name(database: str) -> None:
    """Without it, no arrow to what they name would be seen."""
    with psycopg.connect(database) as connection:
        ours = {name.partition(".")[2] for name in read(connection).rooms if " ON " not in name}
        found = {
            (function, name)
            for function, body in connection.execute(BODIES)
            for names in WITHOUT_SCHEMA.findall(TEXT.sub("''", without_words(body)))
            for name in ours.intersection(names)
        }
    assert found == set()


@pytest.mark.parametrize(
    ("change", "arrow"),
    [
        (
            "CREATE OR REPLACE FUNCTION loracomp.oldest_worker() RETURNS text LANGUAGE plpgsql AS "
            "'BEGIN RETURN loracomp.explain_job(1); END'",
            "loracomp.oldest_worker -> loracomp.explain_job",
        ),
        (
            "CREATE OR REPLACE FUNCTION loracomp.oldest_worker() RETURNS text LANGUAGE sql "
            "BEGIN ATOMIC SELECT status FROM loracomp.job_result; END",
            "loracomp.oldest_worker -> loracomp.job_result",
        ),
        (
            "CREATE TRIGGER eager AFTER INSERT ON loracomp.job EXECUTE FUNCTION loracomp.audit_row();"
            "CREATE TRIGGER eager AFTER INSERT ON loracomp.task EXECUTE FUNCTION loracomp.hint_job()",
            "loracomp.task -> loracomp.hint_job",
        ),
    ],
)
def test_an_arrow_back_is_seen(database: str, change: str, arrow: str) -> None:
    with psycopg.connect(database) as connection:
        before = read(connection).back_arrows()
        connection.execute(change.encode())
        (found,) = set(read(connection).back_arrows()) - set(before)
    assert found.endswith(f": {arrow}")

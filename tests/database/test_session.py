"""What a role's or a database's settings may change of our sessions, and what not."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from loracomp.database import connections as db
from people_data import one
from people_fixtures import login

VALUES = "SELECT '2026-12-31 01:00:00+00'::timestamptz AS at, '1 day 02:00:03'::interval AS lasts"


@pytest.fixture(params=["ROLE", "DATABASE"])
def odd_url(request: pytest.FixtureRequest, database: str, connection: db.Connection, logins: None) -> Iterator[str]:
    """A database, or alice's login to it, whose sessions begin with settings under which psycopg can't read times."""
    names = {"ROLE": login("alice"), "DATABASE": one(connection, "SELECT current_database() AS name")["name"]}
    settings = {"DateStyle": "German, DMY", "IntervalStyle": "iso_8601", "TimeZone": "Pacific/Apia"}
    for setting, value in settings.items():
        connection.execute(f"ALTER {request.param} {names[request.param]} SET {setting} = '{value}'")
    yield database
    for setting in settings:
        connection.execute(f"ALTER {request.param} {names[request.param]} RESET {setting}")


@pytest.mark.parametrize("vectors", [True, False])
def test_times_are_read_under_any_style_and_in_the_users_time_zone(odd_url: str, vectors: bool) -> None:
    with db.connect(odd_url, vectors=vectors, instead={"user": login("alice")}) as session:
        row = session.execute(VALUES).fetchone()
    assert row is not None
    assert row["lasts"] == timedelta(days=1, hours=2, seconds=3)
    assert row["at"] == datetime.fromisoformat("2026-12-31 01:00+00:00")
    assert row["at"].tzinfo.key == "Pacific/Apia"

"""Correcting by hand: one row after another, nobody else's row, undone, and not twice by one form."""

import json
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from answers_data import ADD_TICKETS, TICKETS, URGENCY, as_alice, tidy, work
from hostile import HOSTILE
from job_data import BASE, add_base_model
from loracomp.database.connections import Connection
from pages_data import Tags, browser, fields, log_in
from people_fixtures import LOGINS, login, value, values
from routing_data import add_adapter

MARKUP = {"b", "img", "iframe", "svg", "style", "math", "template", "base"}
"""Tags that our pages don't have, and hostile texts do."""


def tags_of(shown: str) -> set[str]:
    return {tag for tag, *_ in Tags(shown).tags}


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    """She has declared urgency over forty tickets, and they are answered."""
    add_base_model(connection)
    connection.execute("SELECT loracomp.add_task('tea')")
    add_adapter(connection, "tea", base_model=BASE)
    with as_alice(database) as opened:
        opened.execute(TICKETS)
        opened.execute(URGENCY)
        opened.execute(ADD_TICKETS, [1, 40])
        work(connection)
        yield opened
    tidy(connection)


@pytest.fixture
def client(alice: Connection, database: str) -> TestClient:
    return visitor(database)


def visitor(url: str, name: str = "alice") -> TestClient:
    client = browser(url)
    assert log_in(client, name) == 303
    return client


def page(client: TestClient, path: str = "/correct/urgency") -> str:
    response = client.get(path)
    assert response.status_code == 200, response.text
    return response.text


def corrections(alice: Connection) -> dict[int, str]:
    return {
        row["id"]: row["correct"] for row in alice.execute("SELECT id, correct FROM urgency WHERE correct IS NOT NULL")
    }


def test_a_row_is_corrected_and_the_next_one_comes(client: TestClient, alice: Connection) -> None:
    form = fields(page(client))
    (key,) = json.loads(form["key"])
    assert f"Ticket: row {key} wrong" in page(client) and "16 to go until they are used" in page(client)
    response = client.post("/correct/urgency", data=form | {"choice": "1"})
    assert response.status_code == 303 and corrections(alice) == {int(key): "not urgent"}
    after = page(client, response.headers["location"])
    assert "15 to go until they are used" in after and f"<bdi>{key}</bdi>: <bdi>not urgent</bdi>" in after
    assert json.loads(fields(after)["key"]) != [key]


def test_a_correction_is_undone(client: TestClient, alice: Connection) -> None:
    form = fields(page(client))
    after = page(client, client.post("/correct/urgency", data=form | {"choice": "0"}).headers["location"])
    undo = fields(after.partition("Undo")[0])
    assert undo["key"] == form["key"] and undo["seen"] == "0"
    assert client.post("/correct/urgency", data=undo | {"choice": ""}).status_code == 303
    assert corrections(alice) == {}
    assert json.loads(fields(page(client))["key"]) == json.loads(form["key"])  # it comes again


@pytest.mark.parametrize("answered", [False, True])
def test_a_row_that_has_changed_is_not_corrected(
    client: TestClient, alice: Connection, connection: Connection, answered: bool
) -> None:
    form = fields(page(client)) | {"choice": "1"}
    (key,) = json.loads(form["key"])
    alice.execute("UPDATE tickets SET subject = 'another' WHERE id = %s", (int(key),))
    if answered:
        work(connection)
    assert client.post("/correct/urgency", data=form).status_code == 404
    assert corrections(alice) == {}


def test_a_form_works_once(client: TestClient, alice: Connection) -> None:
    form = fields(page(client)) | {"choice": "1"}
    assert client.post("/correct/urgency", data=form).status_code == 303
    assert client.post("/correct/urgency", data=form | {"choice": "0"}).status_code == 404  # replayed
    assert list(corrections(alice).values()) == ["not urgent"]


def test_a_form_is_for_one_row_one_session_and_these_choices(
    client: TestClient, alice: Connection, database: str
) -> None:
    form = fields(page(client)) | {"choice": "1"}
    forged = [
        form | {"key": '["39"]'} | ({"key": '["40"]'} if form["key"] == '["39"]' else {}),
        form | {"seen": "0"},
        form | {"token": fields(page(client))["token"][::-1]},
        {name: text for name, text in form.items() if name != "token"},
    ]
    assert [client.post("/correct/urgency", data=each).status_code for each in forged] == [403] * 4
    assert visitor(database).post("/correct/urgency", data=form).status_code == 403  # alice's, in another session
    alice.execute("SELECT loracomp.alter_answers('urgency', choices => '{no,yes}')")
    assert client.post("/correct/urgency", data=form).status_code == 403
    assert corrections(alice) == {}


@pytest.mark.parametrize(
    "odd", [{"choice": "2"}, {"choice": "-1"}, {"choice": "x"}, {"key": "{}"}, {"key": "["}, {"key": "[1]"}]
)
def test_odd_fields_are_refused(client: TestClient, alice: Connection, odd: dict[str, str]) -> None:
    assert client.post("/correct/urgency", data=fields(page(client)) | {"choice": "1"} | odd).status_code == 400
    assert corrections(alice) == {}


@pytest.mark.parametrize("name", sorted(LOGINS.keys() - {"alice", "adam", "wendy"}))
def test_only_the_owner_and_administrators_correct(
    alice: Connection, database: str, client: TestClient, name: str
) -> None:
    stranger = visitor(database, name)
    shown = [stranger.get(path) for path in ("/answers", "/answers/urgency", "/correct/urgency")]
    assert not any(
        "Ticket" in response.text or "urgent" in response.text.replace("/correct/urgency", "") for response in shown
    )
    assert shown[2].status_code in (403, 404)
    form = fields(page(client)) | {"choice": "1"}
    assert stranger.post("/correct/urgency", data=form).status_code in (403, 404)
    assert corrections(alice) == {}


def test_an_administrator_corrects_too_and_the_audit_says_so(
    alice: Connection, database: str, connection: Connection
) -> None:
    adam = visitor(database, "adam")
    assert adam.post("/correct/urgency", data=fields(page(adam)) | {"choice": "1"}).status_code == 303
    assert value(connection, "SELECT actor FROM loracomp.audit_event WHERE reason = 'corrected'") == login("adam")


def test_two_people_do_not_get_the_same_row(client: TestClient, alice: Connection, database: str) -> None:
    """Nor does one person in two browsers; a row that nobody corrected within ten minutes is free again."""
    people = [client, *(visitor(database) for _ in range(3)), visitor(database, "adam")]
    offered = [{fields(page(each, f"/correct/urgency?skip={skip}"))["key"] for skip in range(8)} for each in people]
    assert [len(keys) for keys in offered] == [8] * 5
    assert len(set().union(*offered)) == 40
    assert "no answered row left to correct, or others are correcting them now" in page(visitor(database))
    connection_of = alice.execute("SELECT count(*) AS n FROM loracomp.rows_to_correct('urgency', 16)").fetchone()
    assert connection_of == {"n": 0}


def test_what_was_offered_is_free_after_ten_minutes(client: TestClient, connection: Connection, database: str) -> None:
    first = fields(page(client))["key"]
    connection.execute("UPDATE loracomp.answer_offer SET offered_at = now() - interval '601 seconds'")
    again = {fields(page(visitor(database), f"/correct/urgency?skip={skip}"))["key"] for skip in range(1)}
    assert len(again) == 1
    taken = values(connection, "SELECT visitor FROM loracomp.answer_offer")
    assert len(taken) == 1 and first


def test_after_sixteen_the_page_says_what_they_brought(
    client: TestClient, alice: Connection, connection: Connection
) -> None:
    for _ in range(20):
        form = fields(page(client))
        right = "0" if int(json.loads(form["key"])[0]) % 2 else "1"
        assert client.post("/correct/urgency", data=form | {"choice": right}).status_code == 303
    work(connection)
    shown = page(client)
    assert "to go until" not in shown and "20 corrected" in shown
    assert "20 rows)" in shown and "not yet known" not in shown


def test_rows_come_in_pages_with_their_jobs(client: TestClient, alice: Connection, connection: Connection) -> None:
    alice.execute(ADD_TICKETS, [41, 120])
    work(connection)
    seen: list[str] = []
    path = "/answers/urgency"
    while path:
        shown = page(client, path)
        seen += [
            text.partition("row ")[2].partition(" ")[0] for text in Tags(shown).texts if text.startswith("Ticket: row")
        ]
        more = shown.partition('<a href="?after=')[2].partition('"')[0]
        path = f"/answers/urgency?after={more}" if more else ""
    assert sorted(seen, key=int) == [str(number) for number in range(1, 121)]
    assert "/jobs/" in shown


def test_choices_and_keys_do_not_become_markup(alice: Connection, connection: Connection, database: str) -> None:
    texts = [text.replace("\0", "") for text in HOSTILE[:95] if text.replace("\0", "").strip()]
    alice.execute("CREATE TABLE odd (id text PRIMARY KEY, body text)")
    alice.execute(
        "SELECT loracomp.create_answers('odd_answers', 'odd', '{id} {body}', %s)", [list(dict.fromkeys(texts))[:60]]
    )
    with alice.cursor() as cursor:
        cursor.executemany("INSERT INTO odd VALUES (%s, %s) ON CONFLICT DO NOTHING", [(text, text) for text in texts])
    work(connection, output=texts[0])
    client = visitor(database)
    assert not tags_of(page(client, "/answers/odd_answers")) & MARKUP
    correct = page(client, "/correct/odd_answers")
    assert not tags_of(correct) & MARKUP
    form = fields(correct) | {"choice": "3"}
    assert client.post("/correct/odd_answers", data=form).status_code == 303
    assert value(alice, "SELECT id FROM odd_answers WHERE correct IS NOT NULL") == json.loads(form["key"])[0]


def test_the_page_runs_no_code_of_the_views_owner(alice: Connection, connection: Connection, database: str) -> None:
    """A view's owner may change it; whoever looks at it in psql runs what stands there."""
    alice.execute("CREATE FUNCTION public.trap(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END'")
    alice.execute(
        "CREATE OR REPLACE VIEW urgency AS SELECT id, public.trap(subject) AS answer, 0::float8 AS confidence,"
        " ''::text AS status, ''::text AS reason, ''::text AS answered_by, now() AS answered_at,"
        " ''::text AS correct FROM tickets"
    )
    adam = visitor(database, "adam")
    assert "Ticket: row 1" in page(adam, "/answers/urgency")
    assert adam.post("/correct/urgency", data=fields(page(adam)) | {"choice": "1"}).status_code == 303

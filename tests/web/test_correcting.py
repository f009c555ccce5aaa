"""Pages of declarations, and correcting by hand: one row after another, nobody else's row, undone, and not twice."""

import json
import re
import shlex
import time
from collections.abc import Iterator
from html import unescape

import pytest
from starlette.testclient import TestClient

from answers_data import ADD_TICKETS, EMBED, TICKETS, UNEMBEDDED, URGENCY, as_alice, keep, tidy, work
from hostile import HOSTILE
from job_data import BASE, REPORT, add_base_model
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
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


def key_of(shown: str) -> str:
    """The key of the row that the page's last form is about."""
    ((key,), *_) = json.loads(fields(shown)["what"])
    return str(key)


def corrections(alice: Connection) -> dict[int, str]:
    return {
        row["id"]: row["correct"] for row in alice.execute("SELECT id, correct FROM urgency WHERE correct IS NOT NULL")
    }


def test_a_row_is_corrected_and_the_next_one_comes(client: TestClient, alice: Connection) -> None:
    shown = page(client)
    form, key = fields(shown), key_of(shown)
    assert f"Ticket: row {key} wrong" in page(client) and "16 more until workers use them" in page(client)
    response = client.post("/correct/urgency", data=form | {"choice": "1"})
    assert response.status_code == 303 and corrections(alice) == {int(key): "not urgent"}
    after = page(client, response.headers["location"])
    assert "15 more until workers use them" in after and f"<bdi>{key}</bdi>: <bdi>not urgent</bdi>" in after
    choices, _, undo = after.partition("Skip this row")  # the last correction stands below the choices
    assert key_of(choices) != key and "Undo" not in choices
    assert key_of(undo) == key


def test_a_correction_is_undone(client: TestClient, alice: Connection) -> None:
    form = fields(page(client))
    after = page(client, client.post("/correct/urgency", data=form | {"choice": "0"}).headers["location"])
    undo = fields(after)
    (key, _, _), (undone, seen, _) = json.loads(form["what"]), json.loads(undo["what"])
    assert (undone, seen) == (key, 0)
    assert client.post("/correct/urgency", data=undo | {"choice": ""}).status_code == 303
    assert corrections(alice) == {}
    assert [key_of(page(client))] == key  # it comes again


@pytest.mark.parametrize("answered", [False, True])
def test_a_row_that_has_changed_is_not_corrected(
    client: TestClient, alice: Connection, connection: Connection, answered: bool
) -> None:
    shown = page(client)
    form = fields(shown) | {"choice": "1"}
    alice.execute("UPDATE tickets SET subject = 'another' WHERE id = %s", (int(key_of(shown)),))
    if answered:
        work(connection)
    assert client.post("/correct/urgency", data=form).status_code == 404
    assert corrections(alice) == {}


def test_a_form_works_once(client: TestClient, alice: Connection) -> None:
    form = fields(page(client)) | {"choice": "1"}
    assert client.post("/correct/urgency", data=form).status_code == 303
    assert client.post("/correct/urgency", data=form | {"choice": "0"}).status_code == 404  # replayed
    assert list(corrections(alice).values()) == ["not urgent"]


def test_a_page_soon_gives_up_a_row_that_somebody_has_locked(
    client: TestClient, alice: Connection, database: str
) -> None:
    """All visitors share the threads that make pages, so these must not wait."""
    form = fields(page(client)) | {"choice": "1"}
    with as_alice(database) as other, other.transaction():
        other.execute("UPDATE urgency SET correct = 'urgent'")
        start = time.monotonic()
        response = client.post("/correct/urgency", data=form)
        assert (response.status_code, "due to lock timeout; try again" in response.text) == (503, True)
        assert time.monotonic() - start < 6, "the statement's own timeout is ten seconds"


def test_a_form_is_for_one_row_one_session_and_these_choices(
    client: TestClient, alice: Connection, database: str
) -> None:
    form = fields(page(client)) | {"choice": "1"}
    forged = [
        form | {"what": form["what"].replace('["', '["1')},
        form | {"what": form["what"].replace("null", "0")},
        form | {"token": fields(page(client))["token"][::-1]},
        {name: text for name, text in form.items() if name != "token"},
    ]
    assert [client.post("/correct/urgency", data=each).status_code for each in forged] == [403] * 4
    assert visitor(database).post("/correct/urgency", data=form).status_code == 403  # alice's, in another session
    alice.execute("SELECT loracomp.alter_answers('urgency', choices => '{no,yes}')")
    assert client.post("/correct/urgency", data=form).status_code == 403
    assert corrections(alice) == {}


@pytest.mark.parametrize("odd", [{"choice": "2"}, {"choice": "-1"}, {"choice": "x"}, {"what": "{}"}, {"what": ""}])
def test_odd_fields_are_refused(client: TestClient, alice: Connection, odd: dict[str, str]) -> None:
    form = fields(page(client)) | {"choice": "1"} | odd
    assert client.post("/correct/urgency", data=form).status_code == (400 if "choice" in odd else 403)
    assert corrections(alice) == {}


@pytest.mark.parametrize("name", sorted(LOGINS.keys() - {"alice", "adam", "wendy"}))
def test_only_the_owner_and_administrators_correct(
    alice: Connection, database: str, client: TestClient, name: str
) -> None:
    stranger = visitor(database, name)
    shown = [stranger.get(path) for path in ("/answers", "/answers/urgency", "/correct/urgency", "/review/urgency")]
    assert shown[1].status_code in (403, 404)
    assert not any(
        "Ticket" in response.text or "urgent" in response.text.replace("/correct/urgency", "") for response in shown
    )
    assert {shown[2].status_code, shown[3].status_code} <= {403, 404}
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
    """One person in two browsers doesn't get the same row either. A row that nobody corrected within ten minutes is
    free again."""
    people = [client, *(visitor(database) for _ in range(3)), visitor(database, "adam")]
    offered = [{key_of(page(each, f"/correct/urgency?skip={skip}")) for skip in range(8)} for each in people]
    assert [len(keys) for keys in offered] == [8] * 5
    assert len(set().union(*offered)) == 40
    assert "No answered rows are left to correct, or other people are correcting them at the moment." in page(
        visitor(database)
    )
    connection_of = alice.execute("SELECT count(*) AS n FROM loracomp.rows_to_correct('urgency', 16)").fetchone()
    assert connection_of == {"n": 0}


def test_what_was_offered_is_free_after_ten_minutes(client: TestClient, connection: Connection, database: str) -> None:
    first = key_of(page(client))
    connection.execute("UPDATE loracomp.answer_row SET offered_at = offered_at - interval '601 seconds'")
    again = {key_of(page(visitor(database), f"/correct/urgency?skip={skip}")) for skip in range(1)}
    assert len(again) == 1
    taken = values(
        connection, "SELECT DISTINCT visitor FROM loracomp.answer_row WHERE offered_at > now() - interval '1 min'"
    )
    assert len(taken) == 1 and first


def test_after_sixteen_the_page_says_what_they_brought(
    client: TestClient, alice: Connection, connection: Connection
) -> None:
    for _ in range(20):
        shown = page(client)
        right = {"choice": "0" if int(key_of(shown)) % 2 else "1"}
        assert client.post("/correct/urgency", data=fields(shown) | right).status_code == 303
    assert "<dd>measuring 0 of 20</dd>" in page(client) and "measuring 0 of 20" in page(client, "/answers")
    work(connection)
    shown = page(client)
    assert "<dd>ready</dd>" in shown
    assert "more until" not in shown and "<dd>20</dd>" in shown
    assert "20 rows)" in shown and "not yet known" not in shown


def test_choices_are_ordered_by_score_and_have_keys_beyond_nine(
    alice: Connection, connection: Connection, database: str
) -> None:
    choices = [f"choice {number}" for number in range(40)]
    alice.execute("SELECT loracomp.create_answers('many', 'tickets', '{body}', %s)", [choices])
    work(connection, "choice 3")
    scores = [float(-number) for number in range(40)]
    scores[3] = 1.0
    connection.execute(
        "UPDATE loracomp.prediction SET choice_scores = %s WHERE output = 'choice 3' AND submitted_by = %s",
        [scores, login("alice")],
    )
    shown = page(visitor(database), "/correct/many")
    buttons = re.findall(r'<button name="choice" value="(\d+)"(?: data-key="(.)")?', shown)[:40]
    assert [int(value) for value, _ in buttons] == [3, 0, 1, 2, *range(4, 40)]
    keys = [key for _, key in buttons]
    assert keys[:12] == [*"123456789abc"] and keys[32:] == [""] * 8
    assert len({*keys[:32]}) == 32 and not {*keys} & {*"nsu"}
    by_admin = visitor(database, "adam").get("/correct/many")
    assert by_admin.status_code == 200


def test_corrections_are_reviewed_and_undone(client: TestClient, alice: Connection, connection: Connection) -> None:
    assert "Nothing has been corrected yet." in page(client, "/review/urgency")
    alice.execute("UPDATE urgency SET correct = CASE id WHEN 1 THEN 'not urgent' ELSE 'urgent' END WHERE id <= 16")
    work(connection)
    connection.execute("UPDATE loracomp.answer_row SET confidence = CASE key[1] WHEN '1' THEN 0.95 ELSE 0.9 END")
    assert 'href="/review/' in page(client, "/answers")
    shown = page(client, "/review/urgency")
    assert "16 corrected, 0 undone" in shown and "Look at these again" in shown
    forms = [each.partition("</form>")[0] for each in shown.split('<form method="post" action="/correct/')[1:]]
    sent = client.post("/correct/urgency", data=fields(forms[0]))
    assert (sent.status_code, sent.headers["location"]) == (303, "/review/urgency")
    assert corrections(alice)[1] == "urgent", "the first form takes the others' answer"
    shown = page(client, "/review/urgency")
    assert "Look at these again" not in shown
    assert client.post("/correct/urgency", data=fields(shown)).status_code == 303
    assert corrections(alice) == dict.fromkeys(range(1, 16), "urgent"), "the last form takes row 16's back"
    assert "17 corrected, 1 undone" in page(client, "/review/urgency")


def test_the_others_answer_is_not_taken_for_a_text_that_was_not_shown(
    client: TestClient, alice: Connection, connection: Connection
) -> None:
    alice.execute("UPDATE urgency SET correct = CASE id WHEN 1 THEN 'not urgent' ELSE 'urgent' END WHERE id <= 16")
    work(connection)
    connection.execute("UPDATE loracomp.answer_row SET confidence = CASE key[1] WHEN '1' THEN 0.95 ELSE 0.9 END")
    form = page(client, "/review/urgency").split('<form method="post" action="/correct/')[1].partition("</form>")[0]
    alice.execute("UPDATE tickets SET subject = 'another' WHERE id = 1")
    assert client.post("/correct/urgency", data=fields(form)).status_code == 404
    assert corrections(alice)[1] == "not urgent"


def test_a_row_that_no_choice_fits_stays_without_a_correction(client: TestClient, alice: Connection) -> None:
    first = page(client)
    (link,) = re.findall(r'href="(\?skip=1&amp;none)" data-key="n"', first)
    after = page(client, "/correct/urgency" + unescape(link))
    assert key_of(after) != key_of(first) and "The last row stays without a correction" in after
    assert corrections(alice) == {}


def test_commands_that_the_pages_show_can_be_pasted(alice: Connection, connection: Connection, database: str) -> None:
    name = "it's $HOME"
    connection.execute("UPDATE loracomp.base_model SET name = %s WHERE name = %s", [name, BASE])
    job = value(alice, "INSERT INTO loracomp.job (prompt) VALUES ('Is it wet?') RETURNING id")
    command = f"LORACOMP_BASE_MODEL={shlex.quote(name)} loracomp worker"
    client = visitor(database)
    assert command in unescape(page(client, "/"))
    explained = value(alice, "SELECT loracomp.explain_job(%s)", [job])
    assert shlex.split(explained.partition("Start one: ")[2].splitlines()[0])[:2] == shlex.split(command)[:2]
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id <= 20")
    alice.execute("""ALTER VIEW urgency RENAME TO "it's" """)
    shown = unescape(page(client, "/correct/%22it's%22"))
    called = shown[shown.index("SELECT loracomp.alter_answers(") : shown.index("again => true)") + 14]
    assert called.startswith("""SELECT loracomp.alter_answers('"it''s"'""")
    alice.execute(called)


def test_rows_that_the_keeper_has_not_looked_at_are_still_to_answer(
    alice: Connection, connection: Connection, database: str
) -> None:
    client = visitor(database)
    assert "40 of 40 rows answered:" in page(client, "/answers")
    alice.execute("UPDATE tickets SET subject = 'new' WHERE id BETWEEN 6 AND 10")
    assert "40 of 40 rows answered, 5 to answer:" in page(client, "/answers")


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
    assert seen == [str(number) for number in range(1, 121)]
    assert "/jobs/" in shown


def test_rows_come_in_the_order_of_the_tables_own_key(alice: Connection, connection: Connection) -> None:
    alice.execute("CREATE TABLE odd (day date, part numeric, body text, PRIMARY KEY (day, part))")
    alice.execute("SELECT loracomp.create_answers('odd_answers', 'odd', '{body}', '{a,b}')")
    alice.execute("INSERT INTO odd SELECT '2026-01-01', i, 'x' FROM unnest('{10,-2,1.5,-10}'::numeric[]) AS i")
    alice.execute("INSERT INTO odd VALUES ('2025-12-31', 7, 'x')")
    work(connection, output="a")

    def keys(after: list[str] | None, n: int) -> list[list[str]]:
        rows = alice.execute("SELECT key FROM loracomp.list_answer_rows('odd_answers', %s, %s)", [after, n])
        return [row["key"] for row in rows]

    numbers = ["-10", "-2", "1.5", "10"]
    assert keys(None, 50) == [["2025-12-31", "7"], *(["2026-01-01", number] for number in numbers)]
    assert keys(["2026-01-01", "-10"], 2) == [["2026-01-01", "-2"], ["2026-01-01", "1.5"]]


def test_a_corrected_row_says_that_its_own_label_was_left_out(
    client: TestClient, alice: Connection, connection: Connection
) -> None:
    alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id <= 16")
    work(connection)
    shown = page(client, "/answers/urgency")
    assert shown.count("16 corrections, not counting its own") == 16
    said = "One of the labelled rows has the same prompt as this job; its label was not used for this answer."
    first = shown.partition('href="/jobs/')[2].partition('"')[0]
    assert said in page(client, f"/jobs/{first}")
    alice.execute(ADD_TICKETS, [41, 41])
    work(connection)
    (last,) = alice.execute("SELECT job_id FROM loracomp.list_answer_rows('urgency', '{40}')")
    assert said not in page(client, f"/jobs/{last['job_id']}")


def test_the_overview_says_what_waits_and_that_no_worker_is_there(
    client: TestClient, alice: Connection, connection: Connection
) -> None:
    def facts() -> tuple[str, int]:
        shown = page(client, "/")
        return shown, value(connection, "SELECT rows_waiting FROM loracomp.queue_health")

    assert "nothing is waiting" in page(client, "/")
    alice.execute("CREATE TABLE old AS SELECT i AS id, 'x' AS body FROM generate_series(1, 1234) AS i")
    alice.execute("ALTER TABLE old ADD PRIMARY KEY (id)")
    # Otherwise the server would count the inserted rows once more after ANALYZE has counted them.
    alice.execute("SELECT pg_stat_force_next_flush()")
    alice.execute("ANALYZE old")
    alice.execute("SELECT loracomp.create_answers('old_answers', 'old', '{body}', '{a,b}')")
    alice.execute(ADD_TICKETS, [41, 43])
    shown, waiting = facts()
    assert waiting == 1237 and "<dd>1,237</dd>" in shown and "nothing is waiting" not in shown
    assert "No worker is running, so waiting jobs are not answered." in shown and "loracomp worker</code>" in shown
    alice.execute("SELECT loracomp.alter_answers('old_answers', paused => true)")
    assert facts()[1] == 3
    connection.execute(QUERIES["report_worker"], REPORT)
    assert "No worker is running" not in page(client, "/")
    work(connection)
    assert facts()[1] == 0


def test_measurements_are_counted_and_not_listed_among_the_newest_jobs(
    client: TestClient, alice: Connection, connection: Connection
) -> None:
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id <= 9")
    ids = value(connection, UNEMBEDDED)
    connection.execute(EMBED, {"ids": ids, "n": len(ids)})
    keep(connection)
    measuring = values(connection, "SELECT id FROM loracomp.job WHERE kind = 'measure'")
    asked = values(connection, "SELECT id FROM loracomp.job WHERE kind = 'predict'")
    shown = page(client, "/")
    assert len(measuring) == 9 and "9 waiting or running" in shown
    assert not [number for number in measuring if f"/jobs/{number}" in shown]
    assert f"/jobs/{max(asked)}" in shown


def test_a_table_that_was_never_analyzed_has_its_rows_counted(alice: Connection, connection: Connection) -> None:
    alice.execute("CREATE TABLE parted (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    alice.execute("CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (1000)")
    alice.execute("INSERT INTO parted SELECT i, 'x' FROM generate_series(1, 40) AS i")
    alice.execute("SELECT pg_stat_force_next_flush()")
    assert value(connection, "SELECT loracomp.estimated_rows('public.parted')") == 40
    assert value(connection, "SELECT loracomp.estimated_rows('public.part')") == 40


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
    assert value(alice, "SELECT id FROM odd_answers WHERE correct IS NOT NULL") == key_of(correct)
    assert not tags_of(page(client, "/review/odd_answers")) & MARKUP


def test_the_page_runs_no_code_of_the_views_owner(alice: Connection, connection: Connection, database: str) -> None:
    """A view's owner may change it; whoever looks at it in psql runs what stands there."""
    alice.execute("CREATE FUNCTION public.trap(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END'")
    alice.execute(
        "CREATE OR REPLACE VIEW urgency AS SELECT id, public.trap(subject) AS answer, 0::float8 AS confidence,"
        " NULL::boolean AS certain,"
        " ''::text AS status, ''::text AS reason, ''::text AS answered_by, now() AS answered_at,"
        " ''::text AS correct FROM tickets"
    )
    adam = visitor(database, "adam")
    assert "Ticket: row 1" in page(adam, "/answers/urgency")
    assert adam.post("/correct/urgency", data=fields(page(adam)) | {"choice": "1"}).status_code == 303


def test_not_all_rows_are_read_to_count_or_to_draw_some(alice: Connection, connection: Connection) -> None:
    """A page about a million rows then takes a fraction of the time."""

    def pages_read() -> int:
        alice.execute("SELECT pg_stat_force_next_flush()")
        return value(
            connection,
            "SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables"
            " WHERE relid = 'loracomp.answer_row'::regclass",
        )

    def believe(rows: float) -> None:
        connection.execute("UPDATE pg_class SET reltuples = %s WHERE oid = 'loracomp.answer_row'::regclass", [rows])

    connection.execute(
        "INSERT INTO loracomp.answer_row"
        " (declaration_id, key, status, job_id, prompt_hash, answer, answered_at, changed_in)"
        " SELECT d.id, ARRAY[i::text], (ARRAY['waiting', 'answered', 'refused', 'failed'])[1 + i % 4], 1000000 + i, '',"
        " 'urgent', CASE WHEN i % 4 IN (1, 3) THEN now() END, 1"
        " FROM loracomp.declaration AS d, generate_series(41, 30040) AS i"
    )
    connection.execute("VACUUM (ANALYZE) loracomp.answer_row")
    before = pages_read()
    shown = value(alice, "SELECT to_jsonb(a) FROM loracomp.list_answers() AS a")
    numbers = [shown[name] for name in ("rows", "open", "answered", "refused", "failed", "stale")]
    assert numbers == [30040, 7500, 7540, 7500, 7500, 0]
    assert 3000 <= shown["per_minute"] <= 15040, "of the last minute, or of five"
    assert pages_read() - before < 10
    pages = value(connection, "SELECT relpages FROM pg_class WHERE oid = 'loracomp.answer_row'::regclass")
    believe(1e6)  # a tenth is read
    before = pages_read()
    assert value(alice, "SELECT count(*) FROM loracomp.rows_to_correct('urgency', 8)") == 8
    assert pages_read() - before < pages / 2
    believe(1e12)  # too few are found in what is read, and then all are
    assert value(alice, "SELECT count(*) FROM loracomp.rows_to_correct('urgency', 20)") == 20
    alice.execute("CREATE TABLE few (id integer PRIMARY KEY, t text)")
    alice.execute("SELECT loracomp.create_answers('some', 'few', '{t}', '{a,b}')")
    connection.execute(
        "INSERT INTO loracomp.answer_row (declaration_id, key, status, job_id, prompt_hash, answer, changed_in)"
        " SELECT max(d.id), ARRAY['1'], 'answered', 2000000, '', 'a', 1 FROM loracomp.declaration AS d"
    )
    believe(1e6)  # a tenth is read, and the row of this declaration
    before = pages_read()
    alice.execute("SELECT FROM loracomp.rows_to_correct('some', 20)")
    assert pages_read() - before < pages / 2

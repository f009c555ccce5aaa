"""The pages with real logins: who sees what, which forms are refused, and what stands in the cookie."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Semaphore
from urllib.parse import unquote

import pytest
from psycopg.conninfo import make_conninfo
from starlette.testclient import TestClient

from hostile import HOSTILE
from loracomp.database import connections as db
from loracomp.errors import RefusedError
from loracomp.web import pages, render, sessions, visits
from loracomp.web.pages import make_app, routes
from loracomp.web.sessions import Seal, Session
from loracomp.web.visits import COOKIE
from pages_data import PASSWORD, SECRET, Tags, browser, fields, log_in
from people_data import submit
from people_fixtures import LOGINS, Scene, login
from worker_helpers import wait_until

POSTED = ("/login", "/logout", "/correct/urgency")
PAGES = ("/", "/answers", "/adapters", "/report", "/jobs?id=1", "/answers/urgency", "/correct/urgency")


@pytest.fixture
def visit(scene: Scene) -> Iterator[Callable[[str], TestClient]]:
    """A browser in which this person has logged in."""

    def logged_in(name: str) -> TestClient:
        client = browser(scene.url)
        assert log_in(client, name) == 303
        return client

    yield logged_in


def test_a_running_server_shows_no_templates_of_a_later_release(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app("postgresql://", SECRET)
    monkeypatch.setattr(render._templates.loader, "get_source", None)
    assert TestClient(app, base_url="https://testserver").get("/login").status_code == 200


# Who sees what

SEEN = {
    "alice": {"/": 200, "/answers": 200, "/adapters": 200, "/report": 403, "alices": 200, "bobs": 404},
    "bob": {"/": 200, "/answers": 200, "/adapters": 200, "/report": 403, "alices": 404, "bobs": 200},
    "ana": {"/": 200, "/answers": 403, "/adapters": 200, "/report": 200, "alices": 403, "bobs": 403},
    "adam": {"/": 200, "/answers": 200, "/adapters": 200, "/report": 200, "alices": 200, "bobs": 200},
    "nobody": {"/": 200, "/answers": 403, "/adapters": 200, "/report": 403, "alices": 403, "bobs": 403},
}


@pytest.mark.parametrize("name", SEEN)
def test_each_role_sees_what_it_may_in_psql(scene: Scene, visit: Callable[[str], TestClient], name: str) -> None:
    client = visit(name)
    paths = {"alices": f"/jobs/{scene.alices}", "bobs": f"/jobs/{scene.bobs}"}
    pages = {page: client.get(paths.get(page, page)) for page in SEEN[name]}
    assert {page: response.status_code for page, response in pages.items()} == SEEN[name]
    may_read = {"alice": ("alice",), "bob": ("bob",), "adam": ("alice", "bob")}.get(name, ())
    for response in pages.values():
        for person in ("alice", "bob"):
            assert (f"{person}'s SECRET" in response.text.replace("&#39;", "'")) <= (person in may_read)
    if name not in ("adam",):
        assert all(login("adam") not in response.text for response in pages.values())


@pytest.mark.parametrize("path", PAGES)
def test_without_a_login_there_is_only_the_login(scene: Scene, path: str) -> None:
    response = browser(scene.url).get(path)
    assert response.status_code == 303
    assert unquote(response.headers["location"]) == f"/login?next={path}"
    assert "SECRET" not in response.text


def test_a_job_that_is_not_there_is_a_sentence(visit: Callable[[str], TestClient]) -> None:
    client = visit("alice")
    for path in (
        "/jobs/0",
        f"/jobs/{2**63}",
        f"/jobs/{10**30}",
        "/jobs?id=x",
        "/jobs?id=%C2%B2",
        "/nowhere",
        "/answers/a%00b",
    ):
        assert client.get(path).status_code in (400, 404), path
    for page in ("answers", "correct"):
        response = client.get(f"/{page}/no.such")
        assert response.status_code == 404 and "declaration" in response.text
    assert client.get("/correct/pg_class?done=nonsense").status_code in (400, 404)


def test_the_session_may_not_write_on_a_page_that_only_shows(scene: Scene) -> None:
    session = Session(login("alice"), PASSWORD)
    with (
        pytest.raises(Exception, match="read-only"),
        sessions.connected(scene.url, session, Seal(SECRET)) as connection,
    ):
        submit(connection, "from a page")


# Logging in


def test_an_empty_or_wrong_password_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)  # libpq would take it in the place of an empty one
    client = browser(scene.url)
    for password in ("", "x", PASSWORD[:-1], PASSWORD + "\0", "a" * 10_000):
        assert log_in(client, "alice", password) == 403
    assert log_in(client, "alice", role="no such role") == 403
    form = fields(client.get("/login").text) | {"role": "no such role", "password": PASSWORD}
    told = client.post("/login", data=form).text
    assert 'value="no such role"' in told and told.count("no such role") == 2  # in its field, and in what is wrong
    assert "socket" not in told and ".PGSQL" not in told  # not where the server is
    assert log_in(client, "alice", role="alice dbname=postgres") == 403
    assert client.get("/").status_code == 303


def test_a_database_that_asks_for_a_password_is_believed(scene: Scene) -> None:
    if "LORACOMP_TEST_SERVER" in os.environ:
        pytest.skip("the server's pg_hba.conf is not ours")
    given = "a ' \\ b://c@d"
    role = login("alice")
    path, lines = (
        scene.owner.execute("SELECT current_setting('hba_file') AS p, pg_read_file(current_setting('hba_file')) AS l")
        .fetchone()
        .values()
    )  # type: ignore[union-attr]

    def write(text: str) -> None:
        scene.owner.execute(f"COPY (SELECT unnest(string_to_array($a${text}$a$, E'\\n'))) TO $a${path}$a$")
        scene.owner.execute("SELECT pg_reload_conf()")

    scene.owner.execute(f"ALTER ROLE {role} PASSWORD $a${given}$a$")
    write(f"local all {role} scram-sha-256\n{lines}")
    try:
        client = browser(scene.url)
        wait_until(lambda: log_in(client, "alice") == 403)  # the server has read the file
        assert log_in(client, "alice", given + "x") == 403
        assert log_in(client, "alice", given) == 303
        assert client.get(f"/jobs/{scene.alices}").status_code == 200
        scene.owner.execute(f"ALTER ROLE {role} PASSWORD 'another'")
        assert client.get(f"/jobs/{scene.alices}").status_code == 503  # the session ends with the password
    finally:
        write(lines)
        scene.owner.execute(f"ALTER ROLE {role} PASSWORD NULL")


def test_logins_that_take_long_delay_no_pages(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, tried = Event(), Semaphore(0)

    @contextmanager
    def slow(*_: object) -> Iterator[None]:
        tried.release()
        assert ended.wait(60)
        raise RefusedError("no")
        yield

    with browser(scene.url) as client, ThreadPoolExecutor(51) as people:  # `with`: one event loop for all requests
        assert log_in(client, "alice") == 303
        form = fields(client.get("/login").text) | {"role": "x", "password": "y"}
        monkeypatch.setattr(pages, "connected", slow)
        logins = [people.submit(client.post, "/login", data=form) for _ in range(50)]
        try:
            assert all(tried.acquire(timeout=30) for _ in range(pages.LOGINS))
            assert people.submit(client.get, "/").result(30).status_code == 200
            assert not tried.acquire(blocking=False)
        finally:
            ended.set()
        assert {each.result().status_code for each in logins} == {403}


@pytest.mark.parametrize(
    "wanted", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", ""]
)
def test_after_the_login_nobody_is_sent_elsewhere(scene: Scene, wanted: str) -> None:
    client = browser(scene.url)
    form = fields(client.get("/login").text) | {"role": login("alice"), "password": PASSWORD, "next": wanted}
    assert client.post("/login", data=form).headers["location"] == "/"


@pytest.mark.parametrize("wanted", ["/jobs/1?x=1&y=2", "/answers/%22a%3Fb%25%20c%23%22?after=%5B%221%22%5D"])
def test_after_the_login_one_is_where_one_wanted_to_be(scene: Scene, wanted: str) -> None:
    client = browser(scene.url)
    page = client.get(client.get(wanted).headers["location"]).text
    form = fields(page) | {"role": login("alice"), "password": PASSWORD}
    assert client.post("/login", data=form).headers["location"] == wanted


# The cookie


def test_the_cookie_is_closed_to_scripts_other_sites_and_readers(scene: Scene) -> None:
    client = browser(scene.url)
    form = fields(client.get("/login").text) | {"role": login("alice"), "password": PASSWORD}
    kept = client.post("/login", data=form).headers["set-cookie"]
    assert "HttpOnly" in kept and "SameSite=lax" in kept and "Path=/" in kept
    assert PASSWORD not in kept and login("alice") not in kept
    secure = TestClient(make_app(scene.url, SECRET), base_url="https://testserver", follow_redirects=False)
    assert "Secure" in secure.get("/login").headers["set-cookie"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/nowhere"), *(("POST", path) for path in POSTED), ("POST", "/")]
)
def test_what_another_site_sends_leaves_the_session_alone(scene: Scene, method: str, path: str) -> None:
    """The browser then leaves out the cookie, except where somebody follows a link, but obeys Set-Cookie."""
    assert "set-cookie" not in browser(scene.url).request(method, path).headers


def test_a_session_that_no_cookie_holds_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    client = browser(scene.url)
    form = fields(client.get("/login").text) | {"role": login("alice"), "password": PASSWORD}
    monkeypatch.setattr(visits, "LONGEST_COOKIE", 200)
    refused = client.post("/login", data=form)
    assert (refused.status_code, "too long to be kept in a cookie" in refused.text) == (403, True)
    assert "set-cookie" not in refused.headers


def test_a_cookie_that_was_changed_or_is_old_or_of_another_secret_is_none(
    scene: Scene, visit: Callable[[str], TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    cookie = visit("alice").cookies[COOKIE]
    seal = Seal(SECRET)
    assert seal.open(cookie) is not None
    changed = [
        cookie[:at] + ("A" if cookie[at] != "A" else "B") + cookie[at + 1 :] for at in range(0, len(cookie) - 4, 7)
    ]
    with monkeypatch.context() as earlier:
        now = time.time()
        earlier.setattr("time.time", lambda: now - sessions.LASTS_S - 1)
        old = seal.close(Session(login("alice"), PASSWORD))
    other = Seal("another secret of 32 characters...").close(Session(login("alice"), PASSWORD))
    for forged in [*changed, old, other, "", "x", "é", cookie[:-8], "A" * 5000]:
        assert seal.open(forged) is None, forged
        client = browser(scene.url)
        client.cookies.set(COOKIE, forged.encode("ascii", "ignore").decode())
        assert client.get("/").status_code == 303


def test_equal_sessions_have_different_cookies() -> None:
    seal, session = Seal(SECRET), Session("alice", "secret")
    assert len({seal.close(session) for _ in range(100)}) == 100
    assert seal.open(seal.close(session)) == session


def test_two_processes_with_one_secret_share_sessions(scene: Scene, visit: Callable[[str], TestClient]) -> None:
    first = visit("alice")
    second = browser(scene.url)
    second.cookies.set(COOKIE, first.cookies[COOKIE])
    form = fields(second.get("/").text)
    assert first.post("/logout", data=form).status_code == 303
    stranger = browser(scene.url, "another secret of 32 characters...")
    stranger.cookies.set(COOKIE, second.cookies[COOKIE])
    assert stranger.get("/").status_code == 303


# Forms


def test_a_form_with_more_fields_than_ours_is_refused(visit: Callable[[str], TestClient]) -> None:
    fields_of_none = {f"field{number}": "" for number in range(21)}
    assert visit("alice").post("/logout", data=fields_of_none).status_code == 403


@pytest.mark.parametrize("path", POSTED)
def test_a_forged_form_is_refused(scene: Scene, visit: Callable[[str], TestClient], path: str) -> None:
    alice, bob = visit("alice"), visit("bob")
    tokens = [
        "",
        "x",
        "0" * 64,
        "é",
        fields(bob.get("/").text)["token"],
        fields(browser(scene.url).get("/login").text)["token"],
    ]
    if path != "/logout":
        tokens.append(fields(alice.get("/").text)["token"])  # of her own form that logs out
    for token in tokens:
        response = alice.post(path, data={"token": token, "role": login("bob"), "password": PASSWORD, "key": '["1"]'})
        assert response.status_code in (403, 404), token
        assert "set-cookie" not in response.headers
    assert alice.post(path, content=b"x" * 200_000).status_code in (403, 404)
    assert login("alice") in alice.get("/").text


def test_all_that_changes_something_is_posted_with_a_token() -> None:
    """Whoever adds a form adds it here."""
    posted = {route.path for route in routes("", SECRET) if "POST" in (route.methods or ())}
    assert posted == {"/login", "/logout", "/correct/{name:path}"}


# What each response says to the browser


@pytest.mark.parametrize("path", [*PAGES, "/login", "/style.css", "/script.js", "/nowhere", "/jobs/999999"])
def test_nothing_unsafe_is_allowed(visit: Callable[[str], TestClient], path: str) -> None:
    response = visit("adam").get(path)
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy and policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    if response.headers.get("content-type", "").startswith("text/html"):
        assert response.headers["cache-control"] == "no-store"
        found = Tags(response.text)
        attributes = {name for _, *names in found.tags for name in names}
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes)
        assert not any(tag == "style" for tag, *_ in found.tags)


def test_texts_of_jobs_do_not_become_markup(scene: Scene, visit: Callable[[str], TestClient]) -> None:
    """The texts are prompts and tags, on the job's page and in the list of the newest jobs."""
    client = visit("bob")

    def tags(text: str) -> list[list[tuple[str, ...]]]:
        stored = text.replace("\0", "") or "x"
        with scene.connect("bob") as bob, bob.transaction():
            number = submit(
                bob, stored if stored.strip() else "x", tags=db.psycopg.types.json.Jsonb({"t": stored[:1000]})
            )
        pages = [Tags(client.get(f"/jobs/{number}").text), Tags(client.get("/").text)]
        assert not any("\u202e" in each or "\x1b" in each for found in pages for each in found.texts)
        with scene.connect("bob") as bob:
            bob.execute("SELECT loracomp.erase_jobs(ARRAY[%s::bigint])", [number])
        return [found.tags for found in pages]

    plain = tags("plain")
    for text in HOSTILE[::8]:
        assert tags(text) == plain, text[:50]


def test_logins_are_those_of_the_matrix() -> None:
    assert SEEN.keys() == LOGINS.keys() - {"wendy"}
    assert make_conninfo("", user="x")

"""Requests that no browser makes: every route with odd paths, methods, headers and bodies.

No request fails inside the server, each response has the security headers, and none redirects to another site.
"""

import asyncio
import re
from itertools import product

import pytest
from starlette.testclient import TestClient

from loracomp.web.pages import make_app
from loracomp.web.visits import HEADERS
from odd_requests import BODIES, FORGED, METHODS, PARTS, PATHS, QUERIES, check, filled
from pages_data import SECRET, fields, log_in
from people_fixtures import Scene, login


@pytest.fixture
def client(scene: Scene) -> TestClient:
    """A browser in which adam has logged in, who may see everything."""
    client = TestClient(make_app(scene.url, SECRET), follow_redirects=False, raise_server_exceptions=False)
    assert log_in(client, "adam") == 303
    return client


@pytest.mark.parametrize("path", PATHS)
def test_no_request_fails_inside(client: TestClient, path: str) -> None:
    for part in PARTS if "{" in path else [""]:
        check(client, "GET", filled(path, part))
        check(client, "GET", filled(path, part) + "/")
    for query, method in product(QUERIES, ["GET", "POST"]):
        check(client, method, f"{filled(path, 'urgency')}?{query}")
    for method in METHODS:
        check(client, method, filled(path, "1"))
    for body in BODIES:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        check(client, "POST", filled(path, "1"), content=body, headers=form)
    assert login("adam") in client.get("/").text, "still logged in"
    for headers in FORGED:
        check(client, "GET", filled(path, "1"), headers=headers)
        check(client, "GET", filled(path, "1") + "/", headers={"Host": "evil.example"})


def test_what_fails_inside_has_the_headers_too(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("loracomp.web.visits.render", fail)
    client = TestClient(make_app(scene.url, SECRET), raise_server_exceptions=False)
    response = client.get("/login")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS


def test_a_wrong_password_does_not_tell_which_roles_exist(scene: Scene) -> None:
    """This holds where the database asks for no password. The database's own refusals are shown only if the password is
    right."""

    def told(role: str) -> str:
        client = TestClient(make_app(scene.url, SECRET), follow_redirects=False)
        form = fields(client.get("/login").text) | {"role": role, "password": "wrong"}
        response = client.post("/login", data=form)
        assert response.status_code == 403
        return re.sub(r'name="token" value="\w+"', "", response.text).replace(role, "ROLE")

    scene.owner.execute(f"ALTER ROLE {login('nobody')} NOLOGIN")
    try:
        pages = {told(role) for role in (login("alice"), login("nobody"), "loracomp_worker", "no such role", "x" * 500)}
    finally:
        scene.owner.execute(f"ALTER ROLE {login('nobody')} LOGIN")
    assert len(pages) == 1


def test_a_client_that_leaves_in_the_middle_of_a_form_is_no_error(scene: Scene) -> None:
    events = iter([{"type": "http.request", "body": b"token=", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, object]:
        return next(events)

    async def send(_: object) -> None:
        """Nobody is there."""

    scope = {"type": "http", "method": "POST", "path": "/login", "query_string": b"", "headers": [], "scheme": "http"}
    asyncio.run(make_app(scene.url, SECRET)(scope, receive, send))


def test_a_form_that_does_not_arrive_is_answered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loracomp.web.visits.SLOWEST_FORM_S", 0.1)
    parts = iter([{"type": "http.request", "body": b"token=", "more_body": True}])
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        for part in parts:
            return part
        await asyncio.sleep(600)
        raise AssertionError

    async def send(event: dict[str, object]) -> None:
        sent.append(event)

    scope = {"type": "http", "method": "POST", "path": "/login", "query_string": b"", "headers": [], "scheme": "http"}
    asyncio.run(asyncio.wait_for(make_app(scene.url, SECRET)(scope, receive, send), 60))
    assert sent[0]["status"] == 403

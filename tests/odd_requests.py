"""Requests that no browser makes, and what holds of every response."""

import re

from starlette.testclient import TestClient

from loracomp.web.pages import routes
from loracomp.web.visits import HEADERS
from pages_data import SECRET

PATHS = sorted({route.path for route in routes("", SECRET)})
PARTS = [
    "", "0", "-1", "1e3", "9" * 5000, str(2**63), "%00", "%0d%0aSet-Cookie:%20a=b", "%ff", "%2e%2e%2f", "%D9%A3",
    "a" * 8000, "/", "//evil.example", "no.such", "%22%3E%3Cscript%3E", "pg_catalog.pg_class", "'", "%20",
]  # fmt: skip
QUERIES = [
    "id=", "id=" + "9" * 5000, "id=1&id=2", "id=%00", "after=x", "after=%5B%22%00%22%5D", "after=" + "%5B" * 5000,
    "after=%5B%22%5Cu0000%22%5D", "after=%5B%22%5Cud800%22%5D", "done=%5B%5D&said=99999999999999999999",
    "skip=" + "9" * 18, "said=-1", "%ff=%ff", "next=//evil.example", "&" * 5000,
]  # fmt: skip
METHODS = ["HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"]
FORGED = [
    {"Host": "evil.example"}, {"Host": "evil.example/x?y#z"}, {"Host": ""}, {"Host": "@evil.example:99999"},
    {"X-Forwarded-Host": "evil.example"}, {"Cookie": "loracomp_session=" + "A" * 50_000},
    {"Cookie": "=;=;loracomp_session"}, {"Content-Type": "application/json"}, {"Content-Length": "5"},
    {"Range": "bytes=0-1"}, {"Accept": b"\xff"},
]  # fmt: skip
BODIES = [
    b"", b"token", b"&" * 200_000, b"token=%ff&what=%00", b"\xff" * 1000, b"token=a&" * 21, b"{}", b"[" * 90_000,
    b"a=" + b"x" * 10_000_000,
]  # fmt: skip


def check(client: TestClient, method: str, path: str, **given: object) -> None:
    response = client.request(method, path, **given)  # type: ignore[arg-type]
    about = (method, path[:80], str(given)[:80])
    assert response.status_code < 500, about
    is_file = path.partition("?")[0].endswith((".css", ".js")) and response.status_code == 200
    for name, value in HEADERS.items():
        assert response.headers[name] == value or (is_file and name == "Cache-Control"), about
    assert re.match(r"/(?![/\\])|$", response.headers.get("location", "")), about
    assert not {"evil.example"} & {response.headers.get("location", ""), response.headers.get("set-cookie", "")}, about
    assert "set-cookie" not in response.headers or response.headers["set-cookie"].startswith("loracomp_session="), about


def filled(path: str, part: str) -> str:
    return re.sub(r"\{.*\}", lambda _: part, path)

"""A browser without a screen, and helpers to read a page."""

from html.parser import HTMLParser

from starlette.testclient import TestClient

from loracomp.web.pages import make_app
from loracomp.web.sessions import Seal
from people_fixtures import login

SECRET = "a secret of at least 32 characters"
PASSWORD = Seal(SECRET).local_password


class Tags(HTMLParser):
    """The tags of a page, each with the names of its attributes, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def browser(url: str, secret: str = SECRET) -> TestClient:
    return TestClient(make_app(url, secret), follow_redirects=False)


def fields(page: str) -> dict[str, str]:
    """Return the hidden fields of the page's last form that has a token."""
    found: dict[str, str] = {}

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            if tag == "input" and given.get("type") == "hidden":
                found[given["name"] or ""] = given["value"] or ""

    Parser().feed(page)
    return found


def log_in(client: TestClient, name: str, password: str = PASSWORD, **others: str) -> int:
    """Log in; returns the status, which is 303 if it worked."""
    form = fields(client.get("/login").text) | {"role": login(name), "password": password} | others
    return client.post("/login", data=form).status_code

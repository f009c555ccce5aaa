"""The pages in Debian's chromium: looked at, wide and narrow, light and dark, by axe, without JavaScript and by keys.

    make test-web PICTURES=folder

keeps the pictures. The database is the demo's, with a declaration of forty rows.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from demo_fixtures import ROOT, execute

pytestmark = pytest.mark.web
PAGES = {
    "login": "/login",
    "overview": "/",
    "answers": "/answers",
    "rows": "/answers/messages_urgent",
    "correct": "/correct/messages_urgent",
    "job": "/jobs/13",
    "text": "/jobs/11",
    "missing": "/jobs/99999",
    "adapters": "/adapters",
    "report": "/report",
}
WIDTHS = (360, 1280, 1600)
FREE = "UPDATE loracomp.answer_row SET offered_at = NULL"  # what browsers of other tests have been given
DECLARED = """
CREATE TABLE messages (id integer PRIMARY KEY, text text NOT NULL);
INSERT INTO messages
SELECT i, format('Message %s: water pours through the ceiling of room %s.', i, i) FROM generate_series(1, 40) AS i;
SELECT loracomp.create_answers('messages_urgent', 'messages', E'Tenant: {text}\\nThis is', '{urgent,not urgent}');
"""
# Texts of a picture that overlap one another or leave it; a tolerance of a pixel, as fonts differ.
OVERLAPS = """() => [...document.querySelectorAll("svg.panel")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  const isOut = (b) => b.left < frame.left - 1 || b.right > frame.right + 1 || b.bottom > frame.bottom + 1;
  const meets = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  return boxes.flatMap(([text, box], i) => [
    ...(isOut(box) ? [text] : []),
    ...boxes.slice(i + 1).filter(([, b]) => meets(box, b)).map(([other]) => [text, other]),
  ]);
})"""
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# What one would have to scroll sideways to read; prompts break their lines.
CUT = """() => [...document.querySelectorAll("main *")].filter((e) => e.scrollWidth > e.clientWidth + 1
  && ["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX)).map((e) => e.outerHTML.slice(0, 100))"""
PAPER = {"width": 717, "height": 1000}
"""A4 without margins, in pixels of CSS."""


@pytest.fixture(scope="module")
def owner(demo: dict[str, str]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(execute(["loracomp", "db", "start"], demo).strip(), autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def address(demo: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Address of `loracomp web` on the demo's database, and the password that it printed."""
    execute(["loracomp", "db", "psql", "-v", "ON_ERROR_STOP=1", "-f", "-"], demo, DECLARED)
    execute(["loracomp", "worker", "--drain"], demo)
    execute(["loracomp", "refresh"], demo)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "loracomp", "web", "--port", str(port)]
    url, log = f"http://127.0.0.1:{port}", Path(demo["LORACOMP_HOME"]) / "web.log"
    with log.open("w") as said:
        server = subprocess.Popen(command, env=demo, cwd=ROOT, stderr=said)
    while not answers(url):
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    yield url, log.read_text().rpartition(" ")[2].strip()
    server.terminate()
    server.wait()


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{url}/login").status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(["npm", "install", "--silent", "axe-core@4"], cwd=folder, check=True, timeout=300)
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(exist_ok=True)
    return folder


def opened(chromium: Any, address: tuple[str, str], **options: Any) -> Any:
    """A page of a browser of its own, in which the demo's owner has logged in."""
    url, password = address
    page = chromium.new_context(**options).new_page()
    page.goto(f"{url}/login")
    page.get_by_label("Role").fill("postgres")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{url}/")
    return page


def look(page: Any, axe: str, picture: Path) -> None:
    """What is wrong with a page, after its picture was taken."""
    page.screenshot(path=picture, full_page=True)
    assert page.evaluate(SIDEWAYS) <= 0, "the page must not scroll sideways"
    assert page.evaluate(CUT) == []
    assert page.evaluate(OVERLAPS) == []
    page.evaluate(axe)
    found = page.evaluate("axe.run()")["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in serious] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_each_page_is_fit_to_be_looked_at(
    chromium: Any, address: tuple[str, str], owner: Any, axe: str, pictures: Path, width: int, scheme: str
) -> None:
    owner.execute(FREE)
    page = opened(chromium, address, viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    for name, path in PAGES.items():
        page.goto(address[0] + path)
        look(page, axe, pictures / f"{name}-{width}-{scheme}.png")
    page.context.close()
    assert [problem for problem in problems if "404" not in problem] == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", [["explain", "13", "--html"], ["report", "--tag", "show"]])
def test_files_are_fit_to_be_looked_at(
    chromium: Any, demo: dict[str, str], axe: str, pictures: Path, tmp_path: Path, width: int, command: list[str]
) -> None:
    (tmp_path / "file.html").write_text(execute(["loracomp", *command], demo))
    page = chromium.new_context(viewport={"width": width, "height": 800}, offline=True).new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{tmp_path}/file.html")
    look(page, axe, pictures / f"file-{command[0]}-{width}.png")
    page.set_viewport_size(PAPER)
    page.emulate_media(media="print")
    page.screenshot(path=pictures / f"file-{command[0]}-print.png", full_page=True)
    assert page.evaluate(CUT) == []
    page.context.close()
    assert asked == [f"file://{tmp_path}/file.html"]  # nothing is loaded


def test_the_picture_of_docs_is_fit_to_be_looked_at(chromium: Any, pictures: Path) -> None:
    for scheme in ("light", "dark"):
        page = chromium.new_context(viewport={"width": 760, "height": 800}, color_scheme=scheme).new_page()
        page.set_content(f"<!doctype html>{(ROOT / 'docs/job.svg').read_text()}")
        page.screenshot(path=pictures / f"docs-{scheme}.png", full_page=True)
        assert page.evaluate(OVERLAPS) == []
        page.context.close()


def test_another_site_can_link_to_a_page_and_end_no_session(chromium: Any, address: tuple[str, str]) -> None:
    page = opened(chromium, address)
    other = page.context.new_page()
    elsewhere = (
        f"data:text/html,<a href='{address[0]}/adapters'>Link</a>"
        f"<form method='post' action='{address[0]}/login'><button>Send</button></form>"
    )
    other.goto(elsewhere)
    other.get_by_role("link", name="Link").click()
    other.wait_for_url(f"{address[0]}/adapters")
    other.goto(elsewhere)
    other.get_by_role("button", name="Send").click()
    other.wait_for_url(f"{address[0]}/login")
    assert "this form is not yours" in other.locator("main").inner_text()
    assert page.goto(f"{address[0]}/answers").url == f"{address[0]}/answers"
    page.context.close()


def test_rows_are_corrected_by_keys(chromium: Any, address: tuple[str, str], owner: Any) -> None:
    """A hundred in five minutes, without what a person thinks."""
    owner.execute(FREE)
    page = opened(chromium, address)
    page.goto(f"{address[0]}/correct/messages_urgent")
    corrected = int(re.split(r"\D", page.locator("dd").first.inner_text())[0])
    start = time.monotonic()
    for number in range(20):
        page.keyboard.press("1")
        page.locator("dd").first.filter(has_text=re.compile(rf"^{corrected + number + 1}\b")).wait_for()
    assert 5 * (time.monotonic() - start) < 300
    page.keyboard.press("u")
    page.locator("dd").first.filter(has_text=re.compile(rf"^{corrected + 19}\b")).wait_for()
    page.context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_choices_keep_their_place_under_the_pointer(
    chromium: Any, address: tuple[str, str], owner: Any, width: int
) -> None:
    owner.execute(FREE)
    page = opened(chromium, address, viewport={"width": width, "height": 800})
    page.goto(f"{address[0]}/correct/messages_urgent")
    choice = page.locator("button[data-key='1']")
    place = choice.bounding_box()
    choice.click()
    page.get_by_role("status").wait_for()
    assert choice.bounding_box() == place
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("status").wait_for(state="detached")
    assert choice.bounding_box() == place
    page.context.close()


def test_pages_work_without_javascript(chromium: Any, address: tuple[str, str], owner: Any) -> None:
    owner.execute(FREE)
    page = opened(chromium, address, java_script_enabled=False)
    assert page.locator("meta[http-equiv=refresh]").count() == 1
    page.get_by_role("link", name="Answers", exact=True).click()
    page.get_by_role("link", name="Correct", exact=True).click()
    page.locator("button[name=choice]").last.click()
    assert page.get_by_role("status").inner_text().startswith("Row ")
    page.get_by_label("Job").fill("13")
    page.get_by_role("button", name="Show").click()
    assert page.get_by_role("heading", level=1).inner_text() == "Job 13: succeeded"
    page.context.close()


def test_the_overview_follows(chromium: Any, address: tuple[str, str], owner: Any) -> None:
    page = opened(chromium, address)
    owner.execute("INSERT INTO loracomp.job (prompt) SELECT 'wait ' || i FROM generate_series(1, 1234) AS i")
    page.get_by_text("1,234", exact=True).wait_for(timeout=60_000)
    owner.execute("SELECT loracomp.cancel_jobs(ARRAY(SELECT id FROM loracomp.job WHERE status = 'queued'))")
    page.context.close()

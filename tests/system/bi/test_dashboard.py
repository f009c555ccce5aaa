"""The dashboard of Superset: its bundle fits schema bi; and, in a browser, every chart shows what it should.

    make test-dashboard PICTURE=dashboard.png
    make test-dashboard FILLED=postgresql://owner@host/loracomp_volume_1000000

The first takes the picture that the docs show, the second says how soon all is drawn on a database of `make volume`.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from benchmarks.volume.__main__ import fill
from conftest import place_for_a_server
from demo_fixtures import ROOT
from loracomp.database import connections as db
from loracomp.database import embedded, schema
from people_data import fill_every_view, views

BUNDLE = ROOT / "deploy" / "dashboards" / "superset" / "bundle"
LARGEST_PICTURE = 500_000  # bytes


def read(kind: str) -> dict[str, Any]:
    """Files of the bundle by name."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in BUNDLE.glob(f"{kind}/**/*.yaml")}


DATASETS, CHARTS, (DASHBOARD,) = read("datasets"), read("charts"), read("dashboards").values()
BY_UUID = {dataset["uuid"]: dataset for dataset in DATASETS.values()}


def named(value: Any) -> list[str]:
    """Names of metrics or columns among a chart's parameters, those that are written out left aside."""
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


# The command, with what it serves left out.


def make(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`make`, with this environment in the place of .venv."""
    command = ["make", "-o", "install", f"BIN={Path(sys.executable).parent}", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder in the place of Superset's environment, whose python says what it was called with."""
    python = tmp_path / "superset" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "called with $*"\n')
    python.chmod(0o700)
    (tmp_path / "superset" / ".installed").touch()
    return tmp_path / "superset"


def test_the_command_does_not_show_its_address(stand_in: Path) -> None:
    done = make("dashboard", f"SUPERSET={stand_in}", "DATABASE=postgresql://bi_reader@nowhere/loracomp")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("called with ") and line.endswith("--database postgresql://bi_reader@nowhere/loracomp")


def test_where_no_demo_ran_the_command_makes_the_schema(stand_in: Path) -> None:
    with place_for_a_server() as folder:
        try:
            done = make("dashboard", f"SUPERSET={stand_in}", LORACOMP_HOME=str(folder.parent))
            assert done.returncode == 0, done.stderr
            first, *_, last = done.stdout.splitlines()
            assert first.endswith("make demo puts something into it")
            with psycopg.connect(last.partition("--embedded ")[2]) as connection:
                assert connection.execute("SELECT count(*) FROM bi.cost_by_submitter").fetchone() == (0,)
                assert connection.execute("SELECT to_regrole('loracomp_analyst') IS NOT NULL").fetchone() == (True,)
        finally:
            embedded.stop(folder)


def test_a_python_that_is_missing_is_a_sentence(tmp_path: Path) -> None:
    done = make("dashboard", f"SUPERSET={tmp_path}", "SUPERSET_PYTHON=python-of-nowhere")
    assert done.returncode != 0
    assert done.stderr.startswith("Superset needs Python 3.11, and there is no python-of-nowhere: make dashboard ")


# The bundle against schema bi.


def test_datasets_are_views_with_all_their_columns(connection: db.Connection) -> None:
    of_bi = views(connection)
    for name, dataset in DATASETS.items():
        assert (dataset["schema"], dataset["table_name"]) == ("bi", name)
        columns = {one["column_name"]: one["type"].lower() for one in dataset["columns"] if "expression" not in one}
        assert columns == of_bi[name]


def test_every_metric_is_a_number_or_a_text(connection: db.Connection) -> None:
    """Reads as an analyst, on data that fills every view."""
    fill_every_view(connection)
    connection.execute("SET ROLE loracomp_analyst")
    for name, dataset in DATASETS.items():
        for metric in dataset["metrics"]:
            rows = connection.execute(f"SELECT {metric['expression']} AS metric FROM bi.{name}").fetchall()
            assert len(rows) == 1
            # On its first day, routing drifts from nothing.
            assert rows[0]["metric"] is not None or metric["metric_name"] == "drift"


@pytest.mark.parametrize("name", CHARTS)
def test_charts_name_what_their_dataset_has(name: str) -> None:
    chart = CHARTS[name]
    dataset, given = BY_UUID[chart["dataset_uuid"]], chart["params"]
    metrics = {metric["metric_name"] for metric in dataset["metrics"]}
    columns = {column["column_name"] for column in dataset["columns"]}
    asked = [given.get(key) for key in ("metric", "metrics", "metrics_b", "timeseries_limit_metric")]
    assert {one for value in asked for one in named(value)} <= metrics
    asked = [given.get(key) for key in ("x_axis", "groupby", "groupby_b", "groupbyRows", "groupbyColumns")]
    assert {one for value in asked for one in named(value)} <= columns
    if "day" in columns:
        assert any(one.get("subject") == "day" for one in given["adhoc_filters"]), "the filter of days must reach it"


def test_a_filter_that_knows_one_chart_says_so() -> None:
    for one in DASHBOARD["metadata"]["native_filter_configuration"]:
        for target in filter(None, one["targets"]):
            column = target["column"]["name"]
            knowing = [
                chart["slice_name"]
                for chart in CHARTS.values()
                if column in {known["column_name"] for known in BY_UUID[chart["dataset_uuid"]]["columns"]}
            ]
            assert knowing, column
            if len(knowing) == 1:
                assert knowing[0] in one["description"] and "(last chart)" in one["name"]
    last = DASHBOARD["position"]["GRID_ID"]["children"][-1]
    assert DASHBOARD["position"][last]["children"][-1] == "CHART-choices_by_tag"


def test_the_heat_map_shows_what_each_active_adapter_is_worth(connection: db.Connection) -> None:
    """An analyst sees a cell for each adapter and task, whose colour is the mean gain over the measured examples."""
    fill_every_view(connection)
    expected = connection.execute(
        "SELECT u.id, m.task_id, avg(u.gain) AS gain FROM loracomp.measurement AS m"
        " CROSS JOIN LATERAL unnest(m.adapter_ids, m.gains) AS u (id, gain)"
        " JOIN loracomp.adapter AS a ON a.id = u.id AND a.status = 'active' GROUP BY u.id, m.task_id"
    ).fetchall()
    chart, connection_as = CHARTS["transfer"]["params"], "SET ROLE loracomp_analyst"
    dataset = DATASETS["transfer"]
    (gain,) = (one["expression"] for one in dataset["metrics"] if one["metric_name"] == chart["metric"])
    (only,) = chart["adhoc_filters"]
    assert (only["subject"], only["operator"]) == ("adapter_status", "==")
    connection.execute(connection_as)
    cells = connection.execute(
        f"SELECT {chart['x_axis']}, {chart['groupby']}, {gain} AS gain FROM bi.transfer"
        f" WHERE {only['subject']} = %s GROUP BY 1, 2",
        [only["comparator"]],
    ).fetchall()
    assert sorted(cell["gain"] for cell in cells) == pytest.approx(sorted(row["gain"] for row in expected))
    assert len(cells) == len(expected) > 0


def test_the_dashboard_places_every_chart_and_filters_by_datasets_of_the_bundle() -> None:
    items = [item for item in DASHBOARD["position"].values() if isinstance(item, dict)]
    placed = [item["meta"]["uuid"] for item in items if item["type"] == "CHART"]
    assert sorted(placed) == sorted(chart["uuid"] for chart in CHARTS.values())
    for one in DASHBOARD["metadata"]["native_filter_configuration"]:
        for target in filter(None, one["targets"]):
            dataset = BY_UUID[target["datasetUuid"]]
            assert target["column"]["name"] in {column["column_name"] for column in dataset["columns"]}


# In a browser.


@pytest.fixture(scope="module")
def owner() -> Iterator[str]:
    """URL of a database with weeks of jobs, as its owner: FILLED, or one on a server of its own."""
    if given := os.environ.get("FILLED"):
        yield given
        return
    with place_for_a_server() as folder:
        url = embedded.start(folder)
        schema.initialize(url)
        with db.connect(url) as connection:
            fill(connection, jobs=20_000, weeks=8)
        yield url
        embedded.stop(folder)


@pytest.fixture(scope="module")
def superset(owner: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of a Superset that serves the dashboard, and its user's password."""
    home = tmp_path_factory.mktemp("superset")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = Path(os.environ.get("SUPERSET", ROOT / ".superset")).absolute() / "bin" / "python"
    command = [python, ROOT / "deploy" / "dashboards" / "superset" / "serve.py", "--embedded", owner, "--home", home]
    with (home / "log").open("w") as log:
        server = subprocess.Popen([*map(str, command), "--port", str(port)], stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(lambda: answers(f"{address}/health", server, home / "log"), seconds=300)
        yield address, (home / "password").read_text()
    finally:
        server.terminate()
        server.wait()


def answers(url: str, server: subprocess.Popen[bytes], log: Path) -> bool:
    assert server.poll() is None, log.read_text()[-3000:]
    try:
        return bool(urllib.request.urlopen(url).status == 200)
    except OSError:
        return False


def wait(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.5)


class Page:
    """The dashboard in a browser, with what the server answered its charts."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.answers: list[Any] = []
        self.drawn_at = 0.0
        page.on("response", lambda response: self.answers.append(response) if "/chart/data" in response.url else None)

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def settle(self) -> None:
        """Wait until no chart loads any more, and for what is animated."""
        holder = "[data-test=dashboard-component-chart-holder]"
        shown = f"{holder}:has([data-test=slice-container]), {holder}:has([role=alert])"

        def is_settled() -> bool:
            return self.count(shown) == len(CHARTS) and not self.count("[data-test=loading-indicator]")

        wait(is_settled, seconds=120)
        self.drawn_at = time.monotonic()
        time.sleep(2)
        wait(is_settled, seconds=120)

    def results(self) -> list[dict[str, Any]]:
        """Each query's result since the last call; all must have been answered."""
        answers, self.answers = self.answers, []
        failed = [(answer.status, answer.text()) for answer in answers if answer.status != 200]
        assert not failed
        return [result for answer in answers for result in answer.json()["result"]]


@pytest.fixture(scope="module")
def dashboard(superset: tuple[str, str]) -> Iterator[Page]:
    """Opened, and every chart settled; says how long that took."""
    from playwright.sync_api import sync_playwright

    address, password = superset
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        # As high as all of it: charts that are out of sight are not drawn.
        opened = browser.new_page(viewport={"width": 1680, "height": 3200})
        opened.goto(f"{address}/login/")
        opened.locator("[data-test=username-input]").fill("admin")
        opened.locator("[data-test=password-input]").fill(password)
        opened.locator("[data-test=login-button]").click()
        opened.wait_for_url("**/welcome/**")
        page = Page(opened)
        start = time.monotonic()
        opened.goto(f"{address}/superset/dashboard/loracomp/")
        page.settle()
        print(f"\nevery chart was drawn {page.drawn_at - start:.1f} s after the address was opened")
        yield page
        browser.close()


@pytest.mark.dashboard
def test_every_chart_shows_numbers(dashboard: Page) -> None:
    assert dashboard.count("[role=alert]") == 0
    assert dashboard.count(".ant-empty") == 0
    drawn = [chart for chart in CHARTS.values() if "table" not in chart["viz_type"]]
    still = [chart for chart in drawn if chart["viz_type"] == "big_number_total"]
    assert dashboard.count("canvas") == len(drawn) - len(still)
    results = dashboard.results()
    assert len(results) >= len(CHARTS)
    for result in results:
        numbers = [value for row in result["data"] for value in row.values() if isinstance(value, int | float)]
        is_of_a_filter = re.match(r"SELECT (\w+) AS \1 \nFROM", result["query"])
        assert any(numbers) or "accuracy_text" in str(result["data"]) or is_of_a_filter, result["query"]


@pytest.mark.dashboard
def test_picture(dashboard: Page, tmp_path: Path) -> None:
    from PIL import Image

    path = Path(os.environ.get("PICTURE") or tmp_path / "dashboard.png")
    boxes = [holder.bounding_box() for holder in dashboard.page.locator(".dashboard-component-chart-holder").all()]
    height = max(box["y"] + box["height"] for box in boxes) + 24
    dashboard.page.mouse.move(0, 0)
    dashboard.page.screenshot(path=path, clip={"x": 0, "y": 0, "width": 1680, "height": height})
    picture = Image.open(path).convert("RGB")
    picture.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < LARGEST_PICTURE


@pytest.mark.dashboard
def test_a_filter_changes_every_chart_that_knows_its_column(dashboard: Page) -> None:
    page = dashboard.page
    page.locator("[data-test=form-item-value] input[type=search]").first.click()
    page.keyboard.type("careful")
    page.locator(".ant-select-item-option", has_text=re.compile("^careful$")).click()
    page.locator("[data-test=filter-bar__apply-button]").click()
    dashboard.settle()
    assert dashboard.count("[role=alert]") == 0
    filtered = [result["query"] for result in dashboard.results() if "dim_" not in result["query"]]
    knowing = [one for one in CHARTS.values() if "policy" in str(BY_UUID[one["dataset_uuid"]]["columns"])]
    assert len({query for query in filtered if "policy IN ('careful')" in query}) >= len(knowing)


@pytest.mark.dashboard
def test_the_zipped_bundle_can_be_imported_by_hand(dashboard: Page, superset: tuple[str, str], tmp_path: Path) -> None:
    """By the same call as the page of dashboards makes; docs/bi.md has the command that zips."""
    archive = Path(shutil.make_archive(str(tmp_path / "loracomp"), "zip", BUNDLE.parent, BUNDLE.name))
    form = {"name": archive.name, "mimeType": "application/zip", "buffer": archive.read_bytes()}
    answer = dashboard.page.request.post(
        f"{superset[0]}/api/v1/dashboard/import/",
        multipart={"formData": form, "overwrite": "true"},
        headers={"Accept": "application/json"},
    )
    assert (answer.status, answer.json()) == (200, {"message": "OK"})


@pytest.mark.dashboard
def test_a_column_that_is_gone_shows_as_an_error_of_its_charts(dashboard: Page, owner: str) -> None:
    """What the other tests look for can be found."""
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("ALTER VIEW bi.cost_by_submitter RENAME COLUMN compute_s TO elsewhere")
        try:
            dashboard.page.reload()
            dashboard.settle()
            broken = [name for name, chart in CHARTS.items() if "compute_s" in json.dumps(chart)]
            assert dashboard.count("[data-test=dashboard-component-chart-holder]:has([role=alert])") == len(broken)
            with pytest.raises(AssertionError, match="compute_s"):
                dashboard.results()
        finally:
            connection.execute("ALTER VIEW bi.cost_by_submitter RENAME COLUMN elsewhere TO compute_s")

"""The Grafana dashboard asks for the metrics that workers expose, by labels that they have, and leaves none out."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily

from demo_fixtures import ROOT
from loracomp import metrics
from loracomp.worker.endpoint import DATABASE_METRICS, DatabaseSample

DASHBOARD = json.loads((ROOT / "deploy" / "dashboards" / "grafana" / "loracomp.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
SUFFIXES: dict[Any, tuple[str, ...]] = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket", "_sum", "_count")}


def exposed() -> Iterator[tuple[str, set[str]]]:
    """Return the names as Prometheus sees them, with their labels, including the labels that Prometheus adds to all
    metrics."""
    for metric in vars(metrics).values():
        for kind, suffixes in SUFFIXES.items():
            if isinstance(metric, kind):
                for suffix in suffixes:
                    yield f"{metric._name}{suffix}", {*metric._labelnames, *(["le"] if suffix == "_bucket" else [])}
    for name, family in DATABASE_METRICS.items():
        yield name + ("_total" if family.kind is CounterMetricFamily else ""), set(family.labels)
    sample = DatabaseSample()
    sample.update([])
    yield from ((metric.name, set()) for metric in sample.collect() if metric.name not in DATABASE_METRICS)


EXPOSED = dict(exposed())


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_labels_are_those_of_the_metrics(title: str, expression: str) -> None:
    names = re.findall(r"\bloracomp_\w+", expression)
    assert set(names) <= EXPOSED.keys()
    for name, matchers in re.findall(r"\b(loracomp_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)=~?\"", matchers)) <= {"instance", *EXPOSED[name]}
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        assert set(labels.split(", ")) <= {"instance"}.union(*(EXPOSED[name] for name in names))


def test_each_number_of_the_database_has_a_panel() -> None:
    shown = {name for _, expression in EXPRESSIONS for name in re.findall(r"\bloracomp_\w+", expression)}
    assert {name for name in EXPOSED if name.removesuffix("_total") in DATABASE_METRICS} <= shown


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])

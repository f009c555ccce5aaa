"""Alert rules: on metrics that exist, named in the docs, and firing where they should, by Prometheus' own tool."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from test_metrics import DOCS, ROW

FOLDER = Path(__file__).parents[2] / "deploy" / "alerts"
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def test_alerts_rest_on_metrics_of_the_contract() -> None:
    known = {name for name, _, _ in ROW.findall(DOCS.read_text())}
    for rule in RULES:
        used = set(re.findall(r"loracomp_\w+", rule["expr"]))
        assert used and used <= known, rule["alert"]


def test_the_docs_say_what_to_do_for_each() -> None:
    documented = set(re.findall(r"^\| `(Loracomp\w+)` \|", DOCS.read_text(), re.M))
    assert documented == {rule["alert"] for rule in RULES}


def test_each_fires_in_a_test_of_its_own() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    silent = {case["alertname"] for test in tests for case in test["alert_rule_test"] if not case.get("exp_alerts")}
    assert fired == silent == {rule["alert"] for rule in RULES}


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of Debian's package prometheus")
def test_promtool_agrees() -> None:
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *arguments], cwd=FOLDER, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

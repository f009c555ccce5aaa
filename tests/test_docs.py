"""Docs that run: each sh, sql and python block of README.md and docs/ is executed, in order, on the demo's database.

What psql is shown to print after a block of SQL must have the columns that it prints; numbers are those of the day.
"""

import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from demo_fixtures import ROOT, execute

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXECUTED = ("sh", "sql", "python")
# Outputs, pictures and files to copy; everything else in a fence is a command.
SHOWN = ("text", "json", "yaml", "jsonl")
OUTPUT = re.compile(r"\n\n```text\n(?P<body>.*?)^```", re.M | re.S)
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```", re.M | re.S)


class Block(NamedTuple):
    language: str
    body: str
    line: int
    reason: str | None
    shown: str  # of the output that stands right after it


def blocks(page: Path) -> list[Block]:
    source = page.read_text()
    return [
        Block(
            match["language"],
            match["body"],
            source[: match.start()].count("\n") + 1,
            match["reason"],
            shown["body"] if (shown := OUTPUT.match(source, match.end())) else "",
        )
        for match in FENCE.finditer(source)
    ]


def headers(printed: str) -> list[list[str]]:
    """Names of the columns of each table that psql printed."""
    lines = printed.splitlines()
    return [
        [name.strip() for name in above.split("|")] for above, line in pairwise(lines) if re.fullmatch(r"-[-+]*", line)
    ]


def test_the_names_of_columns_are_found() -> None:
    printed = " a | b\n---+---\n 1 | 2\n(1 row)\n\nINSERT 0 1\n  one\n-------\n - x\n(1 row)\n"
    assert headers(printed) == [["a", "b"], ["one"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.language in (*EXECUTED, *SHOWN), f"{page.name}:{block.line}: what is a {block.language!r} block?"
        assert block.reason is None or block.language in EXECUTED, f"{page.name}:{block.line}: nothing to run here"


@pytest.mark.model
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page: Path, demo: dict[str, str], tmp_path: Path) -> None:
    commands = {
        "sh": ["bash", "-euo", "pipefail", "-s"],
        "sql": ["loracomp", "db", "psql", "-v", "ON_ERROR_STOP=1", "-f", "-"],
        "python": [sys.executable, "-"],
    }
    (tmp_path / "docs").symlink_to(ROOT / "docs")  # evaluation.md reads the raw results beside it
    for block in blocks(page):
        if block.language in EXECUTED and block.reason is None:
            try:
                printed = execute(commands[block.language], demo, block.body, tmp_path)
            except AssertionError as failure:
                raise AssertionError(f"{page.name}:{block.line}: {failure}") from None
            if block.language == "sql" and (shown := headers(block.shown)):
                assert headers(printed)[-len(shown) :] == shown, f"{page.name}:{block.line}: its output is another now"


def test_the_table_of_faults_is_what_was_kept() -> None:
    command = [sys.executable, "tests/faults", "--runs", "0", "--keep", "docs/faults.jsonl", "--markdown"]
    table = execute(command, {**os.environ, "PYTHONPATH": ".:tests"})
    assert table in (ROOT / "docs" / "operations.md").read_text()

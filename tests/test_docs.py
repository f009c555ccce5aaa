"""Docs that run: each sh, sql and python block of README.md and docs/ is executed, in order, on the demo's database.

What psql is shown to print after a block of SQL must have the columns that it prints; the values are those of the
day. REWRITE=1 puts what was printed into the page, in place of the tables and of
explain_job's text that it shows.
"""

import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from demo_fixtures import ROOT, execute

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXECUTED = ("sh", "sql", "python")
# Outputs, pictures and files to copy; everything else in a fence is a command.
SHOWN = ("text", "json", "yaml", "jsonl", "mermaid")
OUTPUT = re.compile(r"\n\n```text\n(?P<body>.*?)^```", re.M | re.S)
RULE = re.compile(r"-[-+]*")
EXPLAINED = "Job "
LINK = re.compile(r"\]\(([^)\s:#]*)(?:#([^)\s]*))?\)")
MENTION = re.compile(r"\bdocs/[\w/]+\.md")
HEADING = re.compile(r"^#+ (.+)$", re.M)
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```", re.M | re.S)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Block(NamedTuple):
    language: str
    body: str
    line: int
    reason: str | None
    shown: str  # of the output that stands right after it
    at: slice  # of the page, where that stands


def blocks(page: Path) -> list[Block]:
    source = page.read_text()
    return [
        Block(
            match["language"],
            match["body"],
            source[: match.start()].count("\n") + 1,
            match["reason"],
            *(
                (shown["body"], slice(*shown.span("body")))
                if (shown := OUTPUT.match(source, match.end()))
                else ("", slice(0))
            ),
        )
        for match in FENCE.finditer(source)
    ]


def starts(lines: list[str]) -> list[int]:
    """Where each table that psql printed begins, with the names of its columns."""
    return [at for at, (_, line) in enumerate(pairwise(lines)) if RULE.fullmatch(line)]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def headers(printed: str) -> list[list[str]]:
    """Names of the columns of each table that psql printed."""
    lines = printed.splitlines()
    return [cells(lines[at]) for at in starts(lines)]


def part_to_show(printed: str, shown: str) -> str | None:
    """The part of psql's output that the page shows: as many of the last tables as the page has, or an explanation.
    None if the page shows neither."""
    lines = [line.rstrip() for line in printed.splitlines()]
    if shown.startswith(EXPLAINED):
        first = next(at for at, line in enumerate(lines) if line.startswith(EXPLAINED))
    elif tables := headers(shown):
        first = starts(lines)[-len(tables)]
    else:
        return None
    return "\n".join(lines[first:]).rstrip("\n") + "\n"


def test_the_names_of_columns_are_found() -> None:
    printed = " a | b\n---+---\n 1 | 2\n(1 row)\n\nINSERT 0 1\n  one\n-------\n - x\n(1 row)\n"
    assert headers(printed) == [["a", "b"], ["one"]]


def test_what_is_shown_is_written_anew() -> None:
    printed = "CREATE ROLE\n dimensions  \n------------\n        832\n(1 row)\n\n"
    shown = " dimensions\n------------\n        768\n(1 row)\n"
    assert part_to_show(printed, shown) == " dimensions\n------------\n        832\n(1 row)\n"
    assert (
        part_to_show("Output format is unaligned.\nJob 2: succeeded.\n\n", "Job 1: failed.\n") == "Job 2: succeeded.\n"
    )
    assert part_to_show("INSERT 0 1\n", "INSERT 0 1\n") is None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.language in (*EXECUTED, *SHOWN), f"{name(page)}:{block.line}: what is a {block.language!r} block?"
        assert block.reason is None or block.language in EXECUTED, f"{name(page)}:{block.line}: nothing to run here"


def anchors(page: Path) -> set[str]:
    """What links to the page's headings may say after #, as GitHub makes it from their words."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(prose(page))}


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def test_anchors_are_the_words_of_headings(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# INSERT INTO `loracomp.job`\n```sh\n# a comment\n```\n## a_b, c: d\n")
    assert anchors(page) == {"insert-into-loracompjob", "a_b-c-d"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(prose(page)):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {path}, which is not there"
        assert not anchor or anchor in anchors(target), f"{name(page)} links to {path}#{anchor}: no such heading"


def test_sources_name_pages_that_exist() -> None:
    """In comments, errors and hints."""
    kinds = ("Makefile", "[a-z]*/**/*.py", "[a-z]*/**/*.sql", "[a-z]*/**/*.yml", "*.yml")
    files = [file for kind in kinds for file in ROOT.glob(kind)]
    named = {page: name(file) for file in files for page in MENTION.findall(file.read_text())}
    assert "docs/sql.md" in named
    assert {page: file for page, file in named.items() if not (ROOT / page).exists()} == {}


@pytest.mark.docs
@pytest.mark.model
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_run(page: Path, demo: dict[str, str], tmp_path: Path) -> None:
    commands = {
        "sh": ["bash", "-euo", "pipefail", "-s"],
        "sql": ["loracomp", "db", "psql", "-v", "ON_ERROR_STOP=1", "-f", "-"],
        "python": [sys.executable, "-"],
    }
    written = []
    for block in blocks(page):
        if block.language in EXECUTED and block.reason is None:
            try:
                printed = execute(commands[block.language], demo, block.body, tmp_path)
            except AssertionError as failure:
                raise AssertionError(f"{name(page)}:{block.line}: {failure}") from None
            if block.language != "sql":
                continue
            if os.environ.get("REWRITE"):
                written.append((block.at, part_to_show(printed, block.shown)))
            elif shown := headers(block.shown):
                changed = f"{name(page)}:{block.line}: its output is another now; REWRITE=1 writes it into the page"
                assert headers(printed)[-len(shown) :] == shown, changed
    rewrite(page, written)


def rewrite(page: Path, written: list[tuple[slice, str | None]]) -> None:
    source = page.read_text()
    for at, body in reversed(written):  # from the end, so that the places before hold
        if body is not None:
            source = source[: at.start] + body + source[at.stop :]
    if written:
        page.write_text(source)

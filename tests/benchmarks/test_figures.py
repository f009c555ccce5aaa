"""`make figures`: tables are put between their marks, and `--check` says which page has others than were kept."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import figures
from benchmarks.pages import as_markdown, filled

PAGE = "Before.\n\n<!-- table: known -->\nold\n<!-- end -->\n\nAfter.\n"


def test_a_table_stands_between_its_marks() -> None:
    table = as_markdown([("what", "n"), ("a", "1,000"), ("b", "7 %")])
    assert table == "| what | n |\n| --- | ---: |\n| a | 1,000 |\n| b | 7 % |\n"
    page = filled(PAGE, {"known": table, "of another page": "x\n"})
    assert page == PAGE.replace("old\n", table)
    assert filled(page, {"known": table}) == page
    with pytest.raises(KeyError, match="known"):
        filled(PAGE, {})


def test_check_names_the_page_and_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, other = tmp_path / "figures.md", tmp_path / "other.md"
    page.write_text(PAGE)
    other.write_text("No table.\n")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "PAGES", (page, other))
    monkeypatch.setattr(figures, "all_tables", lambda: {"known": "new\n"})
    app = figures.typer.Typer()
    app.command()(figures.main)
    checked = CliRunner().invoke(app, ["--check"])
    assert (checked.exit_code, page.read_text()) == (1, PAGE)
    assert checked.output == "figures.md: its tables differ from the stored results: run make figures\n"
    assert CliRunner().invoke(app, []).exit_code == 0
    assert (page.read_text(), other.read_text()) == (PAGE.replace("old", "new"), "No table.\n")
    assert (CliRunner().invoke(app, ["--check"]).exit_code, page.read_text().count("old")) == (0, 0)

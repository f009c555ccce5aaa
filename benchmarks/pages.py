"""Fills tables in Markdown pages; each table stands between `<!-- table: NAME -->` and `<!-- end -->`."""

import re
from collections.abc import Mapping, Sequence

MARKED = re.compile(r"(?P<head><!-- table: (?P<name>[\w-]+) -->\n).*?(?P<foot><!-- end -->)", re.S)
NUMBER = re.compile(r"[-+]?[\d.,]*\s*%?")


def filled(source: str, tables: Mapping[str, str]) -> str:
    """Return the page with each table between its marks. Raises KeyError if the page has marks with the name of an
    unknown table."""
    return MARKED.sub(lambda match: match["head"] + tables[match["name"]] + match["foot"], source)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table with columns of numbers aligned right; the first row is its header."""
    if len(rows) < 2:
        return "(nothing measured yet)\n"
    header, *lines = rows
    columns = list(zip(*lines, strict=True))
    marks = ["---:" if all(NUMBER.fullmatch(cell) for cell in column) else "---" for column in columns]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, marks, *lines))

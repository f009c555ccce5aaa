"""Loads the named statements of queries.sql: all statements that Python sends, except COPY."""

import re
from pathlib import Path


def named_statements(path: Path) -> dict[str, str]:
    """The statements of a file by their names, with psycopg's %(name)s placeholders."""
    blocks = re.split(r"^-- name: (\w+)\n", path.read_text(), flags=re.MULTILINE)
    return {name: _without_comments(body) for name, body in zip(blocks[1::2], blocks[2::2], strict=True)}


def _without_comments(body: str) -> str:
    # psycopg would mistake a % in a comment for a placeholder.
    return re.sub(r"^\s*--.*\n", "", body, flags=re.MULTILINE).strip()


QUERIES = named_statements(Path(__file__).with_name("queries.sql"))
"""Maps a name to its statement."""

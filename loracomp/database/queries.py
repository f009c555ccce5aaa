"""Loads the named statements of queries.sql: all statements that Python sends, except COPY."""

import re
from pathlib import Path


def _load() -> dict[str, str]:
    text = Path(__file__).with_name("queries.sql").read_text()
    blocks = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return {name: _without_comments(body) for name, body in zip(blocks[1::2], blocks[2::2], strict=True)}


def _without_comments(body: str) -> str:
    # psycopg would take a % in a comment for a placeholder.
    return re.sub(r"^\s*--.*\n", "", body, flags=re.MULTILINE).strip()


QUERIES = _load()
"""Maps a name to its statement, with psycopg's %(name)s placeholders."""

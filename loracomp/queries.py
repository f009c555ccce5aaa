"""The named statements of queries.sql: every statement that Python sends, COPY apart."""

import re
from importlib.resources import files


def _load() -> dict[str, str]:
    blocks = re.split(r"^-- name: (\w+)\n", files("loracomp").joinpath("queries.sql").read_text(), flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(blocks[1::2], blocks[2::2], strict=True)}


QUERIES = _load()
"""Name -> statement, with psycopg's %(name)s placeholders."""

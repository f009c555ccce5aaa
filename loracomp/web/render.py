"""Renders the templates, and escapes users' texts, so that they contain no markup and no control characters."""

import re
import shlex
from base64 import b64encode
from datetime import datetime
from hashlib import sha256
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.cells import cell_len, set_cell_size

LONGEST = 20_000
"""Maximum number of characters of a text that are shown. A longer text is cut, and its length is shown."""
_OBEYED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
"""Control characters, characters that change the direction of text, and characters that XML forbids."""


def harmless(text: str) -> str:
    """The text, cut after LONGEST characters, with � for each character that a browser would act on."""
    more = f" … ({len(text):,} characters)" if len(text) > LONGEST else ""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text[:LONGEST]) + more


def fit(text: object, width: int) -> str:
    """Return the text on one line, cut to `width` columns; a wide character takes two."""
    line = " ".join(str("–" if text is None else text)[: 4 * width].split())
    return line if cell_len(line) <= width else f"{set_cell_size(line, width - 1).rstrip()}…"


def _shown(value: Any) -> Any:
    match value:
        case None:
            return "–"
        case Markup():
            return value
        case str():
            return harmless(value)
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S %Z}"
    return value


def _digits(value: float | None, digits: int = 2, sign: str = "") -> str:
    return "–" if value is None else f"{round(value, digits) + 0:{sign},.{digits}f}"  # + 0: no -0.00


def _of(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _minutes(minutes: float) -> str:
    """Write a duration in the largest unit that fits into it at least twice."""
    for unit, length in (("days", 1440), ("hours", 60), ("minutes", 1)):
        if minutes >= 2 * length:
            return f"{minutes / length:,.0f} {unit}"
    return f"{60 * minutes:.0f} s"


def _literal(text: str) -> str:
    """The text as a literal of SQL."""
    return "'{}'".format(text.replace("'", "''"))


_templates = Environment(
    loader=PackageLoader("loracomp.web"),
    autoescape=True,
    finalize=_shown,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.do"],
    auto_reload=False,  # an upgrade replaces the files under a running server, whose code may not fit them
)
_templates.filters |= {"fit": fit, "digits": _digits, "count": "{:,}".format, "of": _of, "minutes": _minutes}
_templates.filters |= {"shell": shlex.quote, "literal": _literal}


def load_all() -> None:
    """Load every template now, so that none is read later, when a newer release may lie on the disk."""
    for name in _templates.list_templates(extensions=["html"]):
        _templates.get_template(name)


def source(name: str) -> str:
    """The text of a template or a style sheet."""
    assert _templates.loader
    return _templates.loader.get_source(_templates, name)[0]


def render(name: str, /, **values: Any) -> str:
    """Render a template with these values."""
    return _templates.get_template(name).render(**values)


def self_contained(name: str, /, **values: Any) -> str:
    """Render a template as one file that loads nothing. Its content security policy allows only its own style."""
    style = source("picture.css") + source("style.css")
    digest = b64encode(sha256(style.encode()).digest()).decode()
    return render(name, layout="file.html", style=Markup(style), digest=digest, **values)  # noqa: S704 - our own file

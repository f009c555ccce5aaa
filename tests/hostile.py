"""Two hundred texts that try to become markup, to turn the direction of a line, or to be too long."""

# ruff: noqa: E501
_MARKUP = [
    "<script>alert(1)</script>", "</script><script>alert(1)//", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>",
    "</pre></bdi></td></table><h1>mine</h1>", "\"><b>", "'><b>", "\" onfocus=alert(1) autofocus x=\"", "' onclick='alert(1)",
    "<!--", "-->", "<![CDATA[", "]]>", "</title><title>", "</style><style>*{display:none}</style>", "</svg><p>", "</desc></svg>",
    "&lt;b&gt;", "&#60;b&#62;", "&amp;", "&", "<", ">", "\"", "'", "`", "{{ 7 * 7 }}", "{% raw %}", "{# #}", "${7*7}", "%s %(id)s",
    "javascript:alert(1)", "data:text/html,<b>", "//evil.example/", "\\\\evil.example\\", "<a href=javascript:alert(1)>",
    "<base href=//evil.example/>", "<meta http-equiv=refresh content=0>", "<form action=/logout method=post>",
    "<input name=token>", "<iframe srcdoc='<b>'>", "<math><mtext><b>", "<template><b>", "<x\x00y>", "<\tscript>",
]  # fmt: skip
_CHARACTERS = [
    "\x01", "\x07", "\x08", "\x0b", "\x0c", "\x1b[31m", "\x7f", "\x85", "\x9b", "\u061c", "\u200e", "\u200f", "\u202a", "\u202b",
    "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069", "\ufffe", "\uffff", "\ufeff", "\u2028", "\u2029", "\u00ad",
    "שלום", "مرحبا", "日本語", "👩‍👩‍👧", "e\u0301" * 40, "Z̡͖̜̰̣̠̟a̛l̷g̶o̸",
]  # fmt: skip
_SHAPES = ("{}", "words {} words", "{}{}", "line\n{}\tend")
_LONG = ["a" * 1_000_000, "<b>" * 300_000, "\u202e" * 1_000_000, "日" * 333_000, "a b " * 250_000]
HOSTILE = [shape.replace("{}", text) for shape in _SHAPES for text in _MARKUP + _CHARACTERS][:195] + _LONG
assert len(HOSTILE) == 200

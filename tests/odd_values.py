"""Hostile values of every type that public functions, tables and commands take, for tests and trials."""

import json
import re
from typing import Any

from hypothesis import strategies as st

from loracomp.database import tables

HELPERS = re.compile(
    r"loracomp\.(explain_(?!job)\w+|texts_\w+|check_(?!health)\w+|shorten|masked_\w+|may_read|composition_text"
    r"|seconds_between|compute_seconds|relative_share)"
)
"""What views and functions call with the caller's rights. It is not public, so its refusals need name no field."""
INJECTIONS = (
    "'; DROP TABLE loracomp.job; --",
    '"; SELECT pg_sleep(100); --',
    "$$; RESET ROLE; $$",
    "%s %I %L %n",
    "\\'; \\x00",
    "${jndi:x}",
    "../../etc/passwd",
    "pg_catalog.pg_authid",
    "loracomp_admin",
)
ODD = (
    "",
    " ",
    "\u00a0",
    "\u202eabc",
    "\ufeff",
    "e\u0301" * 500,
    "\U0001f600" * 300,
    "\x01\x7f",
    "\u0130",
    "NaN",
    "null",
    "-1",
    "{}",
    "{a,b",
    "[]",
    "x" * 1_000_001,
    "ab " * 3000,
    "rte",
    "mnli",
    "default",
    "own_task",
    "tiny",
    "validation",
    "rte@1",
)
texts = st.one_of(
    st.sampled_from(ODD + INJECTIONS),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40),
)
integers = st.sampled_from((0, 1, 2, -1, 3, 7, 100, 32767, -(2**31), 2**31 - 1))
bigs = st.one_of(integers, st.sampled_from((2**63 - 1, -(2**63), 10**12)))
floats = st.sampled_from((0.0, -0.0, 1.0, 0.5, -1.0, 1e-310, 1e308, -1e308, float("nan"), float("inf"), float("-inf")))
intervals = st.sampled_from(("0", "1 minute", "-1 day", "178000000 years", "-178000000 years", "1 microsecond"))
times = st.sampled_from(("now", "infinity", "-infinity", "294276-12-31", "4713-01-01 BC", "2024-02-29"))
documents = st.recursive(
    st.one_of(st.none(), st.booleans(), bigs, st.floats(allow_nan=False, allow_infinity=False), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
jsons = st.one_of(
    documents.map(json.dumps),
    st.just("[" * 400 + "]" * 400),
    st.sampled_from((400, 5000)).map(lambda depth: '{"a":' * depth + "1" + "}" * depth),
)
vectors = st.sampled_from(
    ["[" + ",".join([number] * size) + "]" for number in ("0", "1", "1e38", "-1e-40") for size in (1, 832, 3)]
)


def lists(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return lists that are short, long, two-dimensional, or contain nulls."""
    short = st.lists(st.one_of(of, st.none()), max_size=4)
    nested = st.lists(of, min_size=1, max_size=1).map(lambda one: [list(one), list(one)])
    return st.one_of(short, nested, of.map(lambda one: [one] * 5000))


def short_lists(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(of, max_size=3)


policies = st.fixed_dictionaries(
    {
        "k": integers, "routing_temperature": floats, "routing_top_p": floats, "max_adapters": integers,
        "min_similarity": floats, "weighting": st.sampled_from(("similarity", "uniform", "")),
    }
).map(lambda row: "({})".format(",".join(str(row.get(name, "")) for name in list(tables.policy.c.keys()))))  # fmt: skip
"""Rows as text, null where no value is given."""

KINDS = {
    "text": texts,
    "name": texts.map(lambda text: text[:60]),
    "integer": integers,
    "bigint": bigs,
    "smallint": st.sampled_from((0, 1, 2, -1, 32767)),
    "double precision": floats,
    "boolean": st.booleans(),
    "interval": intervals,
    "int4range": st.sampled_from(("empty", "(,)", "[1,1]", "[0,1000000)", "(-2147483648,2147483647)", "[5,)")),
    "timestamp with time zone": times,
    "jsonb": jsons,
    "vector": vectors,
    "text[]": lists(texts.map(lambda text: text[:2000])),
    "integer[]": lists(integers),
    "bigint[]": lists(bigs),
    "double precision[]": lists(floats),
    "real[]": lists(st.sampled_from((0.0, -0.0, 1.0, 0.5, -1.0, 1e30, float("nan"), float("inf"), float("-inf")))),
    "boolean[]": lists(st.booleans()),
    "vector[]": short_lists(vectors),
    "json": jsons,
    "halfvec[]": short_lists(st.sampled_from(("[0]", "[1,2,3]"))),
    "jsonb[]": short_lists(jsons),
    "loracomp.policy": policies,
    "loracomp.route_trace[]": short_lists(
        st.sampled_from(("(,,,,,,,,,,,,,,,)", '({1},{a},{NaN},,,,{},,,,"{}",x,7,{1},t,{1})'))
    ),
    "loracomp.predicted[]": short_lists(
        st.sampled_from(
            ("(,,,,,,,,,,,,,,)", '(1,1,x,1,{NaN},{-1},{},{2},{1},-1,7,stop,d,0,"{}")', '(1,1,,,,,,,,,,y,,,"[]")')
        )
    ),
    "loracomp.measured[]": short_lists(
        st.sampled_from(("(,,,,,,,,,)", "(1,1,none,NaN,t,f,{1},{NaN},{t},{})", '(1,1,x,0,t,t,"{1,2}",{0.5},{},[])'))
    ),
    "regtype": st.sampled_from(("-", "bigint", "text", "bytea", "loracomp.job", "pg_catalog.anyelement", "integer[]")),
    "oid": st.sampled_from((0, 1, 1259, 2**32 - 1)),
    "regclass": st.sampled_from(("-", "loracomp.job", "loracomp.job_result", "pg_catalog.pg_authid")),
    "bytea[]": short_lists(st.binary(max_size=40)),
}

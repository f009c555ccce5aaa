"""Overloads of the functions and operators that our SQL uses, Postgres's and pgvector's, as a login plants them.

A call goes to the overload whose argument types match exactly, wherever its schema stands in the search path, if the
built-in one needs an implicit conversion. So each is planted for the types that are converted implicitly to its own.
What is used is read from the catalogue of an installed database, and from the statements of Python.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import psycopg

from loracomp.database.queries import QUERIES

# Expressions, which were bound when they were made, and bodies, which are bound at each call. pg_depend doesn't say
# which built-in objects they use.
EXPRESSIONS = """
WITH ours AS (SELECT oid FROM pg_namespace WHERE nspname IN ('loracomp', 'loracomp_parts', 'bi')),
relation AS (SELECT c.oid FROM pg_class AS c JOIN ours ON ours.oid = c.relnamespace)
SELECT prosqlbody::text FROM pg_proc WHERE pronamespace IN (TABLE ours) AND prosqlbody IS NOT NULL
UNION ALL SELECT ev_action::text || ev_qual::text FROM pg_rewrite WHERE ev_class IN (TABLE relation)
UNION ALL SELECT adbin::text FROM pg_attrdef WHERE adrelid IN (TABLE relation)
UNION ALL SELECT conbin::text FROM pg_constraint WHERE connamespace IN (TABLE ours) AND conbin IS NOT NULL
UNION ALL SELECT concat(indexprs, indpred) FROM pg_index WHERE indexrelid IN (TABLE relation)
UNION ALL SELECT concat(polqual, polwithcheck) FROM pg_policy WHERE polrelid IN (TABLE relation)
UNION ALL SELECT tgqual::text FROM pg_trigger WHERE tgrelid IN (TABLE relation) AND tgqual IS NOT NULL
"""
BODIES = """
SELECT prosrc FROM pg_proc
WHERE pronamespace::regnamespace::text IN ('loracomp', 'loracomp_parts', 'bi') AND prosqlbody IS NULL
"""
FUNCTION_IDS = re.compile(r":(?:funcid|aggfnoid|winfnoid) (\d+)")
OPERATOR_IDS = re.compile(r":opno (\d+)|:opnos \(o ([\d ]+)\)")
CALLS = re.compile(r"\b([a-z_][a-z0-9_]*)\s*\(")
OPERATORS = re.compile(r"(?<![-+*/<>=~!@#%^&|`?])[-+*/<>=~!@#%^&|`?]+")

SCALARS = (
    "boolean", "text", "name", "character varying", "character", '"char"', "smallint", "integer", "bigint", "real",
    "double precision", "numeric", "interval", "timestamp with time zone", "timestamp without time zone", "date",
    "jsonb", "oid", "regclass", "regtype", "regrole", "regnamespace", "regproc", "regprocedure", "xid8", "bytea",
    "uuid", "vector", "halfvec",
)  # fmt: skip
ARRAYS = tuple(f"{element}[]" for element in SCALARS[:12])
FEW = ("text", "name", "integer", "bigint", "double precision")
"""Argument types for which overloads of variadic functions, such as format, are planted."""

SCALAR_LIKE = ("anyelement", "anynonarray", "anycompatible", "anycompatiblenonarray")
ARRAY_LIKE = ("anyarray", "anycompatiblearray")
ONLY_EQUAL = ("anyelement", "anynonarray")

SIGNATURES = """
SELECT p.proname, p.prokind::text, p.proretset, p.prorettype::regtype::text,
    CASE WHEN a.aggkind <> 'n' THEN a.aggnumdirectargs END,
    ARRAY(
        SELECT format('OUT %%I %%s', coalesce(nullif(p.proargnames[n], ''), 'o' || n), t::regtype)
        FROM unnest(p.proallargtypes, p.proargmodes) WITH ORDINALITY AS u (t, mode, n)
        WHERE mode IN ('o', 't') ORDER BY n
    ),
    ARRAY(SELECT t::regtype::text FROM unnest(p.proargtypes) WITH ORDINALITY AS u (t, n) ORDER BY n),
    p.provariadic::regtype::text, p.pronargdefaults
FROM pg_proc AS p LEFT JOIN pg_aggregate AS a ON a.aggfnoid = p.oid
WHERE p.pronamespace::regnamespace::text IN ('pg_catalog', 'public') AND p.proname = ANY (%s) AND NOT (
    p.proargtypes::oid[] || p.prorettype && ARRAY['internal', 'cstring', 'trigger', 'event_trigger']::regtype[]::oid[]
)
UNION ALL
SELECT o.oprname, 'o', FALSE, o.oprresult::regtype::text, NULL, '{}',
    ARRAY(SELECT t::regtype::text FROM unnest(ARRAY[o.oprleft, o.oprright]) AS t WHERE t <> 0), '-', 0
FROM pg_operator AS o
WHERE o.oprnamespace::regnamespace::text IN ('pg_catalog', 'public') AND o.oprname = ANY (%s) AND o.oprright <> 0
"""
CONVERSIONS = "SELECT castsource::regtype::text, casttarget::regtype::text FROM pg_cast WHERE castcontext = 'i'"


class Used(NamedTuple):
    """Names of the functions and operators that our SQL uses."""

    functions: set[str]
    operators: set[str]


def used(connection: psycopg.Connection[Any]) -> Used:
    """The functions that an installation's expressions and function bodies, and Python's statements, use."""
    with connection.cursor(row_factory=psycopg.rows.scalar_row) as cursor:
        expressions = "\n".join(cursor.execute(EXPRESSIONS).fetchall())
        texts = "\n".join([*cursor.execute(BODIES).fetchall(), *QUERIES.values()])
        function_ids = {int(found) for found in FUNCTION_IDS.findall(expressions)}
        operator_ids = {int(each) for pair in OPERATOR_IDS.findall(expressions) for each in " ".join(pair).split()}
        functions = cursor.execute(
            "SELECT DISTINCT proname::text FROM pg_proc"
            " WHERE pronamespace::regnamespace::text IN ('pg_catalog', 'public')"
            " AND (oid = ANY (%s) OR proname = ANY (%s))",
            [list(function_ids), list(set(CALLS.findall(texts)))],
        )
        names = set(functions.fetchall())
        operators = cursor.execute(
            "SELECT DISTINCT oprname::text FROM pg_operator"
            " WHERE oprnamespace::regnamespace::text IN ('pg_catalog', 'public')"
            " AND (oid = ANY (%s) OR oprname = ANY (%s))",
            [list(operator_ids), list(set(OPERATORS.findall(texts)))],
        )
        return Used(names, set(operators.fetchall()))


PREPARE = """
CREATE SEQUENCE public.planted_ran;
GRANT USAGE ON SEQUENCE public.planted_ran TO public;
SET check_function_bodies = off;
"""
# Whoever calls it. What it counts stays, should somebody catch the error.
BODY = """LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    stack text;
BEGIN
    PERFORM pg_catalog.nextval('public.planted_ran');
    GET DIAGNOSTICS stack = PG_CONTEXT;
    RAISE EXCEPTION 'a planted function runs as %: %', current_user, stack;
END
$$"""


def plant(connection: psycopg.Connection[Any], names: Used) -> int:
    """Create the overloads with this connection's rights; returns how many."""
    made = list(overloads(connection, names))
    connection.execute(PREPARE)
    for start in range(0, len(made), 2000):
        connection.execute(";\n".join(made[start : start + 2000]).encode())
    return len(made)


def overloads(connection: psycopg.Connection[Any], names: Used) -> Iterator[str]:
    """Statements that create the overloads."""
    conversions: dict[str, list[str]] = defaultdict(list)
    for source, target in connection.execute(CONVERSIONS):
        if source in SCALARS and source != target:
            conversions[target].append(source)
    built_in = connection.execute(SIGNATURES, [list(names.functions), list(names.operators)]).fetchall()
    taken = {(each[0], tuple(each[6])) for each in built_in}
    for name, kind, set_of, result, direct, outs, arguments, variadic, defaults in built_in:
        for types, chosen in calls(arguments, variadic, defaults, conversions):
            made = chosen.get(result, result)
            if (name, types) not in taken and not made.startswith("any"):
                taken.add((name, types))
                shown = list(types)
                if variadic == '"any"' and types[-1].endswith("[]"):
                    shown[-1] = f"VARIADIC {types[-1]}"
                yield created(name, kind, shown, f"SETOF {made}" if set_of else made, direct, outs, len(taken))


def calls(
    arguments: Sequence[str], variadic: str, defaults: int, conversions: Mapping[str, Sequence[str]]
) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """The types with which a built-in function can be called, and which types then stand for its polymorphic ones."""
    forms = [list(arguments[:given]) for given in range(len(arguments) - defaults, len(arguments) + 1)]
    if variadic != "-":
        forms = [[*arguments[:-1], *[variadic] * more] for more in range(1, 5)]
    for form in forms:
        for element in SCALARS if any(argument.startswith("any") for argument in form) else ["-"]:
            choices = [convertible(argument, element, conversions, len(form)) for argument in form]
            for types in product(*choices):
                yield types, dict.fromkeys(SCALAR_LIKE, element) | dict.fromkeys(ARRAY_LIKE, f"{element}[]")


def convertible(argument: str, element: str, conversions: Mapping[str, Sequence[str]], many: int) -> Sequence[str]:
    """Types that an argument may have; `element` is what stands for a polymorphic type."""
    if argument == '"any"':
        return [*SCALARS, *ARRAYS] if many == 1 else SCALARS[:12] if many == 2 else FEW
    if argument in ARRAY_LIKE:
        return [f"{element}[]"]
    base = element if argument in SCALAR_LIKE else argument
    return [base, *conversions[base]] if many < 4 and argument not in ONLY_EQUAL else [base]


def created(
    name: str, kind: str, types: Sequence[str], result: str, direct: int | None, outs: Sequence[str], number: int
) -> str:
    """The statements for one overload. Its own name is in the stack that it raises."""
    listed = ", ".join(types)
    if kind == "o":
        sides = ("RIGHTARG",) if len(types) == 1 else ("LEFTARG", "RIGHTARG")
        given = ", ".join(f"{side} = {type_}" for side, type_ in zip(sides, types, strict=True))
        function = f"public.planted_{number}"
        return (
            f"CREATE FUNCTION {function}({listed}) RETURNS {result} {BODY}; "
            f"CREATE OPERATOR public.{name} ({given}, FUNCTION = {function})"
        )
    if kind == "f":
        return f'CREATE FUNCTION public."{name}"({", ".join([*types, *outs])}) RETURNS {result} {BODY}'
    # A window function is taken by an aggregate of its name too.
    step = f"public.planted_{number}"
    steps = ", ".join([result, *types[direct or 0 :]])
    shown = listed if direct is None else f"{', '.join(types[:direct])} ORDER BY {', '.join(types[direct:])}"
    return (
        f"CREATE FUNCTION {step}({steps}) RETURNS {result} {BODY}; "
        f'CREATE AGGREGATE public."{name}"({shown}) (SFUNC = {step}, STYPE = {result})'
    )

"""Hostile values at each boundary: what a role can call, read, write and set, while somebody else is served.

What can be reached is read from the catalog. Statements change the session's settings too, and some stay in
transactions that are left open while Bob is served.
"""

from random import Random

from psycopg import sql
from psycopg.conninfo import make_conninfo

from intruder import PATIENCE, Intruder
from leaks import leaks
from loracomp.database import connections as db
from readers import readers
from rounds import Round
from town import ATTACKERS, ROLES, SECRET, Ground, Town, login, town_of

STATEMENTS = 200
SERVED_EVERY = 50
ODD_SETTINGS = {
    "client_encoding": ("LATIN1", "SQL_ASCII", "EUC_JP"),
    "standard_conforming_strings": ("off",),
    "quote_all_identifiers": ("on",),
    "default_transaction_isolation": ("repeatable read", "serializable"),
    "extra_float_digits": ("-15",),
    "datestyle": ("SQL, DMY", "German"),
    "intervalstyle": ("sql_standard", "iso_8601"),
    "timezone": ("Asia/Kathmandu",),
    "bytea_output": ("escape",),
    "xmloption": ("document",),
    "transform_null_equals": ("on",),
    "array_nulls": ("off",),
    "search_path": ("public, pg_temp, pg_catalog", ""),
    "plpgsql.variable_conflict": ("use_variable",),
    "enable_indexscan": ("off",),
    "jit_above_cost": ("0",),
}
"""Settings that an administrator may have given to the worker's role, or to the database."""


def boundaries(ground: Ground, seed: int, size: float = 1) -> Round:
    """A login of one role sends statements. Meanwhile Bob must be served every so often, and in the end nothing may be
    damaged."""
    name = ATTACKERS[seed % len(ATTACKERS)]
    with town_of(ground) as town:
        odd = settle_oddly(town, Random(seed))
        made = Round(failures=[f"before the attack, with {odd}: {line}" for line in town.is_served()])
        intruder = Intruder(make_conninfo(town.url, user=login(name), options=PATIENCE), ROLES[name], seed, SECRET)

        def is_served() -> bool:
            if lines := town.is_served():
                made.failures += lines
                made.failures += [f"{name} had sent: {each}" for each in intruder.recent]
            return not made.failures

        intruder.attack(round(size * STATEMENTS), SERVED_EVERY, is_served)
        if not made.failures:
            made.failures += [*town.is_served(), *leaks(town, Random(seed)), *town.is_whole()]
            made.failures += readers(town, Random(seed))
            if ROLES[name] != "worker":  # who can delay it, as docs/security.md says
                made.failures += town.rescues()
        made.failures += [f"{name} was told: {line}" for line in intruder.broken]
        made.counts.update(
            statements=intruder.said.total(), done=intruder.said["ok"], served=town.counts["served"],
            asked=town.counts["asked"], commands=town.counts["commands"], pages=town.counts["pages"],
            replays=town.counts["replays"], rescued=town.counts["rescued"], rounds=1,
        )  # fmt: skip
    return made


def settle_oddly(town: Town, chosen: Random) -> dict[str, str]:
    """Give the worker's role and the database odd settings, and start the worker again; returns the settings."""
    odd = {name: chosen.choice(ODD_SETTINGS[name]) for name in chosen.sample(sorted(ODD_SETTINGS), 4)}
    with db.connect(town.url, vectors=False) as owner:
        role = sql.SQL("ROLE {}").format(sql.Identifier(login("walter")))
        database = sql.SQL("DATABASE {}").format(sql.Identifier(owner.info.dbname))
        for name, value in odd.items():
            whose = chosen.choice((role, database))
            setting = sql.SQL(".").join(map(sql.Identifier, name.split(".")))
            owner.execute(sql.SQL("ALTER {} SET {} = {}").format(whose, setting, value))
    town.walter.leave()
    town.walter.hire()
    return odd

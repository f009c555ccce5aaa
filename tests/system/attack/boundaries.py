"""Hostile values at each boundary: what a role can call, read, write and set, while somebody else is served.

What can be reached is read from the catalog. Statements change the session's settings too, and some stay in
transactions that are left open while Bob is served.
"""

from psycopg.conninfo import make_conninfo

from intruder import PATIENCE, Intruder
from rounds import Round
from town import ATTACKERS, ROLES, Ground, login, town_of

STATEMENTS = 200
SERVED_EVERY = 50


def boundaries(ground: Ground, seed: int, size: float = 1) -> Round:
    """A login of one role sends statements; every so often Bob has to be served, and in the end all has to be whole."""
    name = ATTACKERS[seed % len(ATTACKERS)]
    with town_of(ground) as town:
        made = Round(failures=[f"before the attack: {line}" for line in town.is_served()])
        intruder = Intruder(make_conninfo(town.url, user=login(name), options=PATIENCE), ROLES[name], seed)

        def is_served() -> bool:
            if lines := town.is_served():
                made.failures += lines
                made.failures += [f"{name} had sent: {each}" for each in intruder.recent]
            return not made.failures

        intruder.attack(round(size * STATEMENTS), SERVED_EVERY, is_served)
        if not made.failures:
            made.failures += [*town.is_served(), *town.is_whole()]
        made.failures += [f"{name} was told: {line}" for line in intruder.broken]
        made.counts.update(
            statements=intruder.said.total(), done=intruder.said["ok"], served=town.counts["served"], rounds=1
        )
    return made

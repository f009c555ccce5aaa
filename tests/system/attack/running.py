"""Rounds of a part, one after the other, on a server of its own."""

import sys
import time
import traceback
from collections import Counter

from arena import own_server
from conftest import create_database
from loracomp.database import schema
from rounds import Part, Round, command, parts
from town import Ground

TEMPLATE = "attack_template"


def rounds(name: str, first: int, seconds: float) -> Round:
    """Rounds of a part on a server of its own, one after the other, until the time is over; at least one."""
    made, part, until = Round(), parts()[name], time.monotonic() + seconds
    with own_server("bare") as server:
        schema.initialize(create_database(server.url, TEMPLATE))
        with Ground(server.url, TEMPLATE) as ground:
            for seed in range(first, first + 10**6):
                found = attempt(part, ground, seed)
                made.counts += found.counts
                made.failures += [f"{command(name, seed)}: {line}" for line in found.failures[:1]]
                for line in found.failures:
                    print(f"[{command(name, seed)}] {line}"[:2000], file=sys.stderr, flush=True)
                if time.monotonic() > until:
                    return made
    raise AssertionError("more rounds than there are seeds")


def attempt(part: Part, ground: Ground, seed: int) -> Round:
    try:
        return part(ground, seed, 1)
    except Exception as error:  # a fault of the suite, or one that it did not expect
        traceback.print_exc()
        return Round(Counter(rounds=1), [f"{type(error).__name__}: {error}"])

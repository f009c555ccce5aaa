"""A minute of `make attack`, with the same seeds each time, as conftest.py has it for hypothesis; LORACOMP_FUZZ draws
others. A failure says how its round is repeated."""

import os
import random
import time
from collections.abc import Iterator

import pytest

from rounds import command, parts
from town import Ground

SIZE = 0.3
SECONDS = 3.0
"""After which no other round begins."""


@pytest.fixture(scope="module")
def ground(server: str, template: str) -> Iterator[Ground]:
    with Ground(server, template) as built:
        yield built


@pytest.mark.session
@pytest.mark.filterwarnings("ignore")  # of what transformers and PEFT say about each other
@pytest.mark.parametrize("name", [*parts()])
def test_nothing_is_found(ground: Ground, name: str) -> None:
    seed = random.SystemRandom().randrange(10**6) if "LORACOMP_FUZZ" in os.environ else 1
    until = time.monotonic() + SECONDS
    while True:
        print(command(name, seed))
        made = parts()[name](ground, seed, SIZE)
        assert not made.failures, "\n".join([f"repeat it by: {command(name, seed)}", *made.failures])
        if time.monotonic() > until:
            return
        seed += 1

"""An administrator reads what is in the database, whoever wrote it: by commands, by pages, and by replaying jobs."""

import random
import re
from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo
from starlette.testclient import TestClient

from loracomp.database import connections as db
from loracomp.replay import replay
from loracomp.web.pages import make_app
from odd_requests import PARTS, PATHS, check, filled
from pages_data import PASSWORD, SECRET, fields
from printed import ENCODINGS, OBEYED, SHOWN, printed
from town import Town, connect, login

JOBS = "SELECT id FROM loracomp.job ORDER BY length(job::text) DESC, random() LIMIT 6"
"""The longest, because whoever attacks has written them."""


def readers(town: Town, draw: random.Random) -> Iterator[str]:
    """What an administrator can't read. Afterwards nobody serves any more, as the engine replays jobs."""
    with connect(town.url, "adam") as adam:
        ids = [row["id"] for row in adam.execute(JOBS)]
        yield from by_commands(town, ids, draw)
        yield from by_pages(town, ids, draw)
        town.walter.leave()
        yield from by_replaying(town, adam, ids)


def by_commands(town: Town, ids: list[int], draw: random.Random) -> Iterator[str]:
    """Each command ends as it should and prints nothing that a terminal obeys, on a stream of any encoding."""
    for name in SHOWN:
        town.counts["commands"] += 1
        given = [each.replace("{job}", str(draw.choice(ids))) for each in SHOWN[name]]
        arguments = [*name.partition(" --")[0].split(), *(["default"] if name == "policy show" else given)]
        encoding = draw.choice(ENCODINGS)
        about = f"loracomp {' '.join(arguments)} ({encoding})"
        with pytest.MonkeyPatch.context() as patch:  # for each, so that streams are as before in between
            patch.setenv("LORACOMP_DATABASE_URL", make_conninfo(town.url, user=login("adam")))
            try:
                code, out, err = printed(patch, arguments, encoding)
            except Exception as error:
                yield f"{about} raised {type(error).__name__}: {error}"
                continue
        if code and name != "doctor":
            yield f"{about} ended with {code}: {err[-300:]}"
        if OBEYED.search(re.sub("[\t\r\n]", "", out + err)):
            yield f"{about} printed what a terminal obeys"


def by_pages(town: Town, ids: list[int], draw: random.Random) -> Iterator[str]:
    """No page fails inside, and each has the security headers."""
    client = TestClient(make_app(town.url, SECRET), follow_redirects=False, raise_server_exceptions=False)
    form = fields(client.get("/login").text) | {"role": login("adam"), "password": PASSWORD}
    if client.post("/login", data=form).status_code != 303:
        yield "adam can't log in"
    for path in PATHS:
        for part in (*map(str, ids), "tea", "public.said", draw.choice(PARTS)) if "{" in path else [""]:
            town.counts["pages"] += 1
            try:
                check(client, "GET", filled(path, part))
            except AssertionError as error:
                yield f"GET {filled(path, part)[:100]}: {str(error)[:300]}"


def by_replaying(town: Town, adam: db.Connection, ids: list[int]) -> Iterator[str]:
    """Each job is replayed with an equal answer, or the reason is told why it can't be."""
    for id_ in ids:
        town.counts["replays"] += 1
        try:
            for trace in adam.execute("SELECT * FROM loracomp.job_trace WHERE job_id = %s", [id_]):
                found = replay(town.walter.engine, adam, trace)
                if found.outcome == "different":
                    yield f"replayed, job {id_} is {found}"
        except Exception as error:
            yield f"replaying job {id_} raised {type(error).__name__}: {str(error)[:300]}"

"""The web pages. Each runs a few queries on public functions and views, with the rights of the visitor's role."""

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from loracomp.database.connections import Connection, allowed_rows, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError, NotFoundError, UsageError
from loracomp.web.picture import read_job
from loracomp.web.render import load_all, source
from loracomp.web.report import heat_map, read_report
from loracomp.web.sessions import Seal, Session, connected
from loracomp.web.visits import COOKIE, HEADERS, Visit, endpoint

PAGE = 50
"""Number of a declaration's rows on a page."""
BATCH = 8
"""Number of rows that are reserved for a visitor, who corrects them one after another."""
USED_FROM = 16
"""Number of measured corrections from which on workers use them to answer a declaration's rows."""
LOGINS = 4
"""Number of logins that are tried at once. Anybody can send them, and Postgres may delay each that it refuses."""
KEYS = "123456789abcdefghijklmopqrtvwxyz"
"""Keys of the choices in the order in which they are shown; `n`, `s` and `u` do something else."""
_KEY = TypeAdapter(list[str])


def make_app(url: str, secret: str) -> Starlette:
    """Make the server's application for the database with this URL. Processes with the same secret accept each other's
    sessions."""
    load_all()
    app = Starlette(
        routes=routes(url, secret),
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=_with_headers)],
        exception_handlers={Exception: _failed},  # otherwise a response to an error would lack the headers
    )
    app.router.redirect_slashes = False  # these redirects would go to any host that the request names
    return app


def routes(url: str, secret: str) -> list[Route]:
    """The path of each page."""
    page = partial(endpoint, url=url, seal=Seal(secret))
    files = {"picture.css": "text/css", "style.css": "text/css", "script.js": "text/javascript"}
    return [
        Route("/login", page(login, public=True)),
        Route("/login", page(log_in, public=True, at_once=LOGINS), methods=["POST"]),
        Route("/logout", page(log_out), methods=["POST"]),
        Route("/", page(overview)),
        Route("/answers", page(declarations)),
        Route("/answers/{name:path}", page(rows)),
        Route("/review/{name:path}", page(review)),
        Route("/correct/{name:path}", page(next_to_correct)),
        Route("/correct/{name:path}", page(correct), methods=["POST"]),
        Route("/jobs", page(job)),
        Route("/jobs/{id}", page(job)),
        Route("/adapters", page(adapters)),
        Route("/report", page(report)),
        *(Route(f"/{name}", partial(_file, name=name, kind=kind)) for name, kind in files.items()),
    ]


async def _with_headers(request: Request, answer: RequestResponseEndpoint) -> Response:
    """Add HEADERS to each response that does not set them itself."""
    response = await answer(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


async def _failed(_: Request, error: Exception) -> Response:
    return PlainTextResponse("Internal Server Error", 500, HEADERS)


def _file(_: Request, name: str, kind: str) -> Response:
    return Response(source(name), media_type=kind, headers={"Cache-Control": "max-age=300"})


def login(visit: Visit) -> Response:
    """Show the form for role and password, and begin the session that this form belongs to if there is none yet.

    No other response may begin one: it would replace the visitor's own session if another site sent the request,
    because the browser then leaves out the cookie.
    """
    response = visit.show("login.html", error=None, next=visit.request.query_params.get("next", "/"))
    if not visit.session.role:
        visit.keep(response, visit.session)
    return response


def log_in(visit: Visit) -> Response:
    """Connect as the role, and begin a session if the database accepts it."""
    visit.check_token("login")
    session = Session(visit.form.get("role", ""), visit.form.get("password", ""))
    wanted = visit.form.get("next", "/")
    response = RedirectResponse(wanted if wanted.startswith("/") and not wanted.startswith(("//", "/\\")) else "/", 303)
    try:
        with connected(visit.url, session, visit.seal):
            visit.keep(response, session)
    except LoracompError as error:
        return visit.show("login.html", 403, error=str(error), next=wanted)
    return response


def log_out(visit: Visit) -> Response:
    """Delete the session's cookie. The session exists nowhere else."""
    visit.check_token("logout")
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE)
    return response


def overview(visit: Visit) -> Response:
    """Show the queue, the workers and the newest jobs, as far as the role may see them."""
    with visit.database() as connection:
        return visit.show(
            "overview.html",
            now=datetime.now(UTC),
            queues=allowed_rows(connection, QUERIES["queues"], QUERIES["reported_queues"]),
            workers=allowed_rows(connection, QUERIES["worker_status"], QUERIES["reported_workers"]),
            jobs=allowed_rows(connection, QUERIES["newest_jobs"]),
        )


def job(visit: Visit) -> Response:
    """Show how a job was answered. Its number is in the path, or was typed into the form."""
    number = _number(visit.request.path_params.get("id") or visit.request.query_params.get("id", "").strip())
    if number is None:
        raise NotFoundError("type the number of a job")
    with visit.database() as connection:
        return visit.show("job.html", **read_job(connection, number))


def adapters(visit: Visit) -> Response:
    """Show tasks and adapters, and the measured gains."""
    with visit.database() as connection:
        return visit.show(
            "adapters.html",
            tasks=allowed_rows(connection, QUERIES["readable_tasks"], QUERIES["reported_tasks"]),
            adapters=allowed_rows(connection, QUERIES["list_adapters"]),
            heat=heat_map(allowed_rows(connection, QUERIES["transfer"]) or []),
        )


def report(visit: Visit) -> Response:
    """Show the report of the last seven days."""
    with visit.database() as connection:
        return visit.show("report.html", **read_report(connection, 7))


def declarations(visit: Visit) -> Response:
    """Show the declarations that the visitor's role may change."""
    with visit.database() as connection:
        declared = rows_of(connection, QUERIES["list_answers"], {"name": None, "counted": True})
    paths = [{**each, "path": quote(each["name"], safe="")} for each in declared]
    return visit.show("answers.html", declarations=paths)


def rows(visit: Visit) -> Response:
    """Show a page of a declaration's rows, in the order of their keys."""
    name, after = visit.request.path_params["name"], _key(visit.request.query_params.get("after"))
    with visit.database() as connection:
        values = {"name": name, "after": after, "n": PAGE + 1}
        found = rows_of(connection, QUERIES["list_answer_rows"], values)
    more = urlencode({"after": json.dumps(found[PAGE - 1]["key"])}) if len(found) > PAGE else None
    return visit.show("rows.html", name=name, path=quote(name, safe=""), rows=found[:PAGE], more=more, after=after)


def next_to_correct(visit: Visit) -> Response:
    """Show a row to correct. Nobody else gets this row for ten minutes."""
    name, query = visit.request.path_params["name"], visit.request.query_params
    with visit.database(writes=True) as connection:
        declared = _declared(connection, name)
        values = {"name": name, "n": BATCH, "visitor": visit.session.id}
        offered = rows_of(connection, QUERIES["rows_to_correct"], values)
        skipped = _number(query.get("skip", "0")) or 0
        row, choices = offered[skipped % len(offered)] if offered else None, declared["choices"] or []
        places = _by_score(connection, row["job_id"], len(choices)) if row else []
    done, said = _key(query.get("done")), _chosen(choices, query.get("said", ""))
    return visit.show(
        "correct.html",
        declared=declared,
        path=quote(name, safe=""),
        row=row,
        choices=[(place, KEYS[at : at + 1]) for at, place in enumerate(places)],
        no_choice_fits="none" in query,
        form=row and _form(visit, name, choices, row["key"], None, row["job_id"]),
        undo=_form(visit, name, choices, done, choices.index(said), None) if done and said is not None else None,
        done=done,
        said=said,
        skip=skipped + 1,
        to_go=max(0, USED_FROM - declared["corrected"]),
    )


def correct(visit: Visit) -> Response:
    """Write or withdraw a correction, if the row has not changed since the form was shown."""
    name, what = visit.request.path_params["name"], visit.form.get("what", "")
    with visit.database(writes=True) as connection:
        choices = _declared(connection, name)["choices"] or []
        visit.check_token("correct", name, choices, what)
        key, seen, job_id = json.loads(what)
        seen = None if seen is None else choices[seen]
        chosen = _chosen(choices, visit.form.get("choice", ""))
        values = {"name": name, "key": key, "answer": chosen, "seen": seen, "job_id": job_id}
        rows_of(connection, QUERIES["correct_row"], values)
    if visit.form.get("back") == "review":
        return RedirectResponse(f"/review/{quote(name, safe='')}", 303)
    told = {"done": json.dumps(key), "said": choices.index(chosen)} if chosen is not None else {}
    return RedirectResponse(f"/correct/{quote(name, safe='')}?{urlencode(told)}", 303)


def review(visit: Visit) -> Response:
    """Show what has been corrected, and first what somebody should look at again; each correction can be undone."""
    name, start = visit.request.path_params["name"], _number(visit.request.query_params.get("from", "0")) or 0
    with visit.database() as connection:
        choices = _declared(connection, name)["choices"] or []
        again = rows_of(connection, QUERIES["rows_to_review"], {"name": name, "n": PAGE})
        counts = rows_of(connection, QUERIES["count_corrections"], {"name": name})
        corrected = rows_of(connection, QUERIES["list_corrections"], {"name": name})

    def changed(row: dict[str, Any], answer: str | None) -> dict[str, str] | None:
        """Fields of a form that writes another answer, or none; None if the page can't."""
        if row["correct"] not in choices or answer not in (None, *choices):
            return None
        # Not for withdrawing: that labels no text, so it doesn't matter whether the row has changed.
        job_id = None if answer is None else row["job_id"]
        form = _form(visit, name, choices, row["key"], choices.index(row["correct"]), job_id)
        return form | {"choice": "" if answer is None else str(choices.index(answer)), "back": "review"}

    return visit.show(
        "review.html",
        name=name,
        path=quote(name, safe=""),
        counts=counts,
        review=[
            row | {"undo": changed(row, None), "use": changed(row, row["answer"]) if row["answer"] else None}
            for row in again
        ],
        rows=[row | {"undo": changed(row, None)} for row in corrected[start : start + PAGE]],
        more=start + PAGE if len(corrected) > start + PAGE else None,
    )


def _by_score(connection: Connection, job_id: int, n: int) -> list[int]:
    """The numbers of a job's n choices by their scores, the highest first; in their own order if the role may not see
    the job."""
    found = rows_of(connection, QUERIES["choice_scores"], {"job_id": job_id})
    scores = found[0]["choice_scores"] if found else None
    if scores is None or len(scores) != n:
        return list(range(n))
    return sorted(range(n), key=lambda place: -float(scores[place]))


def _declared(connection: Connection, name: str) -> dict[str, Any]:
    found = rows_of(connection, QUERIES["list_answers"], {"name": name, "counted": False})
    if not found:
        raise NotFoundError("there is no declaration with this name that your role may change")
    return found[0]


def _form(visit: Visit, name: str, choices: list[str], *seen: object) -> dict[str, str]:
    """Return the hidden fields of a correction's form, with the row as it was shown: key, index of its correction, and
    job."""
    what = json.dumps(seen)
    return {"what": what, "token": visit.token("correct", name, choices, what)}


def _chosen(choices: list[str], place: str) -> str | None:
    """The choice at the index in a form's field; None if the field is empty."""
    number = _number(place)
    if place and (number is None or number >= len(choices)):
        raise UsageError("this choice does not exist")
    return None if number is None else choices[number]


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _key(text: str | None) -> list[str] | None:
    """Parse a row's key from JSON."""
    try:
        return None if text is None else _KEY.validate_json(text)
    except ValidationError:
        raise UsageError("a row's key must be a list of texts") from None

"""A visitor's request and the response to it: a page as the visitor's role sees it, or an error page."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any
from urllib.parse import parse_qsl, quote

from psycopg.errors import InsufficientPrivilege, LockNotAvailable, QueryCanceled
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from loracomp.database.connections import Connection
from loracomp.errors import DatabaseUnavailableError, LoracompError, NotFoundError, RefusedError
from loracomp.web.render import render
from loracomp.web.sessions import LASTS_S, Seal, Session, connected

COOKIE = "loracomp_session"
LONGEST_COOKIE = 4_000
"""Longest value of a cookie, in bytes. Browsers drop a cookie of more than 4,096 bytes, some of them with its name and
attributes."""
LONGEST_FORM = 100_000  # bytes
SLOWEST_FORM_S = 30
"""Seconds within which a form must have arrived."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class ForgedError(LoracompError):
    """The form was not made for this session, or the row that it would change has changed since."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A request with its session. `form` contains the fields of a POST."""

    request: Request
    url: str
    seal: Seal
    session: Session
    form: Mapping[str, str]

    def database(self, *, writes: bool = False) -> AbstractContextManager[Connection]:
        """A transaction with the visitor's own rights."""
        return connected(self.url, self.session, self.seal, writes=writes)

    def token(self, *words: object) -> str:
        """Return the token of a form, bound to this session and to the words, which say what the form does."""
        return self.seal.token(self.session, *words)

    def check_token(self, *words: object) -> None:
        """Raise ForgedError unless the form contains the token of these words."""
        if not compare_digest(self.form.get("token", "").encode(), self.token(*words).encode()):
            raise ForgedError("this form is not yours, or the row has changed since: load the page again")

    def show(self, template: str, status: int = 200, **values: Any) -> Response:
        """Render a page."""
        return HTMLResponse(render(template, layout="site.html", visit=self, role=self.session.role, **values), status)

    def keep(self, response: Response, session: Session) -> None:
        """Set the browser's cookie to the session. Raises RefusedError if role and password are too long for it."""
        sealed = self.seal.close(session)
        if len(sealed) > LONGEST_COOKIE:
            raise RefusedError(
                "role and password are too long to be kept in a cookie: use a role whose password is shorter"
            )
        response.set_cookie(
            COOKIE,
            sealed,
            max_age=LASTS_S,
            httponly=True,
            samesite="lax",  # so that links in mails and chats work; "strict" would leave the session out of them
            secure=self.request.scope["scheme"] == "https",
        )


Handler = Callable[[Visit], Response]


def endpoint(
    handler: Handler, url: str, seal: Seal, *, public: bool = False, at_once: int | None = None
) -> Callable[[Request], Awaitable[Response]]:
    """The function that starlette calls. It reads cookie and form, then runs the handler, which blocks, in a thread.
    All handlers share the threads; this one gets no more than `at_once` of them."""
    turns = nullcontext() if at_once is None else asyncio.Semaphore(at_once)

    async def answer(request: Request) -> Response:
        session = seal.open(request.cookies.get(COOKIE, "")) or Session()
        form = await _form(request) if request.method == "POST" else {}
        async with turns:
            return await run_in_threadpool(_answer, handler, Visit(request, url, seal, session, form), public)

    return answer


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form, each once. If a form is longer than any form of these pages can be, or does not
    arrive in time, its fields are ignored, so its token is refused."""
    body = b""
    try:
        async with asyncio.timeout(SLOWEST_FORM_S):
            async for part in request.stream():
                body += part
                if len(body) > LONGEST_FORM:
                    return {}
    except (TimeoutError, ClientDisconnect):  # after the latter nobody reads the response
        return {}
    try:
        return dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        return {}


def _answer(handler: Handler, visit: Visit, public: bool) -> Response:
    if not public and not visit.session.role:
        asked = visit.request.scope["raw_path"]  # still quoted, because a name may contain a question mark
        if query := visit.request.scope["query_string"]:
            asked += b"?" + query
        return RedirectResponse(f"/login?next={quote(asked)}", 303)
    try:
        return handler(visit)
    except LoracompError as error:
        return visit.show("error.html", _status(error), error=str(error))


def _status(error: LoracompError) -> int:
    if isinstance(error.__cause__, InsufficientPrivilege):
        return 403
    if isinstance(error.__cause__, (LockNotAvailable, QueryCanceled)):
        return 503
    return {NotFoundError: 404, ForgedError: 403, DatabaseUnavailableError: 503}.get(type(error), 400)

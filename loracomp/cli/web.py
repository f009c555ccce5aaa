"""Commands that make pages: a report, and the server of pages."""

import socket
from contextlib import suppress
from secrets import token_hex
from typing import Annotated

import typer

from loracomp.cli.common import open_database, print_page, remark, warn
from loracomp.config import load_settings
from loracomp.database.embedded import database_url
from loracomp.errors import UsageError


def report(
    days: Annotated[int, typer.Option(help="Number of days up to today, in UTC.", min=1, max=366)] = 7,
    answers: Annotated[str | None, typer.Option(help="Report only on this declaration (the name of its view).")] = None,
    tag: Annotated[
        str | None, typer.Option(help="Also report the answers with this tag, such as country or country=DE.")
    ] = None,
) -> None:
    """Print a report as an HTML page: jobs, waits, accuracy, corrections, adapters. For analysts and admins."""
    from loracomp.web.render import self_contained
    from loracomp.web.report import read_report

    with open_database() as connection:
        print_page(self_contained("report.html", **read_report(connection, days, answers=answers, tag=tag)))


def web(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8080,
) -> None:
    """Serve web pages about queue, answers, jobs and adapters. Visitors log in with their database role."""
    try:
        import uvicorn

        from loracomp.web.pages import make_app
        from loracomp.web.sessions import Seal
    except ModuleNotFoundError:
        raise UsageError("the web pages need the extra `web`: pip install 'loracomp[web]'") from None
    settings = load_settings()
    secret = settings.web_secret or token_hex(32)
    sockets = [_listening(host, port)]
    with open_database() as connection:
        asks, role = connection.pgconn.used_password, connection.info.user
    if host not in ("127.0.0.1", "::1", "localhost"):
        warn("database passwords will travel to this address unencrypted: put a proxy with TLS in front of it")
    shown = f"[{host}]" if ":" in host else host
    remark(f"http://{shown}:{port}: log in with a database role" + (" and its password" if asks else ""))
    if not asks:
        remark(
            f"The database asks for no password, so the pages do: log in as {role} with {Seal(secret).local_password}"
        )
    app = make_app(database_url(settings), secret)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run(sockets)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen on port {port} of {host}: {error.strerror}; name another --port or --host"
        ) from None

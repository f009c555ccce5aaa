"""Sessions: a sealed cookie contains the visitor's Postgres role and password, so that the server keeps no state.

The cookie is encrypted and signed by Fernet (AES and HMAC), with a key derived from one secret. Whoever has the secret
and a cookie has the password; a cookie alone reveals nothing.
"""

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hmac import compare_digest
from hmac import digest as sign
from os import devnull
from secrets import token_hex

from cryptography.fernet import Fernet, InvalidToken

from loracomp.database.connections import Connection, connect, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.errors import DatabaseUnavailableError, RefusedError

LASTS_S = 12 * 3600
"""Seconds after which a visitor has to log in again."""
REFUSED = (
    "the database refuses this role or password, or takes no more connections at the moment; where it asks for no "
    "password, use the one that `loracomp web` printed"
)


@dataclass(frozen=True, slots=True)
class Session:
    """A visitor's session. Before the login it has no role. Forms are bound to its `id`."""

    role: str = ""
    password: str = ""
    id: str = field(default_factory=token_hex)


class Seal:
    """Seals sessions and signs forms, with keys from a secret that all processes share."""

    def __init__(self, secret: str) -> None:
        cookie, self._form, local = (sign(secret.encode(), use, "sha256") for use in (b"cookie", b"form", b"local"))
        self._cookies = Fernet(urlsafe_b64encode(cookie))
        self.local_password = local.hex()[:16]
        """Password for roles that have none in the database, because reaching these pages must not be enough to log in
        as such a role."""

    def close(self, session: Session) -> str:
        """The session, sealed for a cookie."""
        return self._cookies.encrypt(json.dumps(asdict(session)).encode()).decode()

    def open(self, cookie: str) -> Session | None:
        """The session in a cookie; None if this secret did not seal it, or if it has expired."""
        try:
            return Session(**json.loads(self._cookies.decrypt(cookie.encode(), ttl=LASTS_S)))
        except InvalidToken:
            return None

    def token(self, session: Session, *words: object) -> str:
        """Return the token that a form of this session must contain. `words` say what the form does, and to which
        row."""
        return sign(self._form, json.dumps([session.id, *words]).encode(), "sha256").hex()


@contextmanager
def connected(url: str, session: Session, seal: Seal, *, writes: bool = False) -> Iterator[Connection]:
    """A transaction as the visitor's own role, with ten seconds for each statement; read-only unless it `writes`.

    Raises DatabaseUnavailableError if the database does not accept role and password, and RefusedError if it asks for
    no password and this is not `seal.local_password`. Without that password both say the same, because a database that
    asks for none would tell which roles exist.
    """
    if not session.password or "\0" in session.role + session.password:
        raise RefusedError(
            "role and password must be given"
        )  # libpq would replace an empty password with one from its environment
    own = {"user": session.role, "password": session.password, "passfile": devnull}
    is_local = compare_digest(session.password.encode(), seal.local_password.encode())
    try:
        opened = connect(url, application_name="loracomp web", vectors=False, instead=own)
    except DatabaseUnavailableError as error:
        # Show only the server's own message. Its address stands before it, which visitors should not learn.
        said = str(error).partition("FATAL:")[2].partition("\n")[0].strip()
        if said and not is_local:
            said = REFUSED
        raise DatabaseUnavailableError(said or "the database cannot be reached") from None
    with translated_errors(), opened as connection:
        if not connection.pgconn.used_password and not is_local:
            raise RefusedError(REFUSED)
        connection.autocommit, connection.read_only = False, not writes
        with connection.transaction():
            connection.execute(QUERIES["begin_page"])
            yield connection

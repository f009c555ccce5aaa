"""Who visits: a sealed cookie has his Postgres role and password, so that no process holds a state.

The cookie is encrypted and signed by Fernet (AES and HMAC), with a key that comes from one secret. Somebody who
has the secret and a cookie has the password; a cookie alone tells nothing.
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
"""Seconds after which one logs in again."""


@dataclass(frozen=True, slots=True)
class Session:
    """A visitor, from when it is sealed; without a role before the login. `id` binds forms to him."""

    role: str = ""
    password: str = ""
    id: str = field(default_factory=token_hex)


class Seal:
    """Seals sessions and signs forms, with keys from a secret that all processes share."""

    def __init__(self, secret: str) -> None:
        cookie, self._form, local = (sign(secret.encode(), use, "sha256") for use in (b"cookie", b"form", b"local"))
        self._cookies = Fernet(urlsafe_b64encode(cookie))
        self.local_password = local.hex()[:16]
        """For roles of which the database asks no password: reaching the page is less than reaching its socket."""

    def close(self, session: Session) -> str:
        """The session as the value of a cookie."""
        return self._cookies.encrypt(json.dumps(asdict(session)).encode()).decode()

    def open(self, cookie: str) -> Session | None:
        """The session of a cookie that this secret sealed and whose time is not over; otherwise None."""
        try:
            return Session(**json.loads(self._cookies.decrypt(cookie.encode(), ttl=LASTS_S)))
        except InvalidToken:
            return None

    def token(self, session: Session, *words: object) -> str:
        """What a form of this session must contain; the words say what it does, and to what."""
        return sign(self._form, json.dumps([session.id, *words]).encode(), "sha256").hex()


@contextmanager
def connected(url: str, session: Session, seal: Seal, *, writes: bool = False) -> Iterator[Connection]:
    """One transaction of the visitor's own role, of at most ten seconds a statement; read-only unless it `writes`.

    Raises DatabaseUnavailableError if the database does not accept role and password, and RefusedError if it asks for
    no password and this is not `seal.local_password`.
    """
    if not session.password or "\0" in session.role + session.password:
        raise RefusedError("role and password must be given")  # libpq would take an empty one from its environment
    own = {"user": session.role, "password": session.password, "passfile": devnull}
    try:
        opened = connect(url, application_name="loracomp web", vectors=False, instead=own)
    except DatabaseUnavailableError as error:
        # Only the server's own words; before them is its address, which is no visitor's business.
        said = str(error).partition("FATAL:")[2].partition("\n")[0].strip()
        raise DatabaseUnavailableError(said or "the database cannot be reached") from None
    with translated_errors(), opened as connection:
        asked = connection.pgconn.used_password
        if not asked and not compare_digest(session.password.encode(), seal.local_password.encode()):
            raise RefusedError("this database asks for no password: use the one that `loracomp web` printed")
        connection.autocommit, connection.read_only = False, not writes
        with connection.transaction():
            connection.execute(QUERIES["begin_page"])
            yield connection

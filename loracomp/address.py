"""The database's address, as people write it and as libpq takes it; a password in it is never shown."""

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict

from loracomp.errors import UsageError

_DRIVER = re.compile(r"\Apostgres(ql)?\+\w+(?=://)")
# Else libpq takes the rest of a password for a host, port or database, and its errors show those.
_CREDENTIALS_IN_PLACE = re.compile(r"\A\w+://([^@/]*@)?[^@]*\Z")


def libpq_form(address: str) -> str:
    """The address without the driver that SQLAlchemy's form names (`postgresql+psycopg://`); others stay as they are.

    It is a URL or libpq's `keyword=value` pairs. Raises UsageError, which does not repeat it, where libpq can't read it
    or would take part of a password for something else.
    """
    plain = _DRIVER.sub("postgresql", address)
    if not _is_readable(plain):
        raise UsageError(
            "the database's address was not understood: write postgresql://USER@HOST:PORT/DATABASE, or pairs such as "
            "host=HOST dbname=DATABASE; in a URL's password write @ as %40, / as %2F, : as %3A and % as %25"
        )
    return plain


def _is_readable(address: str) -> bool:
    try:
        port = str(conninfo_to_dict(address).get("port", ""))
    except psycopg.ProgrammingError:
        return False
    in_place = "://" not in address or _CREDENTIALS_IN_PLACE.match(address.partition("?")[0])
    return bool(in_place and re.fullmatch(r"[\d,]*", port))

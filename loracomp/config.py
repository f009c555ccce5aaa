"""All settings in one validated object, read from environment variables LORACOMP_<NAME> or a .env file."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Literal
from uuid import uuid4

import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from loracomp.errors import UsageError

_DRIVER = re.compile(r"\Apostgres(ql)?\+\w+(?=://)")
# A URL with an unescaped @, / or : in its password does not match. libpq would take the rest of the password for a
# host, port or database, and show it in its errors.
_CREDENTIALS_IN_PLACE = re.compile(r"\A\w+://([^@/]*@)?[^@]*\Z")


ENV_FILE = ".env"
"""Settings of a working folder."""
OTHERS = ("LORACOMP_TEST_", "LORACOMP_FUZZ")
"""Prefixes of LORACOMP_ variables that other code than `Settings` reads."""


def _default_home() -> Path:
    # Not among the caches, which people and programs delete: the embedded server's database can't be made again.
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "loracomp"


class Settings(BaseSettings):
    """Settings of the command line and the worker."""

    model_config = SettingsConfigDict(
        env_prefix="LORACOMP_",
        env_file=ENV_FILE,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    # repr=False, because the address may contain a password.
    database_url: str | None = Field(
        None, repr=False, description="Address of the database. Defaults to the embedded server under home."
    )
    home: Path = Field(
        default_factory=_default_home,
        description="Folder of the embedded server, of models and of training runs. Defaults to "
        "$XDG_DATA_HOME/loracomp, or ~/.local/share/loracomp.",
    )
    base_model: str | None = Field(
        None, description="Name of the base model to serve. Defaults to the database's default."
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, ... Defaults to a GPU if there is one.")
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None,
        description="How to spread the base model over GPUs: auto, balanced, balanced_low_0 or sequential. "
        "Defaults to one device.",
    )
    dtype: str = Field("auto", description="bfloat16, float16 or float32. Defaults to the device's fastest type.")
    batch_size: int = Field(16, ge=1, le=1024, description="Maximum number of jobs claimed at once. Defaults to 16.")
    held_batches: int = Field(
        4, ge=1, le=64, description="Maximum number of jobs held at once, as a multiple of batch_size. Defaults to 4."
    )
    token_budget: int = Field(
        16384, ge=64, description="Maximum number of tokens in one forward pass. Defaults to 16384."
    )
    adapter_cache_mb: int = Field(2048, ge=1, description="Megabytes of adapters kept on the device. Defaults to 2048.")
    lease_s: float = Field(
        60.0, ge=1, le=3600, description="Seconds after which an unrenewed lease expires. Defaults to 60."
    )
    statement_timeout_s: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="Seconds after which a worker cancels a statement that the database has not answered, and connects "
        "again. Defaults to 30.",
    )
    hang_s: float = Field(
        60.0,
        ge=1,
        le=3600,
        description="Seconds that a forward pass may take once the leases of all the worker's jobs are lost, or a "
        "tenth of what it may take at all; then the device is presumed hung and the worker ends. Defaults to 60.",
    )
    poll_s: float = Field(1.0, ge=0.01, le=60, description="Seconds between polls of an empty queue. Defaults to 1.")
    grace_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds from SIGTERM until the worker must have ended. Defaults to 30."
    )
    listen: bool = Field(
        True,
        description="Start new jobs at once, by LISTEN and NOTIFY. Turn off behind pgbouncer. Defaults to on.",
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port of /metrics and /ready; 0: any free port. Defaults to none."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that metrics_port listens on. Defaults to 127.0.0.1.")
    web_secret: str | None = Field(
        None,
        min_length=32,
        repr=False,
        description="Secret of the pages' cookies, of 32 characters or more, the same for all processes of "
        "`loracomp web`. Defaults to a new random secret at each start.",
    )
    log_format: Literal["text", "json"] = Field("text", description="text, or json for programs. Defaults to text.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error. Defaults to info."
    )
    worker: str | None = Field(None, max_length=300, description="The worker's name. Defaults to host:pid:random.")

    @field_validator("database_url")
    @classmethod
    def _as_libpq_takes_it(cls, url: str | None) -> str | None:
        try:
            return url and libpq_form(url)
        except UsageError as error:
            raise PydanticCustomError("database_url", "{why}", {"why": str(error)}) from None

    @cached_property
    def worker_name(self) -> str:
        """The worker's name in leases and predictions."""
        return self.worker or f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:6]}"


def load_settings() -> Settings:
    """Read the settings; UsageError names each variable that is wrong."""
    try:
        with _utf8_in(ENV_FILE):
            return Settings()
    except ValidationError as error:
        wrong = "; ".join(f"LORACOMP_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise UsageError(f"settings are wrong: {wrong}") from None


def unknown_variables() -> list[str]:
    """A warning for each LORACOMP_* variable in the environment or .env that is not a setting and so has no effect.

    Raises UsageError if .env can't be read.
    """
    known = {f"LORACOMP_{name.upper()}" for name in Settings.model_fields}
    with _utf8_in(ENV_FILE):
        names = {name.upper() for name in (*os.environ, *dotenv_values(ENV_FILE))}
    strange = sorted(name for name in names - known if name.startswith("LORACOMP_") and not name.startswith(OTHERS))
    near = {name: get_close_matches(name, known, n=1, cutoff=0.85) for name in strange}
    return [f"{name} is not a setting{f': {near[name][0]} is one' if near[name] else ''}" for name in strange]


@contextmanager
def _utf8_in(file: str) -> Iterator[None]:
    """Within this context, UsageError is raised if the file is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UsageError(f"{Path(file).absolute()} is not UTF-8 ({error.reason}): save it as UTF-8") from None


def libpq_form(address: str) -> str:
    """A database address in the form that libpq reads: SQLAlchemy's `postgresql+psycopg://` becomes `postgresql://`.

    Other addresses (URLs, or libpq's `keyword=value` pairs) stay unchanged. Raises UsageError if libpq can't read the
    address, or would take part of the password for something else; the message does not repeat the address.
    """
    plain = _DRIVER.sub("postgresql", address)
    if not _is_readable(plain):
        raise UsageError(
            "the database's address was not understood: write postgresql://USER@HOST:PORT/DATABASE, or pairs "
            "such as host=HOST dbname=DATABASE; in the password of a URL, write @ as %40, / as %2F, : as %3A and "
            "% as %25"
        )
    return plain


def _is_readable(address: str) -> bool:
    try:
        port = str(conninfo_to_dict(address).get("port", ""))
    except psycopg.ProgrammingError:
        return False
    in_place = "://" not in address or _CREDENTIALS_IN_PLACE.match(address.partition("?")[0])
    return bool(in_place and re.fullmatch(r"[\d,]*", port))

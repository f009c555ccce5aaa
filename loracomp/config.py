"""One validated object for every setting; environment variables LORACOMP_<NAME>, or a .env file."""

import os
import re
import socket
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
# Else libpq takes the rest of a password for a host, port or database, and its errors show those.
_CREDENTIALS_IN_PLACE = re.compile(r"\A\w+://([^@/]*@)?[^@]*\Z")


OTHERS = ("LORACOMP_TEST_", "LORACOMP_FUZZ")
"""How variables begin that others than `Settings` read."""


def _default_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "loracomp"


class Settings(BaseSettings):
    """Settings of the command line and the worker."""

    model_config = SettingsConfigDict(
        env_prefix="LORACOMP_", env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    # It may hold a password, which is never shown.
    database_url: str | None = Field(
        None, repr=False, description="Postgres to use. Defaults to the embedded server under home."
    )
    home: Path = Field(
        default_factory=_default_home, description="Embedded server and caches. Defaults to ~/.cache/loracomp."
    )
    base_model: str | None = Field(
        None, description="Base model to serve, by name. Defaults to the database's default."
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, ... Defaults to a GPU where there is one.")
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None,
        description="Spread over GPUs: auto, balanced, balanced_low_0, sequential. Defaults to one device.",
    )
    dtype: str = Field("auto", description="bfloat16, float16 or float32. Defaults to what the device is fast at.")
    batch_size: int = Field(16, ge=1, le=1024, description="Jobs claimed at once. Defaults to 16.")
    token_budget: int = Field(16384, ge=64, description="Tokens in one forward pass at most. Defaults to 16384.")
    adapter_cache_mb: int = Field(2048, ge=1, description="Megabytes of adapters kept on the device. Defaults to 2048.")
    lease_s: float = Field(
        60.0, ge=1, le=3600, description="Seconds that a lease lasts unless renewed. Defaults to 60."
    )
    answer_s: float = Field(
        30.0, ge=1, le=3600, description="Seconds without an answer that end a worker's connection. Defaults to 30."
    )
    hang_s: float = Field(
        60.0, ge=1, le=3600, description="Seconds that a forward pass may take once all jobs are lost. Defaults to 60."
    )
    poll_s: float = Field(1.0, ge=0.01, le=60, description="Seconds between looks at an empty queue. Defaults to 1.")
    grace_s: float = Field(30.0, ge=0, le=3600, description="Seconds that a stopping worker has left. Defaults to 30.")
    listen: bool = Field(True, description="Take notifications as a hint. Turn off behind pgbouncer. Defaults to on.")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port of /metrics and /ready; 0: any free one. Defaults to none."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that they listen on. Defaults to 127.0.0.1.")
    log_format: Literal["text", "json"] = Field("text", description="text, or json for machines. Defaults to text.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error. Defaults to info."
    )
    worker: str | None = Field(None, description="The worker's name. Defaults to host:pid:random.")

    @field_validator("database_url")
    @classmethod
    def _as_libpq_takes_it(cls, url: str | None) -> str | None:
        try:
            return url and libpq_form(url)
        except UsageError as error:
            raise PydanticCustomError("database_url", "{why}", {"why": str(error)}) from None

    @cached_property
    def worker_name(self) -> str:
        """Name that leases and predictions carry."""
        return self.worker or f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:6]}"


def load_settings() -> Settings:
    """Read the settings; UsageError names each variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(f"LORACOMP_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise UsageError(f"settings are wrong: {wrong}") from None


def unknown_variables() -> list[str]:
    """A sentence for each variable LORACOMP_* of the environment, or of .env, that is no setting: it has no effect."""
    known = {f"LORACOMP_{name.upper()}" for name in Settings.model_fields}
    names = {name.upper() for name in (*os.environ, *dotenv_values(".env"))}
    strange = sorted(name for name in names - known if name.startswith("LORACOMP_") and not name.startswith(OTHERS))
    near = {name: get_close_matches(name, known, n=1, cutoff=0.85) for name in strange}
    return [f"{name} is no setting{f': {near[name][0]} is one' if near[name] else ''}" for name in strange]


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

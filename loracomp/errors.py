"""The package's exceptions: one base class, and a subclass for each way in which a caller can react.

The message names the field and what to do; the command line prints it without a stack trace and exits with
`exit_code`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class LoracompError(Exception):
    """Base class of all errors that loracomp raises on purpose."""

    exit_code = 1


class UsageError(LoracompError):
    """A setting or argument is wrong: correct it and call again."""

    exit_code = 2


class DatabaseUnavailableError(LoracompError):
    """The database cannot be reached, or lacks something such as the extension: check the URL and the server."""

    exit_code = 3


class SchemaMismatchError(LoracompError):
    """The database's schema is older or newer than this release: run `loracomp init`, or upgrade loracomp.

    Also raised if the database has another encoder than this process loaded: start the process again.
    """

    exit_code = 4


class NotFoundError(LoracompError):
    """The caller named something that does not exist: list what exists, and name something that does."""

    exit_code = 5


class RefusedError(LoracompError):
    """A check refused the input (an adapter, an example, a row): correct it and try again."""

    exit_code = 6


class JobError(LoracompError):
    """One job cannot be answered. Only that job fails, with `code` and this message.

    `retry` says whether another attempt could help (yes if memory ran out, no if the prompt is too long).
    """

    exit_code = 7

    def __init__(self, message: str, *, code: str, retry: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retry = retry


class DeviceHungError(LoracompError):
    """The model is presumed hung: it still runs, but has ended no forward pass for long. Restart the worker."""

    exit_code = 8


class DeviceFailedError(LoracompError):
    """The device computes nothing any more, for example after an assertion or a memory error. Restart the worker."""

    exit_code = 9


def wrong_fields(error: "ValidationError", most: int | None = None) -> str:
    """Each field that pydantic refused, or the first `most`, with the reason, as a part of a message."""
    found = error.errors()[:most]
    parts = ((".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in found)
    return "; ".join(": ".join(filter(None, part)) for part in parts)

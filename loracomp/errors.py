"""One base class, and one class for each thing that a caller can do about an error.

The message names the field and the way out; the command line prints it without a stack trace and exits with
`exit_code`.
"""


class LoracompError(Exception):
    """Anything that loracomp refuses or cannot do."""

    exit_code = 1


class UsageError(LoracompError):
    """A setting or argument is wrong: correct it and call again."""

    exit_code = 2


class DatabaseUnavailableError(LoracompError):
    """The database cannot be reached or lacks what is needed: check the URL, the server, the extension."""

    exit_code = 3


class SchemaMismatchError(LoracompError):
    """The schema is older or newer than this release: run `loracomp init`, or upgrade loracomp.

    Or the encoder is another than the one that this process was started with: start it again.
    """

    exit_code = 4


class NotFoundError(LoracompError):
    """Something was named that does not exist: list what does, and name one of those."""

    exit_code = 5


class RefusedError(LoracompError):
    """Input (an adapter, an example, a row) was refused by a named check: correct it and try again."""

    exit_code = 6


class JobError(LoracompError):
    """One job cannot be done; it alone ends failed with `code` and this message.

    `retry` says whether trying again could help (a device that ran out of memory) or not (a prompt too long).
    """

    exit_code = 7

    def __init__(self, message: str, *, code: str, retry: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retry = retry


class DeviceHungError(LoracompError):
    """The model did not come back from jobs whose leases all ended: start the worker again, and look at the device."""

    exit_code = 8

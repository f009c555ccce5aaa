"""The modules of loracomp that a job passes through in a worker: all modules of which a function runs between claim and
record.

A worker answers one job after the other; keeper, embedder, heartbeat and metrics run in threads of their own and don't
count. The database needs a base model, an encoder and adapters, as `loracomp demo` makes them:

    LORACOMP_DATABASE_URL=postgresql://... .venv/bin/python tests/worker/way.py
"""

import sys
import threading
from pathlib import Path
from types import FrameType

import loracomp
from loracomp.config import load_settings
from loracomp.database.connections import connect
from loracomp.database.embedded import database_url
from loracomp.worker import leases, recorder
from loracomp.worker.start import open_worker

PACKAGE = Path(loracomp.__file__).parent
BESIDE = ("keeper", "embed", "heartbeat", "metrics")
"""Threads that a job doesn't pass through."""
BEGINS, ENDS = leases.claim_jobs.__code__, recorder._note_recorded.__code__
JOBS = {
    "that scores choices": "INSERT INTO loracomp.job (prompt, choices) VALUES ('Is ice cold?', '{yes,no}')",
    "that writes a text": "INSERT INTO loracomp.job (prompt, max_new_tokens) VALUES ('Ice is', 2)",
}


class Way:
    """The files that a job passes through."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._has_begun = self._has_ended = False

    def note(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or threading.current_thread().name in BESIDE:
            return
        code = frame.f_code
        self._has_begun = self._has_begun or code is BEGINS
        self._has_ended = self._has_ended or code is ENDS
        if not self._has_begun or self._has_ended:
            return
        if code.co_name != "<module>" and code.co_filename.startswith(str(PACKAGE)):
            self.files.add(str(Path(code.co_filename).relative_to(PACKAGE)))


def way_of(insert: str) -> set[str]:
    """The files that the job of this statement passes through."""
    settings = load_settings()
    url = database_url(settings)
    worker = open_worker(url, settings, drain=True)
    with connect(url) as connection:
        connection.execute(insert.encode())
    way = Way()
    threading.setprofile(way.note)
    sys.setprofile(way.note)
    try:
        worker.run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return way.files


def main() -> None:
    """Print the counts, with what they count."""
    found = {kind: way_of(insert) for kind, insert in JOBS.items()}
    for kind, files in found.items():
        print(f"{len(files)} modules on the way of a job {kind}", *sorted(files), sep="\n    ")
    print(len(set.union(*found.values())), "modules on either way")


if __name__ == "__main__":
    main()

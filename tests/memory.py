"""Where servers of tests keep their data: in memory, where databases are copied and dropped several times faster."""

import os
import shutil

SHARED = "/dev/shm"
ROOM = 4 * 2**30
"""Four servers fill less than half of this. A container often has 64 MB, which Postgres needs for its shared memory."""


def folder() -> str | None:
    """Return a folder in memory; or None, which stands for the folder of temporary files, if it has too little room."""
    if os.access(SHARED, os.W_OK) and shutil.disk_usage(SHARED).free > ROOM:
        return SHARED
    return None

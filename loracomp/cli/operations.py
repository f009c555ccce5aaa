"""Commands for whoever keeps it running: workers."""

from loracomp.cli.common import AsJson, emit, open_database
from loracomp.queries import QUERIES


def workers(as_json: AsJson = False) -> None:
    """Who is alive, doing what. Workers that were silent for a day are left out."""
    with open_database() as connection:
        rows = connection.execute(QUERIES["worker_status"]).fetchall()
    columns = ("worker", "status", "base_model", "device", "running", "succeeded", "failed", "seen_s", "code_version")
    emit(rows, title="Workers", as_json=as_json, columns=columns)

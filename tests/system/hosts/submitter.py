"""An application that submits jobs: `python submitter.py URL NAME JOBS_A_SECOND`, until SIGTERM.

Each job has an idempotency key. A job without a reply is sent again with the same key until it is acknowledged; the
program then prints `key id time`. Each line that it reads is a key to submit again.
"""

import os
import select
import signal
import sys
import time

import psycopg

from loracomp.database import connections as db
from loracomp.errors import LoracompError

SUBMIT = "SELECT loracomp.submit_job('ask', max_new_tokens => 1, idempotency_key => %s) AS id"


class Submitter:
    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: db.Connection | None = None
        self.stopping = False

    def submit(self, key: str) -> int:
        """Submit a job again and again until it is acknowledged."""
        while True:
            try:
                if self._connection is None:
                    self._connection = db.connect(self._url, vectors=False, statement_timeout_s=3)
                row = self._connection.execute(SUBMIT, [key]).fetchone()
                assert row is not None
                return int(row["id"])
            except (psycopg.Error, LoracompError) as error:
                print(f"{key}: {error}", file=sys.stderr, flush=True)
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                time.sleep(0.1)

    def run(self, name: str, jobs_a_second: float) -> None:
        number = 0
        while not self.stopping:
            keys = [f"{name}-{number}"]
            number += 1
            if select.select([0], [], [], 0)[0]:
                # Not by readline, whose buffer select can't see.
                keys += os.read(0, 1 << 20).decode().split()
            for key in keys:
                job = self.submit(key)
                print(key, job, time.time(), flush=True)
            time.sleep(1 / jobs_a_second)


if __name__ == "__main__":
    url, name, jobs_a_second = sys.argv[1:]
    submitter = Submitter(url)
    signal.signal(signal.SIGTERM, lambda *_: setattr(submitter, "stopping", True))
    submitter.run(name, float(jobs_a_second))

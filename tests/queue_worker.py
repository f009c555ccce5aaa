"""A worker process with an engine that does what a job's prompt says: `python queue_worker.py URL [--drain]`.

Settings come from LORACOMP_* variables; log lines go to standard error.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from job_data import BASE, end
from loracomp.config import load_settings
from loracomp.database.connections import Connection, translated_errors
from loracomp.database.routing import route
from loracomp.engine.inflight import InFlight
from loracomp.engine.measuring import Measurement, MeasurementPlan, plan_measurements
from loracomp.errors import DeviceFailedError, JobError, LoracompError
from loracomp.worker.process import serve
from loracomp.worker.worker import Worker
from made_up_engine import MadeUp


class Obedient(MadeUp):
    """Does what the prompt's first word says, then answers with the prompt in capitals."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: dict[int, MeasurementPlan] = {}
        self.device_failed = False

    def prepare(self, connection: Connection, flights: Sequence[InFlight]) -> None:
        jobs = [flight.job for flight in flights]
        for job in jobs:
            match job.prompt.split():
                case ["look-up"]:
                    connection.execute("SELECT FROM loracomp.example_embedding LIMIT 1")
                case ["cut"]:
                    cut_connections(connection)
                    connection.execute("SELECT 1")
                case ["route-by", fingerprint]:
                    from loracomp.database.tables import DIMENSIONS  # sqlalchemy's import is half of a worker's start

                    route(connection, [job], np.ones((1, DIMENSIONS), np.float32), fingerprint, 1)
                case ["sentence", quoted]:
                    statement = f"DO $$ BEGIN RAISE EXCEPTION 'a sentence' USING DETAIL = '{quoted}'; END $$"
                    with translated_errors():
                        connection.execute(statement.encode())
                case ["break", "encoder"]:
                    self.device_failed = True
                    raise RuntimeError("CUDA error: device-side assert triggered")
                case ["unprepared"]:
                    raise ValueError("not to be prepared")
        plans = plan_measurements(connection, jobs)
        # Added to the others: the model may still answer the batch before.
        self.plans |= {plan.job_id: plan for plan in plans}

    def end(self, flight: InFlight) -> None:
        job, wanted = flight.job, flight.wanted
        match job.prompt.split():
            case ["plod", seconds]:  # step by step, whether or not it is wanted
                for _ in range(int(10 * float(seconds))):
                    wanted()
                    time.sleep(0.1)
            case ["write"]:  # for as long as it is wanted
                while wanted():
                    time.sleep(0.05)
            case ["until", file, *_]:  # for as long as the test wants it, but for a minute at most
                deadline = time.monotonic() + 60
                while not Path(file).exists() and time.monotonic() < deadline:
                    time.sleep(0.02)
            case ["sleep", seconds]:
                time.sleep(float(seconds))
            case ["die"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["break", "device"]:
                time.sleep(1)  # another job is prepared meanwhile
                self.device_failed = True
                raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
            case ["raise"]:
                raise ValueError("a fault")
            case ["refuse" | "fail"]:
                raise JobError("the prompt is too long", code="prompt_too_long")
            case ["nul"]:
                end(flight, output="a\0b \ud800")
            case ["nameless", output]:
                end(flight, output=output, batch_size=None)
        if job.kind == "measure":
            plan = self.plans[job.id]
            gains = tuple(id_ / 1000 for id_ in plan.adapter_ids)
            flight.result = Measurement(
                job.id, plan.choice_normalization, -1, True, plan.adapter_ids, gains, (True,) * len(gains)
            )
        elif flight.result is None:
            end(flight, output=job.prompt.upper())

    def check_device(self) -> None:
        if self.device_failed:
            raise DeviceFailedError("the device computes nothing any more")


def cut_connections(connection: Connection) -> None:
    """Cut the connections of this process once, as a restart of the server would."""
    if not os.environ.pop("CUT", None):
        return
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'loracomp %' AND pid <> pg_backend_pid()"
    )
    connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    settings = load_settings()
    worker = Worker(sys.argv[1], Obedient(), base_model=BASE, settings=settings, drain="--drain" in sys.argv)
    try:
        sys.exit(serve(worker, settings.grace_s))
    except LoracompError as error:
        sys.exit(error.exit_code)

"""An engine without a model, for workers of tests and benchmarks."""

from collections.abc import Sequence

from loracomp.database.connections import Connection
from loracomp.engine.inflight import InFlight, lap


class MadeUp:
    """An engine that ends all its jobs in one step, as `end` says."""

    def __init__(self) -> None:
        self.flights: list[InFlight] = []

    def __bool__(self) -> bool:
        return bool(self.flights)

    def prepare(self, connection: Connection, flights: Sequence[InFlight]) -> None:
        """Do nothing."""

    def embed(self, connection: Connection) -> int:
        return 0

    def add(self, flight: InFlight) -> None:
        self.flights.append(flight)

    def step(self) -> list[InFlight]:
        self.schedule()
        for flight in self.flights:
            self.end(flight)
        return self.clear()

    def schedule(self) -> list[InFlight]:
        """Return the jobs that join in this step."""
        joining = [flight for flight in self.flights if "ready" not in flight.timings]
        lap(joining, "ready")
        for flight in joining:
            flight.batch_size = len(self.flights)
        return joining

    def end(self, flight: InFlight) -> None:
        """Give the job its result."""
        raise NotImplementedError

    def check_device(self) -> None:
        """This engine has no device."""

    def clear(self) -> list[InFlight]:
        left, self.flights = self.flights, []
        return left

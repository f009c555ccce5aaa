"""Sets up what the benchmark needs: a database with the shipped library, the models, and jobs made from the demo's
jobs."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from benchmarks.databases import create_database
from loracomp.cli.demo import demo_jobs
from loracomp.composition.composer import Fetch, Loaded
from loracomp.composition.strategies import LoraFactors
from loracomp.config import Settings, load_settings
from loracomp.database import connections as db
from loracomp.database.embedded import database_url
from loracomp.engine.engine import Engine
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.model.loading import BaseModel
from loracomp.records import Composition, Prediction, Request
from loracomp.registry.adapter_store import fetch_adapters
from loracomp.registry.library import load_library
from loracomp.registry.library_files import MANIFEST, packaged, read_manifest
from loracomp.worker.start import load_engine

WORDS = ["the", "a", "of", "cat", "river", "seven", "slowly", "under", "why", "opened", "music", "because", "small"]
IN_A_MIX = 4
ROOM = 4
"""Number of batches whose adapters fit into the cache when the library is large."""
ACTIVE = """
SELECT a.id, t.name AS task FROM loracomp.adapter AS a JOIN loracomp.task AS t ON t.id = a.task_id
WHERE a.status = 'active' ORDER BY a.id
"""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements; the goals were set for the defaults."""

    batch: int = 32
    """Number of jobs that are scored together."""
    generating: int = 16
    new_tokens: int = 32
    texts: int = 64
    """Number of texts of different lengths that are generated together."""
    arriving: int = 48
    """Number of texts that come one by one."""
    queue: int = 128
    """Number of jobs that are inserted at once."""
    library: int = 1000
    """Number of adapters in the large library."""
    measured: int = 64
    """Number of examples that are measured under every adapter."""

    @property
    def used(self) -> int:
        """Number of the shipped library's adapters that a batch can use if each job uses two new ones."""
        return min(2 * self.batch, len(read_manifest(packaged()).tasks))

    def too_small(self) -> str | None:
        """Return a sentence that names the option that is too small to measure with, or None if all are large
        enough."""
        for name, size in asdict(self).items():
            if size < 1:
                return f"--{name.replace('_', '-')} must be at least 1, not {size}"
        if self.used < IN_A_MIX:
            return (
                f"--batch must be at least {IN_A_MIX // 2}: its jobs mix {IN_A_MIX} adapters and may use 2 for each job"
            )
        if self.library < (ROOM + 1) * self.used:
            return (
                f"--library must be at least {(ROOM + 1) * self.used}, not {self.library}: a batch uses {self.used} "
                f"adapters, and with room for {ROOM} batches' it must still be read from the database"
            )
        return None


@dataclass(frozen=True)
class Workbench:
    """The benchmark's own database with the shipped library, and the engine that a worker would run."""

    settings: Settings
    connection: db.Connection
    engine: Engine
    library: tuple[LoraFactors, ...]
    """The 22 adapters of the shipped library, by id."""
    tasks: tuple[str, ...]
    """The tasks of these adapters, in the same order."""
    sizes: Sizes

    @property
    def base(self) -> BaseModel:
        return self.engine.base

    def predictor(self, adapters: Sequence[LoraFactors] | None = None, *, base: BaseModel | None = None) -> "Fetching":
        """Make a predictor that fetches adapters from memory."""
        return Fetching(base or self.base, from_memory(self.library if adapters is None else adapters))


class Fetching(Predictor):
    """A predictor that always fetches adapters with the same function."""

    def __init__(self, base: BaseModel, fetch: Fetch, **settings: Any) -> None:
        super().__init__(base, **settings)
        self._from = fetch

    def predict(self, requests: Sequence[Request], fetch: Fetch | None = None) -> list[Prediction | JobError]:
        return super().predict(requests, fetch or self._from)

    def load(self, compositions: Sequence[Composition], fetch: Fetch | None = None) -> Loaded:
        return super().load(compositions, fetch or self._from)


def from_memory(adapters: Sequence[LoraFactors]) -> Fetch:
    known = {adapter.id: adapter for adapter in adapters}
    return lambda ids: [known[id_] for id_ in ids]


@contextmanager
def open_workbench(sizes: Sizes) -> Iterator[Workbench]:
    """Set up the workbench; its database is kept for the next run."""
    settings = load_settings()
    url = own_database(database_url(settings))
    settings = settings.model_copy(update={"database_url": url})
    with db.connect(url) as connection:
        load_library(connection, settings=settings)
        active = connection.execute(ACTIVE).fetchall()
        library = fetch_adapters(connection, [row["id"] for row in active])
        engine = load_engine(settings, connection)
        yield Workbench(settings, connection, engine, tuple(library), tuple(row["task"] for row in active), sizes)


def own_database(server: str) -> str:
    """Return the URL of a database for the current library, with this release's schema, on the configured server. Jobs
    that an earlier run left in the database are deleted, because a worker would answer them during a measurement.
    """
    digest = hashlib.sha256((packaged() / MANIFEST).read_bytes())
    for path in sorted(packaged().rglob("*.safetensors")):
        digest.update(path.read_bytes())
    url = create_database(server, f"engine_{digest.hexdigest()[:8]}")
    with db.connect(url) as connection:
        connection.execute("DELETE FROM loracomp.job WHERE finished_at IS NULL")
    return url


class Registered(NamedTuple):
    """Id and hash of an adapter, which is all that a composition needs."""

    id: int
    sha256: str


def once_each(adapters: Iterable[LoraFactors | Registered]) -> list[Composition]:
    """Return, for each adapter, a composition of only this adapter with weight 1."""
    return [Composition((each.id,), (each.sha256,), (1.0,)) for each in adapters]


def made_up_jobs(count: int, seed: int, words: tuple[int, int] = (2, 20)) -> list[dict[str, Any]]:
    """Return the demo's jobs with choices, each with a few random words in front, so that each is routed
    differently."""
    draw = random.Random(seed)
    asked = [job for job in demo_jobs() if job["choices"] and job["policy"] == "default"]
    return [
        {
            "prompt": f"{' '.join(draw.choices(WORDS, k=draw.randint(*words)))}. {job['prompt']}",
            "choices": job["choices"],
        }
        for job in draw.choices(asked, k=count)
    ]


def to_score(jobs: Iterable[dict[str, Any]], compositions: Iterable[Composition]) -> list[Request]:
    """Return scoring requests for jobs, each with its own composition."""
    return [
        Request(job["prompt"], tuple(job["choices"]), None, normalization="tokens", composition=composition)
        for job, composition in zip(jobs, compositions, strict=True)
    ]


Draw = Callable[[int], list[Composition]]
"""A function that returns the given number of new compositions."""


def drawing(adapters: Sequence[LoraFactors | Registered], *, strategy: str = "cat", seed: int = 0) -> Draw:
    """Return a function that draws new compositions, with random adapters and weights, in each call."""
    draw = random.Random(seed)

    def one() -> Composition:
        used = draw.sample(adapters, IN_A_MIX)
        shares = [draw.uniform(0.1, 1) for _ in used]
        ids, digests = tuple(each.id for each in used), tuple(each.sha256 for each in used)
        weights = tuple(share / sum(shares) for share in shares)
        return Composition(ids, digests, weights, strategy, density=0.5 if strategy != "linear" else 1.0)

    return lambda count: [one() for _ in range(count)]

"""Caches in device memory between batches, each limited in bytes; the least recently used entry is evicted first."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeAlias, TypeVar

import torch

from loracomp import metrics
from loracomp.composition.blocks import move, nbytes
from loracomp.composition.strategies import AdapterWeights, PackedAdapter
from loracomp.errors import JobError

K = TypeVar("K")
V = TypeVar("V")

Fetch = Callable[[Sequence[int]], Iterable[AdapterWeights]]
"""Reads the adapters with these ids in one round trip. Raises JobError if any of them is missing or corrupt."""

Loaded: TypeAlias = Mapping[int, PackedAdapter | JobError]
"""Maps an adapter's id to the adapter on the device, or to the error that explains why it could not be loaded."""


class ByteLimitedCache(Generic[K, V]):
    """A cache of at most `budget` bytes that evicts the least recently used value first.

    The newest value is kept even if it alone is larger than the budget.
    """

    def __init__(self, budget: int, name: str | None = None) -> None:
        """`budget` in bytes. A cache with a `name` reports its size and its hits to the metrics under that name."""
        self.budget = budget
        self.nbytes = 0
        self._name = name
        if name:
            metrics.CACHE_BUDGET.labels(name).set(budget)
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value of `key`, or None. It becomes the most recently used."""
        if self._name:
            metrics.CACHE_REQUESTS.labels(self._name, "hit" if key in self._values else "miss").inc()
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: K, value: V, nbytes: int) -> None:
        """Store a value that takes `nbytes` bytes, and evict others until the budget holds."""
        self.nbytes += nbytes - self._values.pop(key, (None, 0))[1]
        self._values[key] = (value, nbytes)
        while self.nbytes > self.budget and len(self._values) > 1:
            self.nbytes -= self._values.popitem(last=False)[1][1]
        if self._name:
            metrics.CACHE_BYTES.labels(self._name).set(self.nbytes)


class ResidentAdapters:
    """A cache of adapters on the device, which fetches the adapters that it lacks.

    A batch may need more adapters than the budget holds: evicted ones stay in memory until the batch ends.
    """

    def __init__(self, budget_bytes: int, device: torch.device | str = "cpu") -> None:
        self._device = device
        self.cache: ByteLimitedCache[int, PackedAdapter] = ByteLimitedCache(budget_bytes, "adapters")

    def get(self, adapter_ids: Iterable[int], fetch: Fetch) -> Loaded:
        """The adapters with these ids; one call of `fetch` brings all that are not cached."""
        found = {id_: self.cache.get(id_) for id_ in adapter_ids}
        missing = [id_ for id_, adapter in found.items() if adapter is None]
        loaded = self._load(missing, fetch) if missing else {}
        return {id_: adapter or loaded[id_] for id_, adapter in found.items()}

    def _load(self, adapter_ids: Sequence[int], fetch: Fetch) -> Loaded:
        try:
            fetched = [self._to_device(adapter) for adapter in fetch(adapter_ids)]
        except JobError as error:
            if len(adapter_ids) == 1:
                return {adapter_ids[0]: error}
            # A bad adapter must fail only the jobs that use it: fetch each adapter alone to find the bad one.
            return {id_: result for each in adapter_ids for id_, result in self._load([each], fetch).items()}
        for adapter in fetched:
            self.cache.put(adapter.id, adapter, nbytes(adapter.stored))
        return {adapter.id: adapter for adapter in fetched}

    def _to_device(self, adapter: AdapterWeights) -> PackedAdapter:
        packed = adapter.packed()
        return replace(packed, stored=move(packed.stored, self._device))

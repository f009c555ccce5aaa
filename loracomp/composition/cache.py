"""A cache limited by the bytes of its values. It is a module of its own because what uses it need not import torch."""

from collections import OrderedDict
from typing import Generic, TypeVar

from loracomp import metrics

K = TypeVar("K")
V = TypeVar("V")


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

    def clear(self) -> None:
        """Evict all values."""
        self._values.clear()
        self.nbytes = 0

"""Turns compositions (adapter ids and weights) into mixes that the model can run; keeps what it needs on the device."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias
from weakref import WeakValueDictionary

import torch

from loracomp.composition.blocks import Mask, move, nbytes
from loracomp.composition.cache import ByteLimitedCache
from loracomp.composition.strategies import (
    TRIMMING,
    LoraFactors,
    Mix,
    PackedAdapter,
    check_settings,
    gated,
    trim,
)
from loracomp.errors import JobError, UsageError
from loracomp.model.batching import unless_out_of_memory
from loracomp.model.loading import BaseModel
from loracomp.records import Composition

Fetch = Callable[[Sequence[int]], Iterable[LoraFactors]]
"""Reads the adapters with these ids in one round trip. Raises JobError if any of them is missing or corrupt."""

Loaded: TypeAlias = Mapping[int, PackedAdapter | JobError]
"""Maps an adapter's id to the adapter on the device, or to the error that explains why it could not be loaded."""


class ResidentAdapters:
    """A cache of adapters on the device, which fetches the adapters that it lacks.

    A batch may need more adapters than the budget holds: evicted ones stay in memory until the batch ends.
    """

    def __init__(self, budget_bytes: int, device: torch.device | str = "cpu") -> None:
        self._device = device
        self.cache: ByteLimitedCache[int, PackedAdapter] = ByteLimitedCache(budget_bytes, "adapters")

    def get(self, used: Iterable[tuple[int, str]], fetch: Fetch) -> Loaded:
        """The adapters with these ids and sha256; one call of `fetch` brings all that are not cached.

        A cached adapter with another sha256 is fetched again, because the id means another file if the database was
        restored from another backup meanwhile. Whether the fetched one has that sha256 is left to `Composer.compose`.
        """
        needed: dict[int, set[str]] = {}
        for id_, sha256 in used:
            needed.setdefault(id_, set()).add(sha256)
        cached = {id_: adapter for id_ in needed if (adapter := self.cache.get(id_)) is not None}
        missing = [id_ for id_, sha256 in needed.items() if id_ not in cached or sha256 != {cached[id_].sha256}]
        return {**cached, **(self._load(missing, fetch) if missing else {})}

    def _load(self, adapter_ids: Sequence[int], fetch: Fetch) -> Loaded:
        fetched = self._fetched(adapter_ids, fetch)
        if not isinstance(fetched, JobError):
            for adapter in fetched:
                self.cache.put(adapter.id, adapter, nbytes(adapter.stored))
            return {adapter.id: adapter for adapter in fetched}
        if len(adapter_ids) == 1:
            return {adapter_ids[0]: fetched}
        # A bad adapter must fail only the jobs that use it: fetch each adapter alone to find the bad one.
        return {id_: result for each in adapter_ids for id_, result in self._load([each], fetch).items()}

    def _fetched(self, adapter_ids: Sequence[int], fetch: Fetch) -> Sequence[PackedAdapter] | JobError:
        """These adapters, on the device. If memory runs out, adapters that no running job uses leave it first."""
        try:
            for _ in range(2):
                fetched = unless_out_of_memory(lambda: [self._to_device(adapter) for adapter in fetch(adapter_ids)])
                if fetched is not None:
                    return fetched
                self.cache.clear()
        except JobError as error:
            return error
        return JobError(
            f"the worker has too little memory for adapter {adapter_ids[0]}: give it more, or lower its "
            "adapter_cache_mb or token_budget",
            code="out_of_memory",
            retry=True,
        )

    def _to_device(self, adapter: LoraFactors) -> PackedAdapter:
        packed = adapter.packed()
        return replace(packed, stored=move(packed.stored, self._device))


BASE_ALONE = Mix()


class Composer:
    """Composes for one base model, and caches masks."""

    def __init__(self, base: BaseModel, *, cache_bytes: int) -> None:
        self._base = base
        self.masks: ByteLimitedCache[tuple[object, ...], Mask] = ByteLimitedCache(cache_bytes, "compositions")
        self._mixes: WeakValueDictionary[Composition, Mix] = WeakValueDictionary()
        """Mixes in use: each is merged once for all jobs that run under it."""

    def compose(self, compositions: Sequence[Composition], adapters: Loaded) -> list[Mix | JobError]:
        """For each composition the mix to run, or the error that prevents it. Equal compositions share a mix.

        JobError codes: 'adapter_changed', 'adapter_unfit', 'composition_refused', and those in `adapters`.
        """
        return [self._mix(composition, adapters) for composition in compositions]

    def _mix(self, composition: Composition, adapters: Loaded) -> Mix | JobError:
        if (known := self._mixes.get(composition)) is not None:
            return known
        made = self._composed(composition, adapters)
        if isinstance(made, Mix):
            self._mixes[composition] = made
        return made

    def _composed(self, composition: Composition, adapters: Loaded) -> Mix | JobError:
        if not composition.adapter_ids:
            return BASE_ALONE
        try:
            if len(set(composition.adapter_ids)) < len(composition.adapter_ids):
                raise UsageError("adapters of a composition must be distinct")
            check_settings(composition.strategy, len(composition.adapter_ids), composition.weights, composition.density)
            used = [
                self._checked(adapters[id_], sha256)
                for id_, sha256 in zip(composition.adapter_ids, composition.adapter_sha256, strict=True)
            ]
        except JobError as error:
            return error
        except UsageError as error:
            return JobError(str(error), code="composition_refused")
        masked = [self._masked(composition, adapter) for adapter in used]
        return gated(composition.strategy, masked, composition.weights, self._base.model.dtype)

    def _checked(self, adapter: PackedAdapter | JobError, sha256: str) -> PackedAdapter:
        if isinstance(adapter, JobError):
            raise adapter
        if adapter.sha256 != sha256:
            raise JobError(
                f"adapter {adapter.id} has sha256 {adapter.sha256[:12]}, but the composition was made with "
                f"{sha256[:12]}: the adapter was replaced since; submit the job again",
                code="adapter_changed",
            )
        for shape, block in adapter.blocks.items():
            for module in block.modules:
                if self._base.modules.get(module) != shape:
                    raise JobError(
                        f"adapter {adapter.id} does not fit base model {self._base.name} at module {module}: "
                        "activate one that was trained for it",
                        code="adapter_unfit",
                    )
        return adapter

    def _masked(self, composition: Composition, adapter: PackedAdapter) -> PackedAdapter:
        if composition.strategy not in TRIMMING:
            return adapter
        # Only the mask is kept, because it does not refer to the adapter: an adapter that is evicted must leave memory.
        key = adapter.key, composition.density
        if (mask := self.masks.get(key)) is None:
            mask = trim(adapter, composition.density)
            self.masks.put(key, mask, mask.nbytes)
        return adapter.masked(mask)

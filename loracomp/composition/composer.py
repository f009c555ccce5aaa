"""Turns compositions (adapter ids and weights) into mixes that the model can run."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from loracomp.composition.blocks import nbytes
from loracomp.composition.resident import ByteLimitedCache, Loaded
from loracomp.composition.strategies import Mix, PackedAdapter, check_settings, gated, mask, mask_name, randomize
from loracomp.errors import JobError, UsageError
from loracomp.model.loading import BaseModel
from loracomp.records import Composition

T = TypeVar("T")
BASE_ALONE = Mix()


class Composer:
    """Composes for one base model, and caches masks."""

    def __init__(self, base: BaseModel, *, cache_bytes: int) -> None:
        self._base = base
        self.prepared: ByteLimitedCache[tuple[object, ...], Any] = ByteLimitedCache(cache_bytes, "compositions")
        """Masks, and adapters with random factors."""
        self._mixes: WeakValueDictionary[Composition, Mix] = WeakValueDictionary()
        """Mixes in use: one that elects is merged once for all jobs that run under it."""

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
        if composition.random_parameters:
            used = [self._randomized(adapter, composition.seed) for adapter in used]
        prepared = [self._masked(composition, adapter) for adapter in used]
        return gated(composition.strategy, prepared, composition.weights)

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
        strategy, density, seed = composition.strategy, composition.density, composition.seed
        if not (name := mask_name(strategy, density, seed)):
            return adapter
        # The mask alone is kept, because it refers to no adapter: those that are evicted must leave memory.
        kept = self._keeping(
            (adapter.key, name), lambda: mask(strategy, adapter, density=density, seed=seed), lambda mask: mask.nbytes
        )
        return adapter.masked(kept)

    def _randomized(self, adapter: PackedAdapter, seed: int) -> PackedAdapter:
        key = adapter.key, f"random {seed}"
        return self._keeping(key, lambda: randomize(adapter, seed), lambda random: nbytes(random.stored))

    def _keeping(self, key: tuple[object, ...], make: Callable[[], T], size: Callable[[T], int]) -> T:
        kept: T | None = self.prepared.get(key)
        if kept is None:
            kept = make()
            self.prepared.put(key, kept, size(kept))
        return kept

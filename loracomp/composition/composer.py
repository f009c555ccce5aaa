"""From compositions (ids and weights) to mixes ready for the model, with their distance from the exact weighted sum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loracomp.composition.blocks import nbytes
from loracomp.composition.fidelity import fidelity
from loracomp.composition.resident import ByteLimitedCache, Loaded
from loracomp.composition.strategies import (
    ELECTING,
    Mix,
    PackedAdapter,
    check_settings,
    elect,
    gated,
    mask,
    mask_name,
    randomize,
)
from loracomp.errors import JobError, UsageError
from loracomp.model.loading import BaseModel
from loracomp.records import Composition


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """A composition ready for the model: prepared adapters with gates; no adapters mean the base model alone."""

    mix: Mix = field(default_factory=Mix)
    norm_ratio: float | None = None
    cosine: float | None = None
    """Both against the exact weighted sum of the adapters; None for the base model alone, and where either is zero."""


BASE_ALONE = Composed()


class Composer:
    """Composes for one base model. What is costly is kept: an adapter or a set of them prepared."""

    def __init__(self, base: BaseModel, *, cache_bytes: int) -> None:
        self._base = base
        self.prepared: ByteLimitedCache[tuple[object, ...], tuple[PackedAdapter, ...]] = ByteLimitedCache(
            cache_bytes, "compositions"
        )

    def compose(self, compositions: Sequence[Composition], adapters: Loaded) -> list[Composed | JobError]:
        """Each composition ready for the model, or why it cannot be; equal ones are the same object.

        JobError codes: those of the adapters; 'adapter_changed', 'adapter_unfit', 'composition_refused'.
        """
        ready = {composition: self._composed(composition, adapters) for composition in set(compositions)}
        return [ready[composition] for composition in compositions]

    def _composed(self, composition: Composition, adapters: Loaded) -> Composed | JobError:
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
        mix = gated(composition.strategy, self._prepared(composition, used), composition.weights)
        # cat is the exact weighted sum: nothing to measure.
        exact = composition.strategy == "cat"
        measured = (1.0, 1.0) if exact else fidelity(mix, gated("cat", used, composition.weights))
        return Composed(mix, *(measured or ()))

    def _checked(self, adapter: PackedAdapter | JobError, sha256: str) -> PackedAdapter:
        if isinstance(adapter, JobError):
            raise adapter
        if adapter.sha256 != sha256:
            raise JobError(
                f"adapter {adapter.id} has sha256 {adapter.sha256[:12]}, not {sha256[:12]} as composed: "
                "it was replaced since; submit the job again",
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

    def _prepared(self, composition: Composition, adapters: Sequence[PackedAdapter]) -> Sequence[PackedAdapter]:
        strategy, density, seed = composition.strategy, composition.density, composition.seed
        masked = [self._masked(strategy, adapter, density, seed) for adapter in adapters]
        if strategy not in ELECTING:
            return masked
        # The set is elected in the order of ids, so that it is the same however a mix lists it.
        order = sorted(range(len(masked)), key=lambda at: masked[at].key)
        ordered = [masked[at] for at in order]
        key = tuple(adapter.key for adapter in ordered)
        elected = self._keeping(key, lambda: elect(ordered))
        return [adapter for _, adapter in sorted(zip(order, elected, strict=True), key=lambda pair: pair[0])]

    def _masked(self, strategy: str, adapter: PackedAdapter, density: float, seed: int) -> PackedAdapter:
        if not (name := mask_name(strategy, density, seed)):
            return adapter
        key = adapter.key, name
        return self._keeping(key, lambda: (mask(strategy, adapter, density=density, seed=seed),))[0]

    def _randomized(self, adapter: PackedAdapter, seed: int) -> PackedAdapter:
        return self._keeping((adapter.key, f"random {seed}"), lambda: (randomize(adapter, seed),))[0]

    def _keeping(
        self, key: tuple[object, ...], prepare: Callable[[], tuple[PackedAdapter, ...]]
    ) -> tuple[PackedAdapter, ...]:
        if (kept := self.prepared.get(key)) is None:
            kept = prepare()
            self.prepared.put(key, kept, sum(nbytes(adapter.blocks) for adapter in kept))
        return kept

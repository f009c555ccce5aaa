"""From compositions (ids and weights) to mixes ready for the model, with how exact they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from loracomp.composition.blocks import nbytes
from loracomp.composition.diagnostics import Fidelity
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

_Measured: TypeAlias = tuple[float, float] | tuple[()]
"""Norm ratio and cosine, before rescaling; empty where there is nothing to measure."""
MEASURED_NBYTES = 300
"""What two floats under a digest take, about."""


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """A composition as gates over prepared adapters; none for the base model alone."""

    mix: Mix = field(default_factory=Mix)
    norm_ratio: float | None = None
    cosine: float | None = None
    """Against the exact weighted sum of the adapters; None where not measured, or where there is nothing to measure."""


BASE_ALONE = Composed()


class Composer:
    """Composes for one base model. What is costly is kept: an adapter or a set of them prepared, a mix measured."""

    def __init__(self, base: BaseModel, *, cache_bytes: int, diagnostics: float) -> None:
        """`diagnostics` is the share of compositions (0 to 1) for which norm ratio and cosine are measured."""
        self._base = base
        self._diagnostics = diagnostics
        head = base.model.get_output_embeddings()
        # The output head sees a batch's scored tokens only, and no longer knows their rows.
        self._modules = {
            module: shape for module, shape in base.modules.items() if base.model.get_submodule(module) is not head
        }
        self.prepared: ByteLimitedCache[tuple[object, ...], tuple[PackedAdapter, ...]] = ByteLimitedCache(
            cache_bytes * 11 // 16, "compositions"
        )
        self.fidelity = Fidelity(cache_bytes // 4)
        self._measured: ByteLimitedCache[str, _Measured] = ByteLimitedCache(cache_bytes // 16)

    def compose(self, compositions: Sequence[Composition], adapters: Loaded) -> list[Composed | JobError]:
        """Each composition ready for the model, or why it cannot be; equal ones are the same object.

        JobError codes: those of the adapters; 'adapter_changed', 'adapter_unfit', 'composition_refused'.
        """
        keys = [self._key(composition) for composition in compositions]
        wanted = dict(zip(keys, compositions, strict=True))
        mixes = {key: self._mixes(composition, adapters) for key, composition in wanted.items()}
        good = {key: each for key, each in mixes.items() if not isinstance(each, JobError)}
        measured = self._measure({key: each for key, each in good.items() if self._is_measured(key, wanted[key])})
        ready: dict[str, Composed | JobError] = {key: each for key, each in mixes.items() if isinstance(each, JobError)}
        for key, (mix, _) in good.items():
            ready[key] = self._composed(key, wanted[key], mix, measured.get(key, ()))
        return [ready[key] for key in keys]

    def _key(self, composition: Composition) -> str:
        # One file may be registered twice, with another alpha: the digest sees the file alone, the ids tell them apart.
        return f"{composition.digest(self._base.fingerprint)} {composition.adapter_ids}"

    def _mixes(self, composition: Composition, adapters: Loaded) -> tuple[Mix, Mix] | JobError:
        """The mix before it is rescaled, and the exact weighted sum, which of cat is the mix itself."""
        if not composition.adapter_ids:
            return BASE_ALONE.mix, BASE_ALONE.mix
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
        return mix, mix if composition.strategy == "cat" else gated("cat", used, composition.weights)

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
                if self._modules.get(module) != shape:
                    raise JobError(
                        f"adapter {adapter.id} does not fit base model {self._base.name} at module {module}: "
                        "activate one that was trained for it",
                        code="adapter_unfit",
                    )
        return adapter

    def _is_measured(self, key: str, composition: Composition) -> bool:
        return bool(composition.adapter_ids) and (composition.rescale or self._is_sampled(key))

    def _is_sampled(self, key: str) -> bool:
        # A share of compositions by their digest, so that the same one is measured everywhere, or nowhere.
        return int(key[:8], 16) < self._diagnostics * 2**32

    def _measure(self, mixes: Mapping[str, tuple[Mix, Mix]]) -> dict[str, _Measured]:
        known = {key: kept for key in mixes if (kept := self._measured.get(key)) is not None}
        new = {key: each for key, each in mixes.items() if key not in known}
        self.fidelity.meet(new.values())
        for key, (mix, exact) in new.items():
            known[key] = self.fidelity.measure(mix, exact) or ()
            self._measured.put(key, known[key], MEASURED_NBYTES)
        return known

    def _composed(self, key: str, composition: Composition, mix: Mix, measured: _Measured) -> Composed:
        if not mix.adapters:
            return BASE_ALONE
        if composition.rescale and measured:
            mix = replace(mix, right=tuple(gate / measured[0] for gate in mix.right))
            measured = 1.0, measured[1]
        return Composed(mix, *measured) if measured and self._is_sampled(key) else Composed(mix)

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

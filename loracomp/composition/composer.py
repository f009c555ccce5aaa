"""From compositions (ids and weights) to factors ready for the model, with how exact they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loracomp.composition.diagnostics import fidelity, scaled_to
from loracomp.composition.resident import ByteLimitedCache, ResidentAdapters, factors_nbytes, move_factors
from loracomp.composition.strategies import AdapterWeights, ModuleFactors, compose, randomize
from loracomp.errors import JobError, UsageError
from loracomp.records import Composition
from loracomp.registry.models import BaseModel


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """A composition's factors in the model's dtype; none for the base model alone."""

    factors: ModuleFactors = field(default_factory=dict)
    norm_ratio: float | None = None
    cosine: float | None = None
    """Against the exact weighted sum of the adapters; None where not measured, or where there is nothing to measure."""


BASE_ALONE = Composed()


class Composer:
    """Composes for one base model; compositions are kept by their digest, whichever job or batch asks for them."""

    def __init__(self, base: BaseModel, adapters: ResidentAdapters, *, cache_bytes: int, diagnostics: float) -> None:
        """`diagnostics` is the share of compositions (0 to 1) for which norm ratio and cosine are measured."""
        self._base = base
        self._adapters = adapters
        self._diagnostics = diagnostics
        self.cache: ByteLimitedCache[str, Composed] = ByteLimitedCache(cache_bytes)

    def compose(self, compositions: Sequence[Composition]) -> list[Composed | JobError]:
        """Each composition ready for the model, or why it cannot be; equal ones are the same object.

        JobError codes: what fetching raises; 'adapter_changed', 'adapter_unfit', 'composition_refused'.
        """
        digests = [self._key(composition) for composition in compositions]
        wanted = dict(zip(digests, compositions, strict=True))
        ready: dict[str, Composed | JobError] = {d: kept for d in wanted if (kept := self.cache.get(d))}
        missing = {digest: composition for digest, composition in wanted.items() if digest not in ready}
        adapters = self._adapters.get({id_: None for c in missing.values() for id_ in c.adapter_ids})
        for digest, composition in missing.items():
            ready[digest] = self._compose(digest, composition, adapters)
        return [ready[digest] for digest in digests]

    def _key(self, composition: Composition) -> str:
        # One file may be registered twice, with another alpha: the digest sees the file alone, the ids tell them apart.
        return f"{composition.digest(self._base.fingerprint)} {composition.adapter_ids}"

    def _compose(
        self, digest: str, composition: Composition, adapters: Mapping[int, AdapterWeights | JobError]
    ) -> Composed | JobError:
        if not composition.adapter_ids:
            return BASE_ALONE
        try:
            used = [
                self._checked(adapters[id_], sha256)
                for id_, sha256 in zip(composition.adapter_ids, composition.adapter_sha256, strict=True)
            ]
            composed = self._merge(digest, composition, used)
        except JobError as error:
            return error
        except UsageError as error:
            return JobError(str(error), code="composition_refused")
        self.cache.put(digest, composed, factors_nbytes(composed.factors))
        return composed

    def _checked(self, adapter: AdapterWeights | JobError, sha256: str) -> AdapterWeights:
        if isinstance(adapter, JobError):
            raise adapter
        if adapter.sha256 != sha256:
            raise JobError(
                f"adapter {adapter.id} has sha256 {adapter.sha256[:12]}, not {sha256[:12]} as composed: "
                "it was replaced since; submit the job again",
                code="adapter_changed",
            )
        for module, (A, B) in adapter.factors.items():
            fits = self._base.modules.get(module) == (len(B), A.shape[1])
            # The output head sees a batch's scored tokens only, and no longer knows their rows.
            if not fits or self._base.model.get_submodule(module) is self._base.model.get_output_embeddings():
                raise JobError(
                    f"adapter {adapter.id} does not fit base model {self._base.name} at module {module}: "
                    "activate one that was trained for it",
                    code="adapter_unfit",
                )
        return adapter

    def _merge(self, digest: str, composition: Composition, adapters: list[AdapterWeights]) -> Composed:
        if composition.random_parameters:
            adapters = [randomize(adapter, composition.seed) for adapter in adapters]
        factors = compose(
            composition.strategy, adapters, composition.weights, density=composition.density, seed=composition.seed
        )
        # A share of compositions by their digest, so that the same one is measured everywhere, or nowhere.
        measuring = int(digest[:8], 16) < self._diagnostics * 2**32
        measured = None
        if composition.rescale or measuring:
            exact = compose("cat", adapters, composition.weights)
            factors = scaled_to(factors, exact) if composition.rescale else factors
            measured = fidelity(factors, exact) if measuring else None
        model = self._base.model
        return Composed(move_factors(factors, model.device, model.dtype), *(measured or (None, None)))

"""From a request with its composition to the model's prediction: loads adapters, composes the mix, and answers."""

from collections.abc import Callable, Sequence
from functools import partial

from loracomp.composition.composer import Composer, Fetch, Loaded, ResidentAdapters
from loracomp.composition.strategies import Mix
from loracomp.engine.answering import Answering
from loracomp.engine.repeats import KnownScores
from loracomp.engine.series import SeriesScores
from loracomp.errors import JobError
from loracomp.model.loading import BaseModel
from loracomp.records import Composition, Prediction, Request


class Predictor:
    """Answers requests with one base model, each under its own composition.

    `load` may run in one thread while `compose` and the answering run in another.
    """

    def __init__(self, base: BaseModel, *, token_budget: int = 16384, cache_bytes: int = 2 << 30) -> None:
        """`token_budget` limits the tokens of a forward pass, and the tokens of all texts that are generated together,
        both with padding; `cache_bytes` limits the memory kept on the device between batches (three quarters for
        adapters, one quarter for compositions).
        """
        self._base = base
        self._token_budget = token_budget
        self._adapters = ResidentAdapters(cache_bytes * 3 // 4, base.model.device)
        self._composer = Composer(base, cache_bytes=cache_bytes // 4)
        self._series = SeriesScores()
        self._known = KnownScores()

    def predict(self, requests: Sequence[Request], fetch: Fetch) -> list[Prediction | JobError]:
        """Load, compose and answer in one go."""
        compositions = [request.composition for request in requests]
        return self.answer(requests, self.compose(compositions, self.load(compositions, fetch)))

    def load(self, compositions: Sequence[Composition], fetch: Fetch) -> Loaded:
        """The adapters of compositions, on the device; one call of `fetch` reads all that are not there yet."""
        used = {pair: None for each in compositions for pair in zip(each.adapter_ids, each.adapter_sha256, strict=True)}
        return self._adapters.get(used, fetch)

    def compose(self, compositions: Sequence[Composition], adapters: Loaded) -> list[Mix | JobError]:
        """See `Composer.compose`."""
        return self._composer.compose(compositions, adapters)

    def begin(self) -> Answering:
        """An object that answers requests, to which more can be added at any time."""
        return Answering(self._base, self._token_budget, self._series, self._known)

    def answer(
        self,
        requests: Sequence[Request],
        compositions: Sequence[Mix | JobError],
        wanted: Callable[[int], bool] = lambda _: True,
    ) -> list[Prediction | JobError]:
        """The answer to each request under its composition, or the request's own error, in order.

        `wanted(index)` is called between forward passes; if it returns False, the request is dropped. JobError codes:
        those of the compositions and of `Answering`.
        """
        answering = self.begin()
        pending = [
            answering.add(request, mix, partial(wanted, number))
            for number, (request, mix) in enumerate(zip(requests, compositions, strict=True))
        ]
        while answering:
            answering.step()
        return [each.outcome for each in pending if each.outcome is not None]

"""The predict step: requests with a composition each -> answers, in as few forward passes as memory allows."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeVar

from loracomp.composition.answering import Answering
from loracomp.composition.checking import MergeChecker
from loracomp.composition.composer import Composed, Composer
from loracomp.composition.resident import Fetch, Loaded, ResidentAdapters
from loracomp.errors import JobError
from loracomp.model.loading import BaseModel
from loracomp.records import Answer, Composition, Request

K = TypeVar("K", bound=Hashable)


class Predictor:
    """Answers requests with one base model, each under its own composition.

    `load` may run in one thread while `compose` and the answering run in another.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        token_budget: int = 16384,
        cache_bytes: int = 2 << 30,
        check_one_in: int = 0,
        fidelity_one_in: int = 1,
    ) -> None:
        """`token_budget` limits the tokens of a forward pass, and the tokens of all texts that are generated together,
        both with padding; `cache_bytes` limits the memory kept on the device between batches (three quarters for
        adapters, one quarter for compositions). One scoring pass in `check_one_in` is compared with merged weights
        (`MergeChecker`); 0: none. `fidelity_one_in` as in `Composer`.
        """
        self._base = base
        self._token_budget = token_budget
        self._adapters = ResidentAdapters(cache_bytes * 3 // 4, base.model.device)
        self._checker = MergeChecker(base.model, check_one_in)
        self._composer = Composer(base, cache_bytes=cache_bytes // 4, fidelity_one_in=fidelity_one_in)

    def predict(self, requests: Sequence[Request], fetch: Fetch) -> list[Answer | JobError]:
        """Load, compose and answer in one go."""
        compositions = [request.composition for request in requests]
        return self.answer(requests, self.compose(compositions, self.load(compositions, fetch)))

    def load(self, compositions: Sequence[Composition], fetch: Fetch) -> Loaded:
        """The adapters of compositions, on the device; one call of `fetch` reads all that are not there yet."""
        return self._adapters.get({id_: None for each in compositions for id_ in each.adapter_ids}, fetch)

    def compose(self, compositions: Sequence[Composition], adapters: Loaded) -> list[Composed | JobError]:
        """See `Composer.compose`."""
        return self._composer.compose(compositions, adapters)

    def begin(self) -> Answering[K]:
        """An object that answers requests, to which more can be added at any time."""
        return Answering(self._base, self._token_budget, self._checker)

    def answer(
        self,
        requests: Sequence[Request],
        compositions: Sequence[Composed | JobError],
        wanted: Callable[[int], bool] = lambda _: True,
    ) -> list[Answer | JobError]:
        """The answer to each request under its composition, or the request's own error, in order.

        `wanted(index)` is called between forward passes; if it returns False, the request is dropped. JobError codes:
        those of the compositions and of `Answering`.
        """
        answering: Answering[int] = self.begin()
        for number, (request, composition) in enumerate(zip(requests, compositions, strict=True)):
            answering.add(number, request, composition, partial(wanted, number))
        answers: dict[int, Answer | JobError] = {}
        while answering:
            answers.update(answering.step())
        return [answers[number] for number in range(len(requests))]

"""Proof while serving: one scoring pass in N is repeated with weights that are plainly merged, row by row."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import Conv1D, PreTrainedModel

from loracomp import metrics
from loracomp.composition.blocks import Factors
from loracomp.composition.strategies import Mix, merge
from loracomp.model.scoring import Question, log_likelihoods

TOLERANCE, TOLERANCE_OF_16_BITS = 0.05, 0.25
"""Largest difference in nats at which scores count as equal: rounding depends on device and batch, most in 16 bits."""

_log = logging.getLogger(__name__)


class MergeChecker:
    """Compares what a pass gave under many mixes with what each mix gives alone, merged into the weights.

    It catches a row that was answered with other factors or gates than its own. Checked are the passes that score
    choices; a pass that is checked takes as long again for each mix in it.
    """

    def __init__(self, model: PreTrainedModel, one_in: int) -> None:
        """The passes numbered `one_in`, 2 * `one_in`, ... are checked; with 0 none is."""
        self._model = model
        self._one_in = one_in
        self._tolerance = TOLERANCE if model.dtype == torch.float32 else TOLERANCE_OF_16_BITS
        self._passes = 0

    def check(self, asked: Sequence[tuple[Question, Mix]], scores: Sequence[Tensor]) -> None:
        """Count the pass; if it is its turn, compare the log-likelihoods [choices] that it gave to each question.

        They differ if one of them is further off than the tolerance, in nats a token. The metrics count it, and the log
        names the adapters. Nothing is raised: the answers stand.
        """
        self._passes += 1
        if not self._one_in or self._passes % self._one_in:
            return
        metrics.PASSES_CHECKED.inc()
        wrong = {mix for mix, furthest in self._differences(asked, scores) if not furthest <= self._tolerance}
        if wrong:
            metrics.PASSES_DIFFERENT.inc()
        for mix in wrong:
            _log.error("pass_differs adapters=%s", ",".join(str(adapter.id) for adapter in mix.adapters))

    @torch.inference_mode()
    def _differences(
        self, asked: Sequence[tuple[Question, Mix]], scores: Sequence[Tensor]
    ) -> Iterator[tuple[Mix, float]]:
        """Each mix with the largest difference of its questions, in nats a token.

        Scores that are not finite are left out: such a row is asked again alone.
        """
        finite = [(*each, given) for each, given in zip(asked, scores, strict=True) if given.isfinite().all()]
        for mix in {mix for _, mix, _ in finite}:
            own = [(question, given) for question, asked_of, given in finite if asked_of is mix]
            with merged(self._model, merge(mix)):
                again = log_likelihoods(self._model, [question for question, _ in own])
            each = [
                (given - expected).abs() / torch.tensor(question.token_counts, device=given.device)
                for (question, given), expected in zip(own, again, strict=True)
            ]
            yield mix, float(torch.cat(each).max())


@contextmanager
def merged(model: nn.Module, factors: Mapping[str, Factors]) -> Iterator[None]:
    """Within the context, B @ A is added to each module's weight, as PEFT's `merge_adapter` does.

    A weight that modules share, as a tied head does, is changed for the module that is named alone. At the end each
    module has the parameter again that it had. Weights must be plain, not quantised.
    """
    old: dict[str, nn.Parameter] = {}
    try:
        for name, (A, B) in factors.items():
            module = model.get_submodule(name)
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            old[name] = weight
            change = (B @ A).to(weight)
            # These keep their weight as [d_in, d_out].
            change = change.T if isinstance(module, (Conv1D, nn.Embedding)) else change
            module.weight = nn.Parameter(weight + change, requires_grad=False)
        yield
    finally:
        for name, weight in old.items():
            model.get_submodule(name).weight = weight

"""Checks answers while serving: repeats one scoring pass in N with adapters merged into the weights, mix by mix."""

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
    """Compares the scores of a pass under many mixes with the scores under each mix merged into the weights.

    It finds rows that were computed with the factors or gates of another row. Only passes that score choices are
    checked; checking takes one more pass for each mix.
    """

    def __init__(self, model: PreTrainedModel, one_in: int) -> None:
        """Every `one_in`-th pass is checked; with 0 no pass is checked."""
        self._model = model
        self._one_in = one_in
        self._tolerance = TOLERANCE if model.dtype == torch.float32 else TOLERANCE_OF_16_BITS
        self._passes = 0

    def check(self, asked: Sequence[tuple[Question, Mix]], scores: Sequence[Tensor]) -> None:
        """Count a pass and, if it must be checked, compare its log-likelihoods [choices] of each question.

        If a difference exceeds the tolerance (in nats per token), the metrics count it and the log names the adapters.
        Nothing is raised, and the answers are kept.
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
        """For each mix, the largest difference between a score and its score with the mix merged, in nats per token.

        Questions with scores that are not finite are left out: the caller scores them again, each in a pass of its own.
        """
        finite = [(*each, given) for each, given in zip(asked, scores, strict=True) if given.isfinite().all()]
        for mix in {mix for _, mix, _ in finite}:
            own = [(question, given) for question, asked_of, given in finite if asked_of is mix]
            with merged(self._model, merge(mix)):
                again = log_likelihoods(self._model, [question for question, _ in own])
            each = [
                (given - expected.to(given.device)).abs() / torch.tensor(question.token_counts, device=given.device)
                for (question, given), expected in zip(own, again, strict=True)
            ]
            yield mix, float(torch.cat(each).max())


@contextmanager
def merged(model: nn.Module, factors: Mapping[str, Factors]) -> Iterator[None]:
    """Within the context, B @ A is added to each module's weight, as by PEFT's `merge_adapter`.

    If several modules share a weight (such as a tied head), only the module named in `factors` gets the changed weight.
    At the end each module has its old parameter again. Weights must not be quantised.
    """
    old: dict[str, nn.Parameter] = {}
    try:
        for name, (A, B) in factors.items():
            module = model.get_submodule(name)
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            old[name] = weight
            change = (B @ A).to(weight)
            # Conv1D and Embedding store their weight as [d_in, d_out].
            change = change.T if isinstance(module, (Conv1D, nn.Embedding)) else change
            module.weight = nn.Parameter(weight + change, requires_grad=False)
        yield
    finally:
        for name, weight in old.items():
            model.get_submodule(name).weight = weight

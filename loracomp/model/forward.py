"""Forward passes of a causal language model that compute the logits of each row's next token only."""

from collections.abc import Sequence
from inspect import signature
from itertools import accumulate

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerateDecoderOnlyOutput

from loracomp.model.scoring import Row, branched, head_at, pad_right

CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"
"""The name of the cache of keys and values in the installed release of transformers."""


class Forward:
    """Runs a model to get the logits [rows, vocabulary] of each row's next token."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._takes_positions = "position_ids" in signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        """The device on which the model's inputs must be."""
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device

    def after_rows(self, rows: Sequence[Sequence[int]], cache: Cache | None = None) -> Tensor:
        """Logits after the last token of each row.

        `cache` holds keys and values of earlier tokens, equally many for each row; those of the rows are added to it.
        """
        known = 0 if cache is None else cache.get_seq_length()
        ids, mask = pad_right(rows, self.device)
        positions = torch.arange(known, known + ids.shape[1], device=self.device).expand_as(ids)
        mask = torch.cat([mask.new_ones(len(rows), known), mask], dim=1)
        with head_at(self._model, [(row, len(tokens) - 1) for row, tokens in enumerate(rows)]):
            return self._run(ids, mask, positions, cache)[0]

    def after_branches(self, start: Sequence[int], branches: Sequence[Sequence[int]], cache: Cache) -> Tensor:
        """Logits after the last token of each branch that continues `start`, by a pass over one row.

        `cache` holds keys and values of first tokens of `start`; those of its other tokens and of the branches follow.
        """
        known, new = cache.get_seq_length(), len(start) - cache.get_seq_length()
        row = Row(tuple(start), tuple(map(tuple, branches)), ())
        inputs = branched([row], self.device, self._model.dtype, known)
        with head_at(self._model, [(0, new + end - 1) for end in accumulate(map(len, branches))]):
            return self._run(inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"], cache)[0]

    def after_tokens(self, tokens: Sequence[int], mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Logits after one new token of each row, whose earlier tokens are in `cache`."""
        ids = torch.tensor(tokens, device=self.device)[:, None]
        return self._run(ids, mask, positions, cache)[:, -1]

    def _run(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, CACHE: cache, "use_cache": cache is not None}
        if self._takes_positions:
            inputs["position_ids"] = positions
        logits: Tensor = self._model(**inputs).logits
        return logits


def keys_and_values_suffice(model: PreTrainedModel) -> bool:
    """Whether a pass needs only the keys and values of earlier tokens; if not, it must read all tokens again."""
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


@torch.inference_mode()
def shares_beginnings(model: PreTrainedModel) -> bool:
    """Whether branches that follow tokens in a cache do not affect each other; tried out with a few tokens."""
    forward = Forward(model)

    def second(first: Sequence[int]) -> Tensor:
        cache = DynamicCache()
        forward.after_rows([(1, 2, 3)], cache)
        return forward.after_branches((1, 2, 3), (first, (7,)), cache)[1]

    try:
        # Without keys and values, texts share nothing.
        return not keys_and_values_suffice(model) or torch.equal(second((1, 2, 3)), second((4, 5, 6)))
    except (RuntimeError, ValueError, TypeError):
        return False

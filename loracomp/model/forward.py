"""Forward passes of a causal language model for each row's next token, and the rows' keys and values between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerateDecoderOnlyOutput

from loracomp.model.head import head_at
from loracomp.model.longrope import frequencies_of, frequencies_of_rows, length_limits
from loracomp.model.tokens import pad_right

CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"
"""The name of the cache of keys and values in the installed release of transformers."""


class Forward:
    """Runs a model to get the logits [rows, vocabulary] of each row's next token."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._takes_positions = "position_ids" in signature(model.forward).parameters
        self._length_limits = length_limits(model)

    @property
    def device(self) -> torch.device:
        """The device on which the model's inputs must be."""
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device

    def frequencies(self, length: int) -> int:
        """Which set of rotary frequencies a text of this length gets. If a text grows and its set changes, its cached
        keys become invalid."""
        return frequencies_of(length, self._length_limits)

    def after_rows(self, rows: Sequence[Sequence[int]], lengths: Sequence[int], cache: Cache | None = None) -> Tensor:
        """Logits after the last token of each row. `lengths` are the lengths of the texts to which the rows belong.

        `cache` holds keys and values of earlier tokens, equally many for each row; this pass adds its own.
        """
        known = 0 if cache is None else cache.get_seq_length()
        ids, mask = pad_right(rows, self.device)
        positions = torch.arange(known, known + ids.shape[1], device=self.device).expand_as(ids)
        mask = torch.cat([mask.new_ones(len(rows), known), mask], dim=1)
        with head_at(self._model, [(row, len(tokens) - 1) for row, tokens in enumerate(rows)]):
            return self._run(ids, mask, positions, lengths, cache)[0]

    def after_tokens(
        self, tokens: Sequence[int], mask: Tensor, positions: Tensor, lengths: Sequence[int], cache: Cache
    ) -> Tensor:
        """Logits after one new token of each row, whose earlier tokens are in `cache`."""
        ids = torch.tensor(tokens, device=self.device)[:, None]
        return self._run(ids, mask, positions, lengths, cache)[:, -1]

    def _run(self, ids: Tensor, mask: Tensor, positions: Tensor, lengths: Sequence[int], cache: Cache | None) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, CACHE: cache, "use_cache": cache is not None}
        if self._takes_positions:
            inputs["position_ids"] = positions
        with frequencies_of_rows(self._model, lengths):
            logits: Tensor = self._model(**inputs).logits
        return logits


def keys_and_values_suffice(model: PreTrainedModel) -> bool:
    """Whether a pass needs only the keys and values of earlier tokens; if not, it must read all tokens again."""
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


COLUMNS, ROWS = 64, 8
"""Buffers that grow get this many spare columns, and a number of rows that is a multiple of ROWS."""


@dataclass
class _Window:
    """The part of the buffers that is in use: the first `rows` rows, and the columns from `first` to `end` - 1."""

    rows: int = 0
    first: int = 0
    end: int = 0


class _Layer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer's keys and values, each [rows, heads, columns, size], with spare space; the model sees the window."""

    def __init__(self, window: _Window, buffers: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.buffers = buffers
        self.is_initialized = True
        self._window = window

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the column after the window; returns the window with that column."""
        window = self._window
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: window.rows, :, window.end : window.end + 1] = new
        keys, values = (buffer[: window.rows, :, window.first : window.end + 1] for buffer in self.buffers)
        return keys, values

    def get_seq_length(self) -> int:
        """Number of columns before the one that a pass writes."""
        return self._window.end - self._window.first


class RowCache:
    """Keys and values of all tokens that each row of a batch has read. Rows are numbered from 0.

    All rows end at the same column, as if they were padded on the left, so that a step writes one column for all rows.
    The buffers have spare rows and columns: a step copies nothing, a row that joins is copied once, and when a row
    leaves, the last row moves to its place.
    """

    def __init__(self) -> None:
        self._window = _Window()
        self._starts: list[int] = []
        """The first column of each row."""
        self._layers: list[_Layer] = []

    @property
    def cache(self) -> Cache:
        """The cache for a pass over one token of each row; call `room_for_a_column` before the pass."""
        return Cache(layers=list(self._layers))

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """For that pass: attention mask [rows, columns + 1], and the position of each row's token [rows, 1]."""
        starts = torch.tensor(self._starts, device=device)[:, None]
        columns = torch.arange(self._window.first, self._window.end + 1, device=device)
        return (columns >= starts).long(), self._window.end - starts

    def room_for_a_column(self) -> None:
        """Make sure that the buffers have a free column after the last one in use."""
        self._reserve(len(self._starts), 0)

    def advance(self) -> None:
        """Count the column that a pass has written."""
        self._window.end += 1

    def append(self, read: Cache, lengths: Sequence[int]) -> None:
        """Add the rows of a cache of transformers, of each the given number of first columns."""
        if not self._layers:
            self._layers = [_Layer(self._window, _sides(layer, rows=0)) for layer in read.layers]
        first = len(self._starts)
        self._reserve(first + len(lengths), max(lengths))
        end = self._window.end
        for layer, source in zip(self._layers, read.layers, strict=True):
            for buffer, side in zip(layer.buffers, _sides(source), strict=True):
                for row, length in enumerate(lengths):
                    buffer[first + row, :, end - length : end] = side[row, :, :length]
        self._starts += [end - length for length in lengths]
        self._fit_window()

    def drop(self, row: int) -> None:
        """Remove a row; the last row gets its number."""
        left, end = self._starts[row], self._window.end
        start = self._starts[row] = self._starts[-1]
        last = len(self._starts) - 1
        for layer in self._layers:
            for buffer in layer.buffers:
                # The mask hides these columns, but NaN would pass through it, because 0 * NaN is NaN.
                buffer[row, :, left:end] = 0
                if row < last:
                    buffer[row, :, start:end] = buffer[last, :, start:end]
                    buffer[last, :, start:end] = 0
        self._starts.pop()
        self._fit_window()

    def _fit_window(self) -> None:
        self._window.rows = len(self._starts)
        self._window.first = min(self._starts, default=0)
        if not self._starts:
            self._window.end, self._layers = 0, []

    def _reserve(self, rows: int, columns: int) -> None:
        """Grow the buffers, if necessary, so that they hold `rows` rows, `columns` columns before the window's end, and
        one column after it."""
        window = self._window
        buffer = self._layers[0].buffers[0]
        if rows <= buffer.shape[0] and columns <= window.end < buffer.shape[2]:
            return
        used = window.end - window.first
        end = max(used, columns)
        shape = -(-rows // ROWS) * ROWS, end + COLUMNS
        # Make all new buffers before any is put in place, so that nothing has changed if memory runs out.
        grown = [tuple(self._grown(side, *shape, end) for side in layer.buffers) for layer in self._layers]
        for layer, (keys, values) in zip(self._layers, grown, strict=True):
            layer.buffers = keys, values
        moved = end - window.end
        self._starts = [start + moved for start in self._starts]
        window.first, window.end = window.first + moved, end

    def _grown(self, buffer: Tensor, rows: int, columns: int, end: int) -> Tensor:
        window = self._window
        grown = buffer.new_zeros(rows, buffer.shape[1], columns, buffer.shape[3])
        used = window.end - window.first
        grown[: window.rows, :, end - used : end] = buffer[: window.rows, :, window.first : window.end]
        return grown


def _sides(layer: DynamicLayer, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """The keys and values of a layer that has read something; with `rows`, of its first rows only."""
    assert layer.keys is not None and layer.values is not None
    return layer.keys[:rows], layer.values[:rows]

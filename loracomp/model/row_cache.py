"""Keys and values of rows that join and leave a batch, behind transformers' own interface of a cache.

All rows end at the same column, as if padded on the left: a step writes one column for all. The buffers have room for
more rows and columns, so that a step copies nothing, a row that joins is copied once, and one that leaves gives its
place to the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

COLUMNS, ROWS = 64, 8
"""The buffers grow to so many columns more than are used, and to a multiple of so many rows."""


@dataclass
class _Window:
    """The part of the buffers that is in use: so many rows, columns from `first` to before `end`."""

    rows: int = 0
    first: int = 0
    end: int = 0


class _Layer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer's keys and values, each [rows, heads, columns, size] with room; the model sees the window."""

    def __init__(self, window: _Window, buffers: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.buffers = buffers
        self.is_initialized = True
        self._window = window

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the column after the window's, and give all up to it."""
        window = self._window
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: window.rows, :, window.end : window.end + 1] = new
        keys, values = (buffer[: window.rows, :, window.first : window.end + 1] for buffer in self.buffers)
        return keys, values

    def get_seq_length(self) -> int:
        """Columns before the one that a pass writes."""
        return self._window.end - self._window.first


class RowCache:
    """What each row of a batch has read. Rows are numbered from 0; `drop` changes the number of the last."""

    def __init__(self) -> None:
        self._window = _Window()
        self._starts: list[int] = []
        """The column at which each row begins."""
        self._layers: list[_Layer] = []

    @property
    def cache(self) -> Cache:
        """For a pass over one token of each row, before which there must be `room_for_a_column`."""
        return Cache(layers=list(self._layers))

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """For that pass: attention mask [rows, columns and the new one], and position of each row's token [rows, 1]."""
        starts = torch.tensor(self._starts, device=device)[:, None]
        columns = torch.arange(self._window.first, self._window.end + 1, device=device)
        return (columns >= starts).long(), self._window.end - starts

    def room_for_a_column(self) -> None:
        """Let the buffers have a column after the last."""
        self._reserve(len(self._starts), 0)

    def advance(self) -> None:
        """A pass has written its column."""
        self._window.end += 1

    def append(self, read: Cache, lengths: Sequence[int]) -> None:
        """Copy rows that a cache of transformers holds, of each the first so many columns."""
        if not self._layers:
            self._layers = [_Layer(self._window, _sides(layer, rows=0)) for layer in read.layers]
        rows, longest = len(self._starts), max(lengths)
        self._reserve(rows + len(lengths), longest)
        end = self._window.end
        for layer, source in zip(self._layers, read.layers, strict=True):
            for buffer, side in zip(layer.buffers, _sides(source), strict=True):
                for number, length in enumerate(lengths):
                    buffer[rows + number, :, end - length : end] = side[number, :, :length]
        self._starts += [end - length for length in lengths]
        self._look()

    def drop(self, row: int) -> None:
        """Take a row out; the last one gets its number."""
        left, end = self._starts[row], self._window.end
        start = self._starts[row] = self._starts[-1]
        last = len(self._starts) - 1
        for layer in self._layers:
            for buffer in layer.buffers:
                # No column is read that is not a row's own, but even unread NaN would spoil what is.
                buffer[row, :, left:end] = 0
                if row < last:
                    buffer[row, :, start:end] = buffer[last, :, start:end]
                    buffer[last, :, start:end] = 0
        self._starts.pop()
        self._look()

    def beginning(self, row: int, columns: int) -> DynamicCache:
        """A row's first columns, as a cache of one row."""
        start = self._starts[row]
        found = DynamicCache()
        for number, layer in enumerate(self._layers):
            keys, values = (buffer[row : row + 1, :, start : start + columns] for buffer in layer.buffers)
            found.update(keys, values, number)
        return found

    def _look(self) -> None:
        self._window.rows = len(self._starts)
        self._window.first = min(self._starts, default=0)
        if not self._starts:
            self._window.end, self._layers = 0, []

    def _reserve(self, rows: int, columns: int) -> None:
        """Have room for so many rows, so many columns before the end, and one after it."""
        window = self._window
        buffer = self._layers[0].buffers[0]
        if rows <= buffer.shape[0] and columns <= window.end < buffer.shape[2]:
            return
        used = window.end - window.first
        end = max(used, columns)
        shape = -(-rows // ROWS) * ROWS, end + COLUMNS
        # All before any is put in place: where memory runs out, nothing has changed.
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
    """Keys and values of a layer that has read something, or of its first rows."""
    assert layer.keys is not None and layer.values is not None
    return layer.keys[:rows], layer.values[:rows]

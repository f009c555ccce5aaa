"""Reads files of libraries, whoever wrote them: JSON of a known form, and arrays of known types and shapes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from loracomp.errors import RefusedError, wrong_fields

Array = npt.NDArray[Any]
Form = tuple[tuple[str, ...], tuple[str | int, ...]]
"""The possible types of an array, as safetensors names them (F16, U8), and its shape. A length that is named by a word
must be the same wherever the word stands."""


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a text contains a NUL character, which Postgres cannot store")
    return text


StorableText = Annotated[str, AfterValidator(_without_nul)]


class Part(BaseModel):
    """A JSON object of a file, with its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=Part)


def parse(text: str | bytes, form: type[P], place: str) -> P:
    """The JSON object in a text. Raises RefusedError, which names the place and the first wrong fields."""
    try:
        return form.model_validate_json(text)
    except ValidationError as error:
        raise RefusedError(f"{place}: {wrong_fields(error, most=5)[:1000]}") from None


def read_arrays(path: Path, form: type[P], about: str, arrays: Mapping[str, Form]) -> tuple[P, dict[str, Array]]:
    """Read a safetensors file: the JSON object that its metadata has under the key `about`, and its arrays by name.

    Raises RefusedError, which names the file and says what is wrong.
    """
    lengths: dict[str, int] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            described = parse((file.metadata() or {}).get(about, "{}"), form, str(path))
            for name, wanted in arrays.items():
                _check(f"{path}: {name}", file.get_slice(name), wanted, lengths)
            return described, {name: file.get_tensor(name) for name in arrays}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"{path} is corrupt or cut off: {error}") from error


def _check(place: str, found: Any, form: Form, lengths: dict[str, int]) -> None:
    (types, shape), found_shape = form, found.get_shape()
    if found.get_dtype() not in types:
        raise RefusedError(f"{place} has type {found.get_dtype()}; it must be {' or '.join(types)}")
    wanted = [
        lengths.setdefault(length, number) if isinstance(length, str) else length
        for length, number in zip(shape, found_shape, strict=False)
    ]
    if len(found_shape) != len(shape) or wanted != found_shape:
        known = "".join(f", with {number} {name}" for name, number in lengths.items())
        raise RefusedError(f"{place} has shape {found_shape}; it must be [{', '.join(map(str, shape))}]{known}")


def unit_vectors(vectors: Array, place: str) -> npt.NDArray[np.float32]:
    """Vectors [n, d] in single precision, each scaled to length 1. Raises RefusedError if a vector's length is not
    about 1."""
    single = vectors.astype(np.float32)
    with np.errstate(over="ignore"):  # an infinite length is refused below
        lengths = np.linalg.norm(single, axis=1, keepdims=True)
    if not (np.abs(lengths - 1) < 0.01).all():  # also if one is NaN
        raise RefusedError(f"{place}: an embedding is not a unit vector")
    exact: npt.NDArray[np.float32] = single / lengths
    return exact

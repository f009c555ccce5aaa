"""Phrasings: other prompt templates for a task, and other names for its labels, as people might write them.

An adapter that was trained with one template and one pair of label words learns these words instead of the task. A
catalogue entry may therefore have phrasings: prompt templates, and wordings of its labels. (P3, arXiv 2110.08207, and
FLAN, arXiv 2109.01652, use many templates for each task so that models can follow new wordings.) Some templates and
wordings are held out of training, to measure how well a model answers prompts in new words.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loracomp.errors import NotFoundError, RefusedError, wrong_fields
from loracomp.registry.examples import Example
from loracomp_lab.catalogue.templates import compiled, compiled_expression

FOLDER = Path(__file__).parent / "phrasings"


class Phrased(StrEnum):
    """The kind of phrasing in which an example is written."""

    OWN = "own"
    """The entry's doc_to_text and doc_to_choice."""
    TRAINED = "trained"
    """A template and a wording that may be used in training."""
    HELD_OUT = "held_out"
    """A template and a wording that are never used in training."""


class Template(BaseModel):
    """A prompt as a Jinja template. Its variables are the entry's `columns`, and ask, choices, listed and options.

    `ask` is the wording's question; `listed` is the choices as 'a, b or c'; `options` has each choice on its own line,
    after its mark.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    marks: str | None = Field(None, pattern=r"^\W?[Aa1]\W?$")
    """First mark of `options`, such as 'A)' or '1.'. The answers are then only the letters or numbers, without the
    texts."""
    lower: bool = False
    """Whether the prompt is written in lower case."""
    held_out: bool = False


class Wording(BaseModel):
    """A question (`ask`, a Jinja template over an entry's `columns`), and the names of its labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ask: str = ""
    choices: dict[str, str] | None = None
    """Text for each label. The wording fits only tasks with exactly these labels. None: the wording uses the row's own
    choices."""
    held_out: bool = False


class Phrasings(BaseModel):
    """Templates and wordings; each template can be combined with each wording."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    templates: tuple[Template, ...] = Field(min_length=1)
    wordings: tuple[Wording, ...] = (Wording(),)


@cache
def load_phrasings(name: str) -> Phrasings:
    """Read a file of phrasings in the package. Raises NotFoundError, or RefusedError that names file and field."""
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in FOLDER.glob("*.yaml")))
        raise NotFoundError(f"there are no phrasings {name!r}: name one of {known}, or write phrasings into the entry")
    try:
        return Phrasings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise RefusedError(f"{path}: {wrong_fields(error)}") from None


class Phraser:
    """Writes rows of one catalogue entry in the entry's phrasings."""

    def __init__(
        self,
        name: str,
        phrasings: Phrasings,
        *,
        columns: Mapping[str, str],
        labels: Sequence[str] | None,
        choices: str | None,
    ) -> None:
        """`columns`, `labels` and `choices` are as in `catalogue.Entry`.

        Raises RefusedError, which names entry and field, if a template is invalid or no wording has these labels.
        """
        self._name = name
        self._labels = labels
        fitting = [each for each in phrasings.wordings if self._fits(each)]
        self._pools = {
            Phrased.TRAINED: _pool(phrasings.templates, fitting, held_out=False),
            Phrased.HELD_OUT: _pool(phrasings.templates, fitting, held_out=True),
        }
        if not all(self._pools[Phrased.TRAINED]):
            raise RefusedError(f"catalogue entry {name!r}: phrasings: no wording for training has the labels {labels}")
        self._columns = {column: compiled(name, f"columns.{column}", text) for column, text in columns.items()}
        self._choices = compiled_expression(name, "phrased_choices", choices) if choices else None
        texts = {each.text for each in phrasings.templates} | {each.ask for each in fitting}
        self._texts = {text: compiled(name, "phrasings", text) for text in texts}

    def phrase(self, row: Mapping[str, Any], example: Example, phrased: Phrased, rng: random.Random) -> Example:
        """Return the example in a template and wording drawn by `rng`, with its choices in an order drawn by `rng`.

        If no phrasing is held out, HELD_OUT draws from the training phrasings.
        """
        templates, wordings = self._pools[phrased] if all(self._pools[phrased]) else self._pools[Phrased.TRAINED]
        template, wording = rng.choice(templates), rng.choice(wordings)
        assert example.choices is not None
        columns = {column: self._render(text, row, example) for column, text in self._columns.items()}
        texts = self._worded(row, example, wording)
        label = texts[example.label_index]
        shown = rng.sample(texts, len(texts))
        marks = _marks(template.marks, len(shown)) if template.marks else []
        ask = self._render(self._texts[wording.ask], {**columns, "listed": _listed(shown)}, example)
        prompt = self._render(
            self._texts[template.text],
            {
                **columns,
                "ask": ask,
                "choices": shown,
                "listed": _listed(shown),
                "options": "\n".join(f"{mark} {text}" for mark, text in zip(marks, shown, strict=False)),
            },
            example,
        )
        choices = [mark.strip(_punctuation(template.marks)) for mark in marks] or shown
        return replace(
            example,
            prompt=prompt.lower() if template.lower else prompt,
            choices=tuple(choices),
            label=choices[shown.index(label)],
        )

    def _fits(self, wording: Wording) -> bool:
        return (wording.choices and wording.choices.keys()) == (self._labels and set(self._labels))

    def _worded(self, row: Mapping[str, Any], example: Example, wording: Wording) -> list[str]:
        if wording.choices and self._labels:
            return [wording.choices[self._labels[place]] for place in self._places(example)]
        if self._choices is not None:
            return [str(choice).strip() for choice in self._choices(**row)]
        return list(example.choices or ())

    def _places(self, example: Example) -> range:
        if len(example.choices or ()) != len(self._labels or ()):
            raise RefusedError(f"catalogue entry {self._name!r}: labels: a row has another number of choices")
        return range(len(example.choices or ()))

    def _render(self, text: Any, values: Mapping[str, Any], example: Example) -> str:
        try:
            return str(text.render(**values)).strip()
        except Exception as error:  # a template can raise anything
            raise RefusedError(
                f"catalogue entry {self._name!r}: phrasings: row {example.source_ref}: {error}"
            ) from error


def _pool(
    templates: Sequence[Template], wordings: Sequence[Wording], *, held_out: bool
) -> tuple[list[Template], list[Wording]]:
    """Return the templates and wordings to draw from. If all wordings use the row's own choices, none of them is held
    out."""
    worded = any(each.choices for each in wordings)
    return (
        [each for each in templates if each.held_out == held_out],
        [each for each in wordings if each.held_out == (held_out and worded)],
    )


def _marks(marks: str, count: int) -> list[str]:
    """Return `count` marks like the given first one: from 'A)' it makes 'A)', 'B)', 'C)'."""
    first = marks.strip(_punctuation(marks))
    names: Iterator[str] = iter({"A": ascii_uppercase, "a": ascii_lowercase}.get(first, map(str, range(1, count + 1))))
    return [marks.replace(first, name) for name, _ in zip(names, range(count), strict=False)]


def _punctuation(marks: str | None) -> str:
    return "".join(character for character in marks or "" if not character.isalnum())


def _listed(texts: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))

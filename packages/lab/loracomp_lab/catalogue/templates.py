"""Turns a dataset's row into a prompt, its choices and the label, by sandboxed Jinja templates."""

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from loracomp.errors import RefusedError
from loracomp.registry.examples import Example, canonical_json

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


@cache
def compiled(entry: str, field: str, text: str) -> Template:
    """Compile the template in a field of a catalogue entry. Raises RefusedError, which names entry and field, if it is
    invalid."""
    try:
        return _ENVIRONMENT.from_string(text)
    except TemplateError as error:
        raise RefusedError(f"catalogue entry {entry!r}: {field}: {error}") from error


@cache
def compiled_expression(entry: str, field: str, text: str) -> Any:
    """Compile a field that is one `{{ expression }}` into a function of the variables. Raises RefusedError like
    `compiled`."""
    compiled(entry, field, text)
    inner = text.strip().removeprefix("{{").removesuffix("}}")
    try:
        return _ENVIRONMENT.compile_expression(inner, undefined_to_none=False)
    except TemplateError as error:
        raise RefusedError(f"catalogue entry {entry!r}: {field}: must be one {{{{ expression }}}}: {error}") from error


@cache
def _variables(text: str) -> frozenset[str]:
    return frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(text)))


class Templates:
    """The compiled doc_to_text, doc_to_choice and doc_to_target of an entry.

    Raises RefusedError, which names entry and field, if one is invalid.
    """

    def __init__(self, name: str, text: str, choice: str | list[str] | None, target: str) -> None:
        self._name = name
        target = target if target.strip().startswith("{{") else "{{" + target + "}}"
        self._text = compiled(name, "doc_to_text", text)
        self._inputs = sorted(_variables(text))
        self._choices = compiled_expression(name, "doc_to_choice", choice) if isinstance(choice, str) else choice
        self._target = compiled_expression(name, "doc_to_target", target)
        self._columns = _variables(text) | _variables(target) | _variables(choice if isinstance(choice, str) else "")

    def example(self, row: Mapping[str, Any], split: str, source_ref: str) -> Example | None:
        """Make an example from a row; returns None if the row has no gold label (-1), or if its choices are blank or
        not distinct."""
        prompt = str(self._call("doc_to_text", self._text.render, row, source_ref)).strip()
        choices = self._choices_of(row, source_ref)
        target = self._call("doc_to_target", self._target, row, source_ref)
        if target == -1 or (choices is not None and not _are_choices(choices)):
            return None
        label = str(target).strip() if choices is None else self._label(choices, target, source_ref)
        return Example(split, prompt, choices, label, self._hash(row, source_ref), source_ref)

    def inputs(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the unchanged texts of the columns that doc_to_text reads from the row; values of other types are
        written as JSON."""
        values = [row[column] for column in self._inputs if column in row]
        return tuple(value if isinstance(value, str) else canonical_json(value) for value in values)

    def _call(self, field: str, function: Any, row: Mapping[str, Any], source_ref: str) -> Any:
        try:
            value = function(**row)
            str(value)  # raises if the expression uses an undefined column
        except Exception as error:  # an expression can raise any exception
            raise self._wrong(field, source_ref, f"{error}; the row has {', '.join(map(str, row))}") from error
        return value

    def _choices_of(self, row: Mapping[str, Any], source_ref: str) -> tuple[str, ...] | None:
        if self._choices is None or isinstance(self._choices, list):
            return tuple(self._choices) if self._choices else None
        value = self._call("doc_to_choice", self._choices, row, source_ref)
        if not isinstance(value, list | tuple):
            raise self._wrong("doc_to_choice", source_ref, f"gives {type(value).__name__}, not a list")
        return tuple(str(choice).strip() for choice in value)

    def _label(self, choices: tuple[str, ...], target: Any, source_ref: str) -> str:
        if isinstance(target, int) and 0 <= target < len(choices):
            return choices[target]
        if isinstance(target, str) and target.strip() in choices:
            return target.strip()
        raise self._wrong(
            "doc_to_target",
            source_ref,
            f"gives {target!r}, which is neither an index nor a text of its {len(choices)} choices",
        )

    def _hash(self, row: Mapping[str, Any], source_ref: str) -> bytes:
        used = {column: row[column] for column in self._columns}
        try:
            return hashlib.sha256(canonical_json(used).encode()).digest()
        except UnicodeEncodeError:
            raise RefusedError(f"row {source_ref}: contains half a surrogate pair: remove it") from None

    def _wrong(self, field: str, source_ref: str, message: str) -> RefusedError:
        return RefusedError(f"catalogue entry {self._name!r}: {field}: row {source_ref}: {message}")


def _are_choices(choices: tuple[str, ...]) -> bool:
    return len(choices) > 1 and all(choices) and len(set(choices)) == len(choices)

"""Rewords a task's prompts by rules or by a user's templates, as other people might put the same question.

A task's prompts usually have the same words around their texts, such as "Question: " and "Answer:". `find_frame` finds
these words, so that a wording can drop them, or put others in their place.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from loracomp.errors import UsageError
from loracomp.registry.examples import Example, content_hash

_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_OTHERS = ("question", "choices")
"""Placeholders that a wording fills with something other than one of the prompt's texts."""
_LABEL = re.compile(r"\n[^\n:]{1,40}:(?= )")
_MARK = "reworded: "
"""How the source_ref of a reworded example begins."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The words that all prompts of a task have in common."""

    start: str = ""
    labels: tuple[str, ...] = ()
    """Labels of lines between the task's texts, such as "\\nQuestion:"."""
    end: str = ""

    def texts(self, prompt: str) -> tuple[str, ...]:
        """The texts of a prompt, without the frame around them."""
        rest = prompt.removeprefix(self.start).removesuffix(self.end)
        found = []
        for label in self.labels:
            text, _, rest = rest.partition(label)
            found.append(text)
        return tuple(text.strip() for text in (*found, rest))

    @property
    def question(self) -> str:
        """What the end of a prompt asks, without labels: "True or False?" if it is "True or False?\\nAnswer:"."""
        lines = [line for line in self.end.strip().split("\n") if not line.endswith(":")]
        return " ".join(line.partition(": ")[2] or line for line in lines).strip()

    @property
    def template(self) -> str:
        """The frame with {1}, {2}, ... in place of the task's texts."""
        between = "".join(f"{label} {{{number}}}" for number, label in enumerate(self.labels, start=2))
        return f"{self.start}{{1}}{between}{self.end}"


@dataclass(frozen=True, slots=True)
class Wording:
    """Another way to put a task's prompts: a template with the placeholders {prompt} (the prompt as it is), {text} (its
    texts, one a line), {1}, {2}, ... (each text), {question} (what the frame asks) and {choices} ("a, b or c")."""

    name: str
    template: str
    choices: Mapping[str, str] | None = None
    """Other words for choices, by the task's own in lower case. Rows with a choice that has no other word are left
    out, and rows with two choices that have the same one."""
    in_lower_case: bool = False
    kept_apart: bool = False
    """Whether examples are never imported in this wording, so that it shows what the imported wordings are worth."""


SYNONYMS = {
    one: other
    for pair in (("yes", "true"), ("no", "false"), ("positive", "good"), ("negative", "bad"), ("neutral", "neither"))
    for one, other in (pair, pair[::-1])
}
RULES = (
    Wording("no frame", "{text}"),
    Wording("other labels", "Text: {text}\nLabel:"),
    Wording("question first", "{question}\n\n{text}"),
    Wording("choices first", "Answer with {choices}.\n{text}"),
    Wording("choices last", "{text}\n\nIs it {choices}?"),
    Wording("lower case", "{text}\n{question}", in_lower_case=True),
    Wording("other choices", "{text}\n{choices}?", choices=SYNONYMS),
    Wording("a sentence before", "Please tell me: {text} {question}", kept_apart=True),
    Wording("a chat", 'I have this here: "{text}" {question} Would you say {choices}?', kept_apart=True),
)


def own_wording(number: int, template: str, frame: Frame, choices: Mapping[str, str] | None = None) -> Wording:
    """A user's wording. Raises UsageError if prompts in this frame lack a placeholder, or if it shows no text of the
    prompt."""
    named = set(_PLACEHOLDER.findall(template))
    texts = {"prompt", "text", *map(str, range(1, len(frame.labels) + 2))}
    known = ", ".join(f"{{{name}}}" for name in (*sorted(texts), *_OTHERS))
    if unknown := named - texts - set(_OTHERS):
        raise UsageError(f"template {template!r}: there is no {{{min(unknown)}}} but {known}")
    if not named & texts:
        raise UsageError(f"template {template!r} shows no text of the prompt: use one of {known}")
    return Wording(f"template {number}", template, choices=choices)


def find_frame(prompts: Sequence[str]) -> Frame:
    """The words that these prompts have in common at their start, at their end, and as labels of lines between.

    Prompts that are all the same have no frame.
    """
    different = list(dict.fromkeys(prompts))
    if len(different) < 2:
        return Frame()
    start = _common_start(different)
    end = _common_start([prompt[len(start) :][::-1] for prompt in different])[::-1]
    rests = [prompt.removeprefix(start).removesuffix(end) for prompt in different]
    labels = [label for label in _LABEL.findall(rests[0]) if all(rest.count(label) == 1 for rest in rests)]
    in_order = all(sorted(labels, key=rest.index) == labels for rest in rests)
    return Frame(start, tuple(labels) if in_order else (), end)


def _common_start(texts: Sequence[str]) -> str:
    """The common start of texts, up to its last white space, so that no word is cut."""
    pairs = zip(min(texts), max(texts), strict=False)
    common = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return common[: 1 + max(common.rfind(space) for space in " \n")]


def reword(example: Example, frame: Frame, wording: Wording) -> Example | None:
    """The example in another wording. Its choices and its label stay, unless the wording has other words for them.

    None if the wording needs choices that the example lacks, or if it changes nothing.
    """
    renamed = _rename(example.choices or (), wording.choices)
    if not renamed and ("{choices}" in wording.template or wording.choices):
        return None
    texts = frame.texts(example.prompt)
    values = {
        "prompt": example.prompt,
        "text": "\n".join(texts),
        "question": frame.question,
        "choices": listed(list(renamed.values())),
        **{str(number): text for number, text in enumerate(texts, start=1)},
    }
    prompt = _PLACEHOLDER.sub(lambda match: values[match[1]], wording.template).strip()
    prompt = prompt.lower() if wording.in_lower_case else prompt
    if prompt in ("", example.prompt):
        return None
    choices, label = tuple(renamed.values()) or None, renamed.get(example.label, example.label)
    return replace(
        example,
        prompt=prompt,
        choices=choices,
        label=label,
        content_hash=content_hash(prompt, choices, label),
        source_ref=f"{_MARK}{wording.name}: {example.source_ref}",
    )


def _rename(choices: Sequence[str], others: Mapping[str, str] | None) -> dict[str, str]:
    """Each choice with the word to use for it, which has a capital where the choice has one. Empty if one has no other
    word, or if two have the same one."""
    if others is None:
        return {choice: choice for choice in choices}
    words = [others.get(choice.lower()) for choice in choices]
    if None in words or len({*words}) < len(words):
        return {}
    return {
        choice: word.capitalize() if choice[:1].isupper() else word
        for choice, word in zip(choices, filter(None, words), strict=True)
    }


def is_reworded(example: Example) -> bool:
    """Whether `reword` made this example."""
    return example.source_ref.startswith(_MARK)


def listed(choices: Sequence[str]) -> str:
    """The choices as people list them: "a, b or c"."""
    return " or ".join(filter(None, [", ".join(choices[:-1]), *choices[-1:]]))

"""Writes an adapter's card (README.md of its folder) from its training record."""

from typing import Any

from loracomp.errors import RefusedError
from loracomp_lab.catalogue import data_note, phrasings_of

ORIGINS = {
    "folder": "rows of train.jsonl in a local folder",
    "files": "train rows of local files",
    "database": "train examples of a database",
}
"""How a card describes the origin of the rows, by the record's `read_from`."""


def adapter_card(record: dict[str, Any]) -> str:
    """Return the card as Markdown with the front matter that model hubs read. Raises RefusedError if the record lacks a
    field."""
    try:
        return _card(record)
    except (KeyError, TypeError) as error:
        raise RefusedError(
            f"a card can't be made, because the training record is not from `loracomp train` ({error})"
        ) from None


def _card(record: dict[str, Any]) -> str:
    data, base = record["data"], record["base_model"]
    return "\n".join(
        [
            "---",
            "library_name: peft",
            f"base_model: {base['source']}",
            f"datasets: [{data['dataset_path']}]",
            "tags: [lora, loracomp]",
            "---",
            f"# {record['task']} ({record['family']})",
            "",
            f"A LoRA adapter for {base['name']}, trained by `loracomp train`; training.json has all of this and more.",
            "",
            f"- Base model weights: sha256 {base['fingerprint']}",
            *_origin(record),
            "",
            "## Data",
            "",
            *_data(record),
            "",
            "## Training",
            "",
            *_training(record),
            "",
            "## Scores",
            "",
            *_scores(record["held_out"]),
            "",
        ]
    )


def _origin(record: dict[str, Any]) -> list[str]:
    start = record.get("started_from")
    if not start:
        return ["- Started from new factors"]
    seen = ", ".join(record["tasks_seen"])
    return [f"- Started from the adapter of {start['task']}, sha256 {start['sha256']}", f"- Tasks seen, in all: {seen}"]


def _data(record: dict[str, Any]) -> list[str]:
    data = record["data"]
    dataset = " ".join(filter(None, [data["dataset_path"], data["dataset_name"]]))
    read_from = data.get("read_from")
    origin = ORIGINS.get(read_from) or f"split {data['training_split']}"
    lines = [
        f"- {dataset}, {origin}; licence of the data, as it is usually given (not verified): {data['licence']}",
        *([f"- Which rows: {note}"] if (note := data_note(record["task"], read_from)) else []),
        f"- Rows: {data['rows']}, with digest {data['digest']}; seen {record['rows_seen']} times in all",
        f"- Left out because they are longer than {record['hyper_parameters']['max_tokens']} tokens: "
        f"{data['rows_too_long']} rows",
    ]
    if leaks := record.get("leaks"):
        left_out, sharing = leaks["rows_left_out"], leaks["rows_sharing_a_text"]
        compared = ", ".join(leaks["compared_with"]) or "none"
        lines += [
            f"- Left out as leaks: {left_out} rows, because their texts are also in a validation split of {compared}",
            f"- Kept: {sharing} rows that share one text (a premise, a passage, a heading) with a validation row, "
            "but differ from it in another text",
        ]
    return [*lines, *_phrasings(record)]


def _phrasings(record: dict[str, Any]) -> list[str]:
    """Return a line on the phrasings in which the rows were written, or none if the task has no phrasings."""
    share = record["hyper_parameters"].get("phrased", 0.0)
    shares = share if isinstance(share, list) else [share]
    if not any(shares) or not (phrasings := phrasings_of(record["task"])):
        return []
    said = ", then ".join(f"{each:.0%}" for each in shares)
    held_out = sum(each.held_out for each in phrasings.templates)
    return [
        f"- Words: {said} of the rows were written in one of {len(phrasings.templates) - held_out} templates, with one "
        f"of several names for each choice; both were drawn again in each epoch. {held_out} templates are held out"
    ]


def _training(record: dict[str, Any]) -> list[str]:
    lines = [
        f"- {name.replace('_', ' ')}: {_shown(value)}" for name, value in sorted(record["hyper_parameters"].items())
    ]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
    computed = f"{record['dtype']} on {record['device'].partition(':')[0]}"
    return [*lines, f"- {record['steps']} steps in {computed}, {record['seconds']:.0f} s, with {versions}"]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _scores(scores: dict[str, Any]) -> list[str]:
    if not scores["rows"]:
        return ["No train rows were kept aside."]
    base, adapter = scores["base"], scores["adapter"]
    lines = [f"| {name} | {base[name]:.1%} | {adapter[name]:.1%} |" for name in sorted(base)]
    lines += [
        f"| acc, {kind.replace('_', ' ')} phrasings | {score['base']['acc']:.1%} | {score['adapter']['acc']:.1%} |"
        for kind, score in sorted(scores.get("phrased", {}).items())
    ]
    return [f"On {scores['rows']} train rows kept aside:", "", "| | base model | adapter |", "|---|---|---|", *lines]

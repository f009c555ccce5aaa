"""Measures how many prompts in other words find their task, before and after such examples are imported.

    python -m benchmarks.wordings ../shared/data [--task rte ...] [--rows 20] [--others 20] [--own refunds.jsonl]

LORACOMP_DATABASE_URL names a database into which the library was loaded; it is left as it was. The prompts are
validation rows in wordings that were written by hand and are in no rule. For each task, examples in other words are
imported as by `loracomp task reword TASK --import`, all rows are routed again, and the import is undone. The last
columns count validation rows of all other tasks that have more than half of their mix from this task.

--own names a file with examples of a task of your own. The task must be in the database, under the name of the file.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psycopg

from benchmarks.pages import as_markdown
from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection, rows_of
from loracomp.database.embedded import database_url
from loracomp.database.queries import QUERIES
from loracomp.model.encoder import Encoder
from loracomp.registry.embeddings import embed_missing, load_registered_encoder
from loracomp.registry.example_files import read_files
from loracomp.registry.examples import Example
from loracomp.registry.rewording import AS_STORED, check_wordings, reword_examples, write
from loracomp.registry.tasks import draw, import_examples
from loracomp.registry.wordings import RULES, Frame, Wording, find_frame, reword
from loracomp_lab.catalogue import entry_names, load_entry, read_examples

BY_HAND = "by hand"
OTHERS = "other tasks"
OTHER_CHOICES = "by hand, other choices"


ASKED = {
    "rte": (
        Wording("", "Given that {1} does it follow that {2}"),
        Wording("", "Fact: {1}\nClaim: {2}\nTrue or false, is the claim backed by the fact?"),
        Wording("", "Someone wrote: {1} I conclude: {2} Am I right?", {"true": "yes", "false": "no"}),
        Wording("", "{2}\n\nSource: {1}", {"true": "supported", "false": "unsupported"}),
    ),
    "sst2": (
        Wording("", "What mood does this have? {text}"),
        Wording("", "Film comment: {text}\nFeeling ->"),
        Wording("", "{text}\n\nIs the reviewer pleased?", {"negative": "no", "positive": "yes"}),
        Wording("", 'A critic says "{text}". Thumbs up or down?', {"negative": "down", "positive": "up"}),
    ),
    "qnli": (
        Wording("", "I asked and got this back:\n{text}\nDid that help me?"),
        Wording("", "FAQ entry\n{text}\nIs the first line resolved by the second?"),
        Wording("", "{text}\n(a good reply or a bad reply?)", {"yes": "good", "no": "bad"}),
        Wording("", "Rate what I was told. {text}", {"yes": "right to the point", "no": "beside the point"}),
    ),
    "piqa": (
        Wording("", "Tip of the day wanted: {text}"),
        Wording("", "My grandmother asks: {text} What do I tell her?"),
        Wording("", "{text} Pick the sensible one of {choices}."),
        Wording("", "Life hack #12\n{text}\n=>"),
    ),
    "captions": (
        Wording("", "Somebody says of a photo: {1} So is this certain? {2}"),
        Wording("", "{2}\nI read that {1}\nDoes that follow?"),
        Wording("", "Photo: {1} Guess: {2} Is the guess right?"),
        Wording("", "Picture text: {1}\nReader's remark: {2}", choices={"yes": "right", "no": "wrong"}),
        Wording("", "{1} / {2} / follows?", choices={"yes": "surely", "no": "impossible"}),
    ),
    "refund": (
        Wording("", "From the inbox: {text}\nMoney back, yes or no?"),
        Wording("", 'A buyer writes "{text}" Should accounting repay them?'),
        Wording("", "{text}\n\nrefund wanted?"),
        Wording("", "Sort this mail about a purchase. {text}", {"yes": "refund", "no": "other"}),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", action="append")
    parser.add_argument("--rows", type=int, default=20, help="validation rows of the task, each in every wording")
    parser.add_argument("--others", type=int, default=20, help="validation rows of each other task")
    parser.add_argument("--own", type=Path, help="examples of a task that is not the library's")
    options = parser.parse_args()
    with db.connect(database_url(load_settings())) as connection:
        encoder = load_registered_encoder(connection)
        names = [row["name"] for row in rows_of(connection, QUERIES["list_tasks"]) if row["active_adapters"]]
        library = sorted({*names} & {*entry_names()})
        own = options.own and options.own.stem
        others = {name: draw(_of_catalogue(name, "validation", options.data), options.others) for name in library}
        lines = []
        for task in options.task or [name for name in ASKED if name in library or name == own]:
            examples = read_files(options.own, task) if task == own else _stored(connection, task, options.data)
            aside = [row for row in examples if row.split != "train"]
            aside = draw(aside or _of_catalogue(task, "validation", options.data), options.rows, seed=1)
            elsewhere = [row for name, rows in others.items() if name != task for row in rows]
            frame = find_frame([example.prompt for example in examples])
            reworded = reword_examples(examples, frame, RULES)
            lines += measure(connection, encoder, task, reworded, put(task, aside, frame) | {OTHERS: elsewhere})
    print(as_markdown([("task", "prompts", "n", "find it before", "after", "other rows before", "after"), *lines]))


def _of_catalogue(task: str, split: str, data: Path) -> list[Example]:
    return list(read_examples(load_entry(task), split, str(data / task)))


def _stored(connection: Connection, task: str, data: Path) -> list[Example]:
    """The task's train examples that the library has, with their texts."""
    held = connection.execute(
        "SELECT e.content_hash FROM loracomp.example AS e JOIN loracomp.task AS t ON t.id = e.task_id "
        "JOIN loracomp.example_embedding AS v ON v.example_id = e.id WHERE t.name = %s",
        [task],
    )
    hashes = {row["content_hash"] for row in held}
    return [example for example in _of_catalogue(task, "train", data) if example.content_hash in hashes]


def put(task: str, rows: Sequence[Example], frame: Frame) -> dict[str, list[Example]]:
    """The rows of a task as they are, in the wordings of the rules, and in the wordings by hand."""
    by_rules = write(rows, frame, RULES)
    written = {
        AS_STORED: by_rules.pop(AS_STORED),
        "by rules": [row for reworded in by_rules.values() for row in reworded],
        BY_HAND: _reworded(rows, frame, [each for each in ASKED[task] if not each.choices]),
        OTHER_CHOICES: _reworded(rows, frame, [each for each in ASKED[task] if each.choices]),
    }
    return {name: reworded for name, reworded in written.items() if reworded}


def measure(
    connection: Connection,
    encoder: Encoder,
    task: str,
    imported: Sequence[Example],
    written: Mapping[str, Sequence[Example]],
) -> Iterator[tuple[str, ...]]:
    """Yield lines of the table for one task, and undo the import. The last of `written` are rows of other tasks."""
    before = check_wordings(connection, encoder, task, written)
    with connection.transaction() as undone:
        import_examples(connection, task, imported)
        embed_missing(connection, encoder, task)
        after = check_wordings(connection, encoder, task, written)
        raise psycopg.Rollback(undone)
    drawn = (f"{before[-1].finding} of {before[-1].prompts}", str(after[-1].finding))
    for one, other in zip(before[:-1], after[:-1], strict=True):
        shares = (f"{100 * each.finding / each.prompts:.0f}" for each in (one, other))
        yield (task, one.wording, str(one.prompts), *shares, *drawn)


def _reworded(rows: Sequence[Example], frame: Frame, wordings: Sequence[Wording]) -> list[Example]:
    return [each for wording in wordings for row in rows if (each := reword(row, frame, wording))]


if __name__ == "__main__":
    main()

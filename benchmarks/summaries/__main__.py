"""Lets a person judge summaries of fifty texts, without knowing which settings wrote which of them.

    python -m benchmarks.summaries ask URL          inserts a job for each text and each setting; then run a worker
    python -m benchmarks.summaries sheet URL FOLDER writes FOLDER/sheet.txt, shuffled, and FOLDER/key.json
    python -m benchmarks.summaries count FOLDER     counts the numbers that the person wrote into FOLDER/usable.txt

URL is a database with the shipped library. A sentence is usable if it is complete, says something right about the text
and nothing wrong, and does not repeat the whole text. Open the key only after the judging. Equal sentences of several
settings stand on the sheet once.
"""

import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from psycopg.types.json import Jsonb

from loracomp.database import connections as db

TEXTS = (Path(__file__).parent / "texts.txt").read_text(encoding="utf-8").splitlines()
SENTENCE, TEN_WORDS = "Summarise in one sentence: {}", 'Summary of "{}" in ten words:'
AFTER = "{}\n\nSummarise the text above in one sentence."
SYSTEM = "You summarise texts. Answer with one short sentence in plain English."
SETTINGS: dict[str, dict[str, Any]] = {
    "one sentence": {"prompt": SENTENCE},
    "ten words": {"prompt": TEN_WORDS},
    "one sentence, asked after the text": {"prompt": AFTER},
    "one sentence, with a system text": {"prompt": SENTENCE, "system_text": SYSTEM},
    "asked after the text, with a system text": {"prompt": AFTER, "system_text": SYSTEM},
    "one sentence, without the chat template": {"prompt": SENTENCE, "chat_template": False},
    "one sentence, with the library's adapters": {"prompt": SENTENCE, "policy": "cat"},
    "ten words, with the library's adapters": {"prompt": TEN_WORDS, "policy": "cat"},
}
ADD = """
INSERT INTO loracomp.job (prompt, max_new_tokens, policy, chat_template, system_text, tags)
VALUES (%(prompt)s, 60, %(policy)s, %(chat_template)s, %(system_text)s, %(tags)s)
"""
WRITTEN = """
SELECT (tags ->> 'summary_of')::integer AS number, tags ->> 'setting' AS setting, output
FROM loracomp.job_result WHERE tags ? 'summary_of' AND status = 'succeeded' ORDER BY job_id
"""


def ask(url: str) -> None:
    others = {"policy": "default", "chat_template": None, "system_text": None}
    with db.connect(url) as connection:
        for name, setting in SETTINGS.items():
            for number, text in enumerate(TEXTS):
                tags = Jsonb({"summary_of": number, "setting": name})
                connection.execute(ADD, {**others, **setting, "prompt": setting["prompt"].format(text), "tags": tags})


def write_sheet(url: str, folder: Path) -> None:
    with db.connect(url) as connection:
        rows = connection.execute(WRITTEN).fetchall()
    written: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        written[row["number"]][row["output"].strip()].append(row["setting"])
    shuffled, key, lines = random.Random(folder.name), [], []
    for number, text in enumerate(TEXTS):
        outputs = list(written[number].items())
        shuffled.shuffle(outputs)
        lines.append(f"\n{text}")
        for output, settings in outputs:
            lines.append(f"[{len(key)}] {' '.join(output.split())}")
            key.append(settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sheet.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "key.json").write_text(json.dumps(key))


def count(folder: Path) -> Counter[str]:
    """Return the number of usable sentences of each setting."""
    key = json.loads((folder / "key.json").read_text())
    usable = {int(number) for number in (folder / "usable.txt").read_text().split()}
    return Counter(setting for number in usable for setting in key[number])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ask", url]:
            ask(url)
        case ["sheet", url, folder]:
            write_sheet(url, Path(folder))
        case ["count", folder]:
            found = count(Path(folder))
            for name in SETTINGS:
                print(f"{found[name]:2} of {len(TEXTS)}  {name}")
        case _:
            sys.exit(__doc__)

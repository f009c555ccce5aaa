"""Folders of libraries with odd contents, loaded one after the other into the town's database.

A library has two tasks for the tiny model. Something about it is spoilt: a file is missing, too short, another's, a
pickle or a link, the names of its tasks are odd, two tasks have the same adapter, or files change while they are
loaded. Either all of it is loaded, and is in the database as it was checked, or it is refused with a message, and none
of its adapters is there. Nothing outside the folder is read, no pickle is opened, and the library is loaded whole once
it is sound again.
"""

import json
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from safetensors.numpy import save

from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError
from loracomp.registry import library as loading
from loracomp.registry.adapter_checks import read_adapter
from loracomp.registry.adapter_files import CONFIG, TRAINING
from loracomp.registry.adapter_store import fetch_adapters
from loracomp.registry.base_models import find_base_model
from loracomp.registry.library_files import MANIFEST
from registry_data import write_adapter
from rounds import Round
from town import Ground

LIBRARIES = 12
EXAMPLES = 5
NAMES = (
    "plain", "a/b", "o'x", 'say "x"', "%s{}", "caf\u00e9", "cafe\u0301", "\U0001f600", "\u202eabc", "a b", "-x",
    "$x;`y`", "a\\b", "~", "n" * 80, "glossary.safetensors", "tea",
)  # fmt: skip
ODD_NAMES = ("..", "a/../../b", "/etc", "", "a//b", ".", "n" * 300, "a\0b", "\ud800", "../outside/x", "line\nend")
"""Names that lead out of the folder, or that no file can have."""
MODEL = {"name": "tiny", "source": "nowhere/tiny", "revision": None, "fingerprint": "0" * 64}
OUTSIDE = "this-is-outside"
STORED = """
SELECT t.name AS task, a.id, a.sha256, a.training::text || a.config::text AS about, a.status
FROM loracomp.adapter AS a JOIN loracomp.task AS t ON t.id = a.task_id WHERE t.name = ANY (%s)
"""
LISTED = QUERIES["list_tasks"], QUERIES["list_adapters"]


@dataclass
class Library:
    """A folder, and what is in it as long as it is sound."""

    folder: Path
    draw: random.Random
    encoder: dict[str, Any]
    adapters: list[Path]
    tasks: list[str]
    done: list[str] = field(default_factory=list)

    def write(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        tasks = {task: {"family": "odd", "description": "Is it odd?"} for task in self.tasks}
        fields = ("name", "source", "revision", "fingerprint", "identity", "dimensions", "input_version")
        encoder = {name: self.encoder[name] for name in fields}
        self.put(MANIFEST, json.dumps({"base_model": MODEL, "encoder": encoder, "tasks": tasks}).encode())
        for task, adapter in zip(self.tasks, self.adapters, strict=True):
            shutil.copytree(adapter, self.folder / "adapters" / task)
            self.put(f"adapters/{task}/{TRAINING}", json.dumps({"tasks_seen": [task], "task": task}).encode())
            self.put(f"examples/{task}.safetensors", self.examples(task))

    def examples(self, task: str) -> bytes:
        vectors = np.random.default_rng([*task.encode()]).normal(size=(EXAMPLES, self.encoder["dimensions"]))
        arrays = {
            "embeddings": (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
            "content_hashes": np.random.default_rng([*task.encode()]).integers(0, 255, (EXAMPLES, 32), np.uint8),
        }
        about = {
            "source_refs": [f"{task}/train#{number}" for number in range(EXAMPLES)],
            "hash_version": 1, "encoder": self.encoder["fingerprint"],
            "input_version": self.encoder["input_version"], "input_digest": "b" * 64,
        }  # fmt: skip
        return save(arrays, {"examples": json.dumps(about)})

    def put(self, place: str, content: bytes) -> None:
        (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / place).write_bytes(content)

    def files(self) -> list[Path]:
        return sorted(each for each in self.folder.rglob("*") if each.is_file())

    # --- what is spoilt

    def missing(self) -> None:
        self.draw.choice(self.files()).unlink()

    def cut(self) -> None:
        file = self.draw.choice(self.files())
        content = file.read_bytes()
        at = self.draw.randrange(len(content))
        changed = content[:at] + b"\xff" + content[at + 1 :]
        file.write_bytes(self.draw.choice((content[:at], content + b"\0", changed, b"")))

    def anothers(self) -> None:
        one, other = self.draw.sample(self.files(), 2)
        one.write_bytes(other.read_bytes())

    def same_adapter(self) -> None:
        one, other = (self.folder / "adapters" / task for task in self.tasks)
        shutil.rmtree(other)
        shutil.copytree(one, other)

    def link_out(self) -> None:
        """What the link leads to is sound, and says where it lies."""
        file = self.draw.choice([each for each in self.files() if each.name != MANIFEST])
        outside = self.folder.parent / "outside" / str(self.draw.randrange(10**9))
        outside.parent.mkdir(exist_ok=True)
        if file.name in (CONFIG, TRAINING):
            about = json.loads(file.read_text())
            outside.write_text(json.dumps(about | {"revision" if file.name == CONFIG else "note": OUTSIDE}))
            file.unlink()
            file.symlink_to(outside)
        else:
            shutil.copytree(file.parent, outside)
            shutil.rmtree(file.parent)
            file.parent.symlink_to(outside)

    def loop(self) -> None:
        file = self.draw.choice(self.files())
        file.unlink()
        self.draw.choice((file.mkdir, lambda: file.symlink_to(file.name), lambda: file.symlink_to("/dev/null")))()

    def pickled(self) -> None:
        file = self.draw.choice([each for each in self.files() if each.suffix == ".safetensors"])
        pickled = pickle.dumps(Opened(self.folder.parent / "opened"))
        if self.draw.random() < 0.5:
            file.write_bytes(pickled)
        else:
            file.unlink()
            file.with_name("adapter_model.bin").write_bytes(pickled)

    def odd_name(self) -> None:
        manifest = json.loads((self.folder / MANIFEST).read_text())
        manifest["tasks"][self.draw.choice(ODD_NAMES)] = {"family": "odd", "description": ""}
        (self.folder / MANIFEST).write_text(json.dumps(manifest))

    def odd_manifest(self) -> None:
        manifest = json.loads((self.folder / MANIFEST).read_text())
        parts = manifest, manifest["base_model"], manifest["encoder"], manifest["tasks"][self.tasks[0]]
        part, odd = self.draw.choice(parts), (None, [], {}, "", 0, -1, 10**30, "x" * 10**6, "\x1b[31m")
        part[self.draw.choice(sorted(part))] = self.draw.choice(odd)
        (self.folder / MANIFEST).write_text(json.dumps(manifest))

    def sound(self) -> None:
        pass

    def changing(self) -> None:
        """Nothing yet: files change while they are loaded."""


class Opened:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str, str], object], tuple[str, str]]:
        return open, (str(self.path), "w")


SPOILT = (
    Library.missing, Library.cut, Library.cut, Library.anothers, Library.same_adapter, Library.link_out, Library.loop,
    Library.pickled, Library.odd_name, Library.odd_manifest, Library.sound, Library.changing,
)  # fmt: skip


def loaded(owner: Connection, library: Library, is_changing: bool) -> str | None:
    """Load a library; returns why it was refused, or None."""

    def and_change(folder: Path, *arguments: Any, **named: Any) -> Any:
        found = read_adapter(folder, *arguments, **named)
        if is_changing:
            for file in library.files():
                file.write_bytes(file.read_bytes()[::-1])
        return found

    settings = Settings(home=library.folder.parent / "home")
    try:
        with patch.object(loading, "read_adapter", and_change):
            loading.load_library(owner, library.folder, settings=settings)
    except (LoracompError, OSError) as error:  # as the command line prints them
        return str(error)
    return None


def wrong_with(owner: Connection, library: Library, refused: str | None, how: str) -> list[str]:
    """What is wrong after a library was loaded or refused."""
    rows = owner.execute(STORED, [library.tasks]).fetchall()
    found = [f"outside of the folder: {row['task']}: {row['about'][:300]}" for row in rows if OUTSIDE in row["about"]]
    if (library.folder.parent / "opened").exists():
        found.append("a pickle was opened")
    if refused is not None:
        if rows:
            found.append(f"it was refused, and has left the adapters {[row['task'] for row in rows]}")
        if not refused or len(refused) > 3000:
            found.append(f"the message has {len(refused)} characters")
    fetch_adapters(owner, [row["id"] for row in rows])  # which compares their checksums
    for statement in LISTED:
        owner.execute(statement)
    return [f"{how}: {each} (told: {str(refused)[:500]})" for each in found]


def libraries(ground: Ground, seed: int, size: float = 1) -> Round:
    """Some libraries, each spoilt in one way, and loaded again when it is sound."""
    made, draw = Round(Counter(rounds=1)), random.Random(seed)
    with ground.copy() as url, db.connect(url) as owner, TemporaryDirectory() as root:
        (encoder,) = owner.execute("SELECT * FROM loracomp.show_encoder()").fetchall()
        for number in range(round(size * LIBRARIES)):
            folder = Path(root) / str(number)
            adapters = [folder / "made" / each for each in ("one", "other")]
            for each in adapters:
                write_adapter(each, seed=draw.randrange(10**9))
            names = [name if name == "tea" else f"{name} {number}" for name in draw.sample(NAMES, 2)]
            library = Library(folder / "library", draw, encoder, adapters, names)
            library.write()
            spoil = draw.choice(SPOILT)
            how = f"library {number} of {names}: {spoil.__name__}"
            spoil(library)
            before = {row["id"] for row in owner.execute(STORED, [names])}
            try:
                refused = loaded(owner, library, spoil is Library.changing)
                found = [] if before else wrong_with(owner, library, refused, how)
                made.counts["loaded" if refused is None else "refused"] += 1
                library.write()
                if again := loaded(owner, library, False):
                    found.append(f"{how}: sound again, it is refused: {again}")
                else:
                    find_base_model(owner, "tiny")
                    found += are_there(owner, library, how)
            except Exception as error:
                found = [f"{how}: {type(error).__name__}: {error}"]
            made.failures += found
            made.counts["libraries"] += 1
    return made


def are_there(owner: Connection, library: Library, how: str) -> list[str]:
    """Whether the sound library is in the database."""
    active = {row["task"] for row in owner.execute(STORED, [library.tasks]) if row["status"] == "active"}
    counts = {row["name"]: row["embedded"] for row in owner.execute(LISTED[0])}
    few = [task for task in library.tasks if counts.get(task, 0) < EXAMPLES]
    lacking = [*(set(library.tasks) - active), *few]
    return [f"{how}: sound again, it lacks {lacking}"] if lacking else []

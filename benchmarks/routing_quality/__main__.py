"""Prints the tables of docs/routing.md, in Markdown.

    python -m benchmarks.routing_quality DATA [--split train] [--rows 20] [--library FOLDER] [--cache FILE.npz]

DATA holds TASK/train.jsonl and TASK/validation.jsonl. The index is the library's examples; queries are rows of the
split, as many of each task. Of train, only rows none of whose longer texts (a passage, a premise) stands in an example
of the library: settings are chosen on these, and validation is for the report. Rows of tasks that the library lacks
are routed too.
"""

import argparse
from pathlib import Path

from benchmarks.routing_quality.index import NO_SHAPE, Embedder, Index, Settings
from benchmarks.routing_quality.queries import queries_of
from benchmarks.routing_quality.tables import Bench, one_text, robustness, strangers, sweeps, unseen
from benchmarks.routing_quality.thin import thinned
from loracomp.lab.catalogue import entry_names
from loracomp.model.encoder import load_encoder
from loracomp.registry.library_files import PACKAGED


def main() -> None:
    options = parse_arguments()
    index = Index(options.library)
    embed = Embedder(load_encoder(index.encoder), options.cache)
    if options.strangers:
        strangers(index, options.data, options.split, options.rows, embed)
        return
    rows = {
        task: queries_of(task, options.data / task, options.split, options.rows, index)
        for task in entry_names()
        if (options.data / task / f"{options.split}.jsonl").is_file()
    }
    known = [query for task in index.tasks for query in rows.pop(task, [])]
    print(f"{options.split}: {len(known)} rows of {len(index.tasks)} tasks, {len(index.owners)} examples")
    bench = Bench(index, known, embed)
    if options.thin:
        thinned(bench, options.library)
        return
    lines = [("without shape", bench.with_shares(NO_SHAPE), Settings()), ("chosen", bench.similarities, Settings())]
    bench.table("k 30, temperature 0.1, top_p 0.95", lines)
    for form in ("catalogue's template", "bare"):
        bench.by_task(form)
    robustness(bench)
    if options.split == "train":
        sweeps(bench)
        if options.one_text:
            one_text(bench, options.data, options.one_text)
    unseen(index, [query for task in rows for query in rows[task]], embed)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", choices=["train", "validation"], default="train")
    parser.add_argument("--rows", type=int, default=20, help="Queries a task at most.")
    parser.add_argument("--one-text", type=int, default=0, help="Examples a task to embed as one text.")
    parser.add_argument("--strangers", action="store_true", help="Only words that no example has, by hand as well.")
    parser.add_argument("--thin", action="store_true", help="Only libraries with few examples a task.")
    parser.add_argument("--library", type=Path, default=PACKAGED)
    parser.add_argument("--cache", type=Path, help="Keep embeddings of queries in this .npz file.")
    return parser.parse_args()


if __name__ == "__main__":
    main()

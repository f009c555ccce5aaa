"""Prints how routing works if tasks keep few of their examples, by the way in which these are picked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from benchmarks.routing_quality.index import Array, Settings, nearest
from benchmarks.routing_quality.tables import Bench
from loracomp.registry.library_files import read_examples_file

COUNTS = (10, 25, 50, 100)
Places = npt.NDArray[np.int64]


def at_random(vectors: Array, count: int) -> Places:
    return np.random.default_rng(0).permutation(len(vectors))[:count]


def farthest_first(vectors: Array, count: int) -> Places:
    """Begin in the middle, and go on with the vector that is least like all picked before."""
    picked = [int(np.argmax(vectors @ vectors.mean(0)))]
    likeness = vectors @ vectors[picked[0]]
    while len(picked) < count:
        picked.append(int(np.argmin(likeness)))
        likeness = np.maximum(likeness, vectors @ vectors[picked[-1]])
    return np.array(picked)


def by_k_means(vectors: Array, count: int) -> Places:
    """Of as many clusters the vectors nearest to their centres."""
    centres = KMeans(count, n_init=1, random_state=0).fit(vectors).cluster_centers_
    return np.unique(np.argmax(vectors @ centres.T - (centres**2).sum(1) / 2, axis=0))


PICKS: dict[str, Callable[[Array, int], Places]] = {
    "at random": at_random,
    "farthest first": farthest_first,
    "by k-means": by_k_means,
}


def thinned(bench: Bench, folder: Path) -> None:
    """Print a table for all tasks thinned alike, and one for each task thinned alone."""
    vectors = [read_examples_file(folder, task).embeddings.astype(float) for task in bench.index.tasks]
    kept = {
        f"{count}, {name}": [np.isin(np.arange(len(each)), pick(each, min(count, len(each)))) for each in vectors]
        for count in COUNTS
        for name, pick in PICKS.items()
    }
    whole = [np.ones(len(each), dtype=bool) for each in vectors]
    print(bench.head("examples of every task"))
    for label, masks in {"all": whole, **kept}.items():
        print(bench.row(label, bench.similarities, Settings(), np.concatenate(masks)), flush=True)
    print(bench.head("examples of the row's task alone"))
    for label, masks in kept.items():
        alone = [np.concatenate([*whole[:at], mask, *whole[at + 1 :]]) for at, mask in enumerate(masks)]
        print(bench.line(label, [_found(bench, form, alone) for form in bench.forms], Settings()), flush=True)


def _found(bench: Bench, form: str, chosen: list[npt.NDArray[np.bool_]]) -> tuple[Array, Places]:
    """The nearest examples of each row among those that are chosen for its task."""
    similarities, owners = bench.similarities(form), bench.index.owners
    masks = [chosen[own] for own in bench.own]
    rows = [nearest(similarities[[place]][:, mask], owners[mask]) for place, mask in enumerate(masks)]
    return np.concatenate([each[0] for each in rows]), np.concatenate([each[1] for each in rows])

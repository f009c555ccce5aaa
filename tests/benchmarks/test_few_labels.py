"""The comparison of what a few labelled rows are worth: each way answers rows that it was not shown."""

import numpy as np
import pytest

from benchmarks.evaluation.few_labels import OTHERS, WAYS, correct, figures
from benchmarks.evaluation.few_labels_report import few_labels_tables
from loracomp.model.encoder import SHAPE


def made_up(rows: int, seed: int, *, mix: float, embedding: float) -> dict[str, np.ndarray]:
    """Rows with two choices. `mix` and `embedding` say how clearly each of these two shows the label; the mix is biased
    toward the first choice."""
    deal = np.random.default_rng(seed)
    labels = deal.integers(0, 2, rows)
    right = np.eye(2)[labels]
    vectors = deal.normal(0, 0.1, (rows, 2 * 10 + SHAPE))
    vectors[:, 0] += embedding * (labels - 0.5)
    scores = deal.normal(0, 1, (rows, 2)) + mix * right + [2, 0]
    states = deal.normal(0, 0.1, (rows, 12))
    return {"labels": labels, "base": scores, "mix": scores, "vectors": vectors.astype(np.float32), "states": states}


@pytest.mark.parametrize(("mix", "embedding"), [(3, 0), (0, 1), (2, 0.3)])
def test_measured_is_about_as_good_as_the_best_single_way(mix: float, embedding: float) -> None:
    labelled = made_up(64, 1, mix=mix, embedding=embedding)
    found = correct(labelled, made_up(400, 2, mix=mix, embedding=embedding), 40)
    right = dict(zip(WAYS, found.mean(axis=1), strict=True))
    assert right["measured"] > max(right[way] for way in OTHERS) - 0.03
    assert right["measured"] > right["majority"] + 0.2


def test_the_tables_say_how_much_more_often_measured_is_right() -> None:
    labelled, asked = made_up(64, 1, mix=2, embedding=0.3), made_up(100, 2, mix=2, embedding=0.3)
    kept = {"unfamiliar_64": figures({"a": correct(labelled, asked, 64), "b": correct(labelled, asked, 64)})}
    part = kept["unfamiliar_64"]
    assert part["more"]["base"][0] == pytest.approx(part["right"]["measured"][0] - part["right"]["base"][0], abs=0.11)
    assert part["more"]["base"][1] <= part["more"]["base"][0] <= part["more"]["base"][2]
    tables = few_labels_tables(kept)
    assert tables["few-labels"].splitlines()[2].startswith("| five unfamiliar tasks (200) | 64 | ")

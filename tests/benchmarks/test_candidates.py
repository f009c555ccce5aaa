"""What benchmarks.candidates computes from scores."""

import numpy as np
import pytest

from benchmarks.candidates import Scored, difference, with_bias


def scored(scores: list[list[float]], answers: list[int], task: int = 0) -> list[Scored]:
    return [
        Scored(task, row, answer, np.array(each))
        for row, (each, answer) in enumerate(zip(scores, answers, strict=True))
    ]


def test_biases_come_from_the_labelled_rows_of_the_same_task() -> None:
    learnt = [*scored([[2, 0]] * 8, [1] * 8, task=0), *scored([[0, 2]] * 8, [0] * 8, task=1)]
    asked = [*scored([[1, 0]], [1], task=0), *scored([[0, 1]], [0], task=1)]
    assert not any(each.is_right for each in asked)
    assert all(each.is_right for each in with_bias(learnt, asked))


def test_a_difference_is_a_mean_of_tasks_and_its_error_counts_a_row_once() -> None:
    right, wrong = [0.0, 1.0], [1.0, 0.0]
    found = [*scored([right, wrong, right, right], [1] * 4, task=0), *scored([right] * 2, [1] * 2, task=1)]
    base = [*scored([wrong] * 4, [1] * 4, task=0), *scored([wrong, right], [1, 1], task=1)]
    base = [Scored(each.task, each.row + 10 * each.task, each.answer, each.scores) for each in base]
    found = [Scored(each.task, each.row + 10 * each.task, each.answer, each.scores) for each in found]
    # Task 0: 3 of 4 rows, variance 3/16 a row; task 1: 1 of 2 rows, 1/4 a row.
    error = np.sqrt((3 / 16) / 4 + (1 / 4) / 2) / 2
    assert difference(found, base) == f"+62.5 ({100 * error:.1f})"
    twice = difference([*found, *found], [*base, *base])
    assert twice == difference(found, base), "more draws of the same rows say nothing new"


@pytest.mark.parametrize(("scores", "answer", "is_right"), [([0.0, 1.0], 1, True), ([0.0, 1.0], 0, False)])
def test_an_answer_is_right_where_its_choice_scores_highest(scores: list[float], answer: int, is_right: bool) -> None:
    assert Scored(0, 0, answer, np.array(scores)).is_right == is_right

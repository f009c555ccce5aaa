"""Statistics of an evaluation: the accuracy of policies, and comparisons of two policies on the same rows."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Z = 1.959964
"""The normal distribution's 97.5 % quantile, for two-sided 95 % intervals."""

Rows = list[dict[str, Any]]
Scope = tuple[str, str | None, str | None]
"""('task', family, task), ('family', family, None) or ('all', None, None)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one row of a task under one policy."""

    task: str
    family: str
    policy: str
    example_id: int
    is_right: bool | None
    """Whether the answer equals the label; None if the job has no answer, because it failed or was cancelled."""


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval for the share hits / n, or (0, 1) if n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, square = hits / n, Z**2 / n
    half = math.sqrt(square * (share * (1 - share) + square / 4))
    low, high = ((share + square / 2 + sign * half) / (1 + square) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Return the p value of McNemar's exact two-sided test, from the rows on which only one of two policies is
    right."""
    n = only_a + only_b
    logs = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)
        for i in range(min(only_a, only_b) + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def accuracies(outcomes: Iterable[Outcome]) -> Rows:
    """Return each policy's accuracy on each task, and its means over each family and over all tasks, with 95 %
    intervals.

    In a mean, each task has the same weight. The mean's interval is computed from the tasks' Wilson intervals, by
    adding the squares of their distances from the estimates (Zou and Donner 2008). `asked` counts all rows, and `n`
    only the rows with an answer.
    """
    found: dict[tuple[str, str, str], list[bool | None]] = defaultdict(list)
    for each in outcomes:
        found[each.family, each.task, each.policy].append(each.is_right)
    parts = defaultdict(list)
    for (family, task, policy), rights in found.items():
        for scope in _scopes(family, task):
            parts[scope, policy].append(Counter(rights))
    return [_accuracy(scope, policy, parts[scope, policy]) for scope, policy in sorted(parts, key=_order)]


def _accuracy(scope: Scope, policy: str, tasks: Sequence[Counter[bool | None]]) -> dict[str, Any]:
    answered = [(each[True], each[True] + each[False]) for each in tasks if each[True] + each[False]]
    shares = [hits / n for hits, n in answered]
    intervals = [wilson_interval(hits, n) for hits, n in answered]
    mean = sum(shares) / len(shares) if shares else None
    below = math.hypot(*(share - low for share, (low, _) in zip(shares, intervals, strict=True)))
    above = math.hypot(*(high - share for share, (_, high) in zip(shares, intervals, strict=True)))
    return _named(scope) | {
        "policy": policy,
        "tasks": len(shares),
        "asked": sum(each.total() for each in tasks),
        "n": sum(n for _, n in answered),
        "correct": sum(hits for hits, _ in answered),
        "accuracy": mean,
        "accuracy_low": 0.0 if mean is None else max(0.0, mean - below / len(shares)),
        "accuracy_high": 1.0 if mean is None else min(1.0, mean + above / len(shares)),
    }


@dataclass(slots=True)
class _Pair:
    """Numbers of right answers that two policies gave, on the rows of a task that both answered."""

    n: int = 0
    right_a: int = 0
    right_b: int = 0
    only_a: int = 0
    only_b: int = 0

    def count(self, a: bool, b: bool) -> None:
        self.n += 1
        self.right_a += a
        self.right_b += b
        self.only_a += a and not b
        self.only_b += b and not a


def differences(outcomes: Iterable[Outcome], references: Iterable[str]) -> Rows:
    """Compare each policy with each of the references on the rows that both answered, by task, by family and overall.

    The interval of a difference is Wald's interval with half a row added to each of the four outcomes (Agresti and Min
    2005). The interval of a mean over tasks uses the sum of their variances. `p` is from McNemar's test over the rows
    of all tasks.
    """
    answers: dict[tuple[str, str, int], dict[str, bool]] = defaultdict(dict)
    for each in outcomes:
        if each.is_right is not None:
            answers[each.family, each.task, each.example_id][each.policy] = each.is_right
    pairs: dict[tuple[str, str, str, str], _Pair] = defaultdict(_Pair)
    for (family, task, _), policies in answers.items():
        for b in policies.keys() & set(references):
            for a in policies.keys() - {b}:
                pairs[family, task, a, b].count(policies[a], policies[b])
    parts: dict[tuple[str, tuple[Scope, str]], list[_Pair]] = defaultdict(list)
    for (family, task, a, b), pair in pairs.items():
        for scope in _scopes(family, task):
            parts[b, (scope, a)].append(pair)
    ordered = sorted(parts, key=lambda each: (each[0], _order(each[1])))
    return [_difference(scope, a, b, parts[b, (scope, a)]) for b, (scope, a) in ordered]


def _difference(scope: Scope, policy_a: str, policy_b: str, tasks: Sequence[_Pair]) -> dict[str, Any]:
    only_a, only_b = sum(each.only_a for each in tasks), sum(each.only_b for each in tasks)
    mean_a, mean_b = (
        sum(right / each.n for right, each in zip(rights, tasks, strict=True)) / len(tasks)
        for rights in ([each.right_a for each in tasks], [each.right_b for each in tasks])
    )
    centre = sum((each.only_a - each.only_b) / (each.n + 2) for each in tasks) / len(tasks)
    variances = (
        (each.only_a + each.only_b + 1 - (each.only_a - each.only_b) ** 2 / (each.n + 2)) / (each.n + 2) ** 2
        for each in tasks
    )
    error = math.sqrt(sum(variances)) / len(tasks)
    return _named(scope) | {
        "policy_a": policy_a,
        "policy_b": policy_b,
        "tasks": len(tasks),
        "tasks_ahead": sum(each.only_a > each.only_b for each in tasks),
        "tasks_behind": sum(each.only_a < each.only_b for each in tasks),
        "n": sum(each.n for each in tasks),
        "only_a": only_a,
        "only_b": only_b,
        "accuracy_a": mean_a,
        "accuracy_b": mean_b,
        "difference": mean_a - mean_b,
        "difference_low": max(-1.0, centre - Z * error),
        "difference_high": min(1.0, centre + Z * error),
        "p": mcnemar_p(only_a, only_b),
    }


def _scopes(family: str, task: str) -> Iterator[Scope]:
    yield "task", family, task
    yield "family", family, None
    yield "all", None, None


def _order(part: tuple[Scope, str]) -> tuple[int, str, str, str]:
    """Sorts tasks before families, and families before the mean over all."""
    (scope, family, task), policy = part
    return ("task", "family", "all").index(scope), family or "", task or "", policy


def _named(scope: Scope) -> dict[str, Any]:
    return dict(zip(("scope", "family", "own_task"), scope, strict=True))

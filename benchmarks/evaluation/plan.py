"""The plan of the evaluation: its parts, policies and units, and which units still lack rows."""

from collections.abc import Mapping
from dataclasses import dataclass

from loracomp_lab.catalogue import Phrased, entry_names, load_entry

from .prompts import BARE, HANDWRITTEN

POLICIES = (
    "base",
    "own_task",
    "default",
    "linear",
    "linear_rescaled",
    "ties",
    "magnitude_prune",
    "nearest",
    "measured",
    "measured_always",
    "uniform",
    "uniform_linear",
)
"""Policies to evaluate, in this order, if the database has them. To compare a policy of your own, add it here."""
ADDED_POLICIES: dict[str, dict[str, str | int]] = {
    "linear_rescaled": {"strategy": "linear_rescaled"},
    "measured_always": {"weighting": "measured", "strategy": "cat", "k": 100, "max_adapters": 3, "gain_margin": -1000},
    "uniform_linear": {"weighting": "uniform", "strategy": "linear"},
}
"""Policies that the evaluation adds.

`uniform_linear` is the control of `linear`: it merges in the same way, because merging changes the norm of a mix.
"""
CONTROLS = frozenset({"uniform", *ADDED_POLICIES})
"""Policies that are evaluated on fewer rows, because they only serve as a comparison."""
OWN = frozenset({"base", "own_task"})
"""Policies that are not evaluated without the row's own task, because they ignore retrieval."""
STAGES = (50, 100, 250, None)
"""Numbers of rows of each task. All tasks reach a number before any task goes on to the next one, so that a run that is
stopped early has a useful report."""


UNFAMILIAR = ("qqp", "sick", "subj", "trec", "tweet_eval_sentiment")
"""Tasks that are unlike the library's tasks, except for sick, whose twin is snli.

The other tasks without an adapter have twins in the library, except for mrpc.
"""
SHORT = ("base", "own_task", "default", "linear", "nearest", "measured", "uniform")
"""Policies that are compared in each kind of prompt."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the evaluation: tasks, policies, a kind of prompt, and conditions under which they are measured."""

    name: str
    tasks: tuple[str, ...]
    policies: tuple[str, ...]
    prompts: str = Phrased.OWN
    """Kind of prompt (one of `prompts.KINDS`)."""
    own_adapters: bool = True
    """Whether the library has adapters of these tasks, and they may answer."""
    kind: str = "predict"
    labelled: int | None = None
    """Number of labelled rows of each task, with measured gains, that are added to the library; None: no rows are."""

    @property
    def database(self) -> str:
        """Name of the part's database. Parts with the same name share it."""
        return self.prompts if self.labelled is None else f"{self.prompts}_{self.labelled}"

    @property
    def exclude_own(self) -> bool:
        """Whether each row excludes its own task."""
        return not self.own_adapters and self.tasks == LIBRARY


def _tasks(*, trained: bool) -> tuple[str, ...]:
    entries = map(load_entry, entry_names())
    return tuple(entry.task for entry in entries if (entry.training_split is not None) == trained)


LIBRARY = _tasks(trained=True)
UNSEEN = tuple(task for task in _tasks(trained=False) if task not in UNFAMILIAR)
# Leaves out the policies of OWN, because their answers don't change when the own task is excluded.
_KEPT_OUT = tuple(policy for policy in POLICIES if policy not in OWN)
_WITHOUT_OWN = ("base", *_KEPT_OUT)
_MEASURED = ("base", "default", "measured", "measured_always", "uniform")
PARTS = (
    Part("routing", LIBRARY, ("default",), kind="route"),
    Part("routing_bare", LIBRARY, ("default",), BARE, kind="route"),
    Part("routing_held_out", LIBRARY, ("default",), Phrased.HELD_OUT, kind="route"),
    Part("handwritten", tuple(HANDWRITTEN), _WITHOUT_OWN, own_adapters=False),
    Part("held_out", LIBRARY, SHORT, Phrased.HELD_OUT),
    Part("trained", LIBRARY, SHORT, Phrased.TRAINED),
    Part("library", LIBRARY, POLICIES),
    Part("unfamiliar", UNFAMILIAR, _WITHOUT_OWN, own_adapters=False),
    *(Part(f"unfamiliar_{count}", UNFAMILIAR, _MEASURED, own_adapters=False, labelled=count) for count in (16, 64)),
    Part("own_labelled", LIBRARY, _MEASURED[1:], own_adapters=False, labelled=30),
    Part("unseen", UNSEEN, _WITHOUT_OWN, own_adapters=False),
    Part("own_excluded", LIBRARY, _KEPT_OUT, own_adapters=False),
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A policy on a task. It is measured again if anything that its answers depend on has changed."""

    part: Part
    task: str
    policy: str
    digest: str
    """Digest of everything on which its answers depend (`state.State.digest`)."""
    available: int
    """Number of rows that can be evaluated."""

    @property
    def evaluation(self) -> str:
        """Name of the evaluation in the database."""
        return f"{self.part.name}/{self.task}/{self.policy}/{self.digest}"

    def wanted(self, rows: int | None, control_rows: int) -> int:
        """Number of rows that the unit should have after a stage of `rows` rows a task."""
        limits = [self.available, *([] if rows is None else [rows])]
        return min(*limits, control_rows) if self.policy in CONTROLS else min(limits)


def lacking(
    units: list[Unit], measured: Mapping[Unit, int], rows: int | None, control_rows: int
) -> list[tuple[Unit, int]]:
    """The units that have fewer rows than they should have, each with the number that it should have."""
    wanted = [(unit, unit.wanted(rows, control_rows)) for unit in units]
    return [(unit, count) for unit, count in wanted if measured.get(unit, 0) < count]

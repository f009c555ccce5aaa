"""What is asked: parts, policies, and how far each has got."""

from collections.abc import Mapping
from dataclasses import dataclass

from loracomp.lab.catalogue import entry_names, load_entry

POLICIES = (
    "base",
    "own_task",
    "default",
    "linear",
    "linear_rescaled",
    "ties",
    "ties_rescaled",
    "magnitude_prune",
    "magnitude_prune_rescaled",
    "nearest",
    "contrast",
    "nearest_contrast",
    "own_task_contrast",
    "uniform",
    "random",
    "random_parameters",
    "uniform_linear",
    "random_linear",
)
"""Asked in this order, those that the database has. A policy of your own that is to be compared goes here."""
ADDED_POLICIES: dict[str, dict[str, str]] = {
    "uniform_linear": {"weighting": "uniform", "strategy": "linear"},
    "random_linear": {"router": "random", "strategy": "linear"},
}
"""Policies that the evaluation brings. Linear changes how large a mix is: its own controls are merged by it."""
CONTROLS = frozenset({"uniform", "random", "random_parameters", *ADDED_POLICIES})
"""Asked fewer rows: they are compared with, and need not be known as well."""
OWN = frozenset({"base", "own_task", "own_task_contrast"})
"""What the own task's being kept out doesn't change, or makes senseless."""
STAGES = (50, 100, 250, None)
"""Rows a task, breadth first: whenever it is stopped, a report stands. None: all."""


BARE = "test"
"""The split that rows without a template stand in, in the evaluation's own database (`bare`)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of tasks asked in one way."""

    name: str
    unseen: bool
    """The tasks that no adapter was trained for, or those of the library."""
    policies: tuple[str, ...]
    exclude_own: bool = False
    kind: str = "predict"
    split: str = "validation"

    @property
    def tasks(self) -> list[str]:
        """Names, in the catalogue's order."""
        entries = map(load_entry, entry_names())
        return [entry.task for entry in entries if (entry.training_split is None) == self.unseen]


# Where own tasks are kept out, these answer as they do in the library: they are not asked again.
_KEPT_OUT = tuple(policy for policy in POLICIES if policy not in OWN)
PARTS = (
    Part("routing", unseen=False, policies=("default",), kind="route"),
    Part("routing_bare", unseen=False, policies=("default",), kind="route", split=BARE),
    Part("library", unseen=False, policies=POLICIES),
    Part("own_excluded", unseen=False, policies=_KEPT_OUT, exclude_own=True),
    Part("unseen", unseen=True, policies=("base", *_KEPT_OUT)),
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A policy on a task: what is measured whole, and again when anything that it depends on has changed."""

    part: Part
    task: str
    policy: str
    digest: str
    """Of all that its answers depend on (`state.State.digest`)."""
    available: int
    """Rows that there are."""

    @property
    def evaluation(self) -> str:
        """Name of the evaluation that asks it."""
        return f"{self.part.name}/{self.task}/{self.policy}/{self.digest}"

    def wanted(self, rows: int | None, control_rows: int) -> int:
        """Rows to have after a stage of so many rows a task."""
        limits = [self.available, *([] if rows is None else [rows])]
        return min(*limits, control_rows) if self.policy in CONTROLS else min(limits)


def lacking(
    units: list[Unit], measured: Mapping[Unit, int], rows: int | None, control_rows: int
) -> list[tuple[Unit, int]]:
    """Units that have fewer rows than wanted, each with the rows that it should have."""
    wanted = [(unit, unit.wanted(rows, control_rows)) for unit in units]
    return [(unit, count) for unit, count in wanted if measured.get(unit, 0) < count]

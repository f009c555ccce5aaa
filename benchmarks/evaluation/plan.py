"""What is asked: parts, policies, and how far each has got."""

from collections.abc import Mapping
from dataclasses import dataclass

from loracomp.lab.catalogue import Phrased, entry_names, load_entry

from .asked import BARE, HANDWRITTEN

POLICIES = (
    "base",
    "own_task",
    "default",
    "linear",
    "ties",
    "magnitude_prune",
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


UNFAMILIAR = ("qqp", "sick", "subj", "trec", "tweet_eval_sentiment")
"""Tasks that nothing in the library is like; other tasks without an adapter have a twin there."""
SHORT = ("base", "own_task", "default", "linear", "nearest", "uniform")
"""Policies that are compared on each kind of prompt."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of tasks asked in one way."""

    name: str
    tasks: tuple[str, ...]
    policies: tuple[str, ...]
    prompts: str = Phrased.OWN
    """How the rows are put (`asked.KINDS`)."""
    own_adapters: bool = True
    """Whether the tasks' own adapters are in the library and may answer."""
    kind: str = "predict"

    @property
    def exclude_own(self) -> bool:
        """Whether own adapters have to be kept out."""
        return not self.own_adapters and self.tasks == LIBRARY


def _tasks(*, trained: bool) -> tuple[str, ...]:
    entries = map(load_entry, entry_names())
    return tuple(entry.task for entry in entries if (entry.training_split is not None) == trained)


LIBRARY = _tasks(trained=True)
UNSEEN = tuple(task for task in _tasks(trained=False) if task not in UNFAMILIAR)
# Where own tasks are kept out, these answer as they do in the library: they are not asked again.
_KEPT_OUT = tuple(policy for policy in POLICIES if policy not in OWN)
_WITHOUT_OWN = ("base", *_KEPT_OUT)
PARTS = (
    Part("routing", LIBRARY, ("default",), kind="route"),
    Part("routing_bare", LIBRARY, ("default",), BARE, kind="route"),
    Part("routing_held_out", LIBRARY, ("default",), Phrased.HELD_OUT, kind="route"),
    Part("handwritten", tuple(HANDWRITTEN), _WITHOUT_OWN, own_adapters=False),
    Part("held_out", LIBRARY, SHORT, Phrased.HELD_OUT),
    Part("trained", LIBRARY, SHORT, Phrased.TRAINED),
    Part("library", LIBRARY, POLICIES),
    Part("unfamiliar", UNFAMILIAR, _WITHOUT_OWN, own_adapters=False),
    Part("unseen", UNSEEN, _WITHOUT_OWN, own_adapters=False),
    Part("own_excluded", LIBRARY, _KEPT_OUT, own_adapters=False),
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

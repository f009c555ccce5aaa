"""The plan of the evaluation: its parts, policies and units, and which of them lack rows."""

from collections.abc import Mapping
from dataclasses import dataclass

from loracomp_lab.catalogue import Phrased, entry_names, load_entry

from .asked import BARE, HANDWRITTEN

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
"""Policies to evaluate, in this order, if the database has them. Add your own policy here to compare it."""
ADDED_POLICIES: dict[str, dict[str, str | int]] = {
    "linear_rescaled": {"strategy": "linear_rescaled"},
    "measured_always": {"weighting": "measured", "strategy": "cat", "k": 100, "max_adapters": 3, "gain_margin": -1000},
    "uniform_linear": {"weighting": "uniform", "strategy": "linear"},
}
"""Policies that the evaluation adds. The control of linear uses linear too, because it changes the norm of a mix."""
CONTROLS = frozenset({"uniform", *ADDED_POLICIES})
"""Policies that are evaluated on fewer rows, because they are only for comparison."""
OWN = frozenset({"base", "own_task"})
"""Policies that are not evaluated with the own task excluded: it would change nothing, or make no sense."""
STAGES = (50, 100, 250, None)
"""Numbers of rows for each task, evaluated for all tasks in turn, so that a stopped run has a useful report."""


UNFAMILIAR = ("qqp", "sick", "subj", "trec", "tweet_eval_sentiment")
"""Tasks unlike the library's, but for sick, whose twin is snli. Others without an adapter, but mrpc, have twins."""
SHORT = ("base", "own_task", "default", "linear", "nearest", "measured", "uniform")
"""Policies that are compared on each kind of prompt."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the evaluation: which tasks, policies and kind of prompts, and under which conditions."""

    name: str
    tasks: tuple[str, ...]
    policies: tuple[str, ...]
    prompts: str = Phrased.OWN
    """Kind of the prompts (`asked.KINDS`)."""
    own_adapters: bool = True
    """Whether the tasks' own adapters are in the library and may answer."""
    kind: str = "predict"
    labelled: int | None = None
    """Rows of each task that the database has beside the library, with measured gains; None: as the library is."""

    @property
    def database(self) -> str:
        """Parts with the same one are asked in one database."""
        return self.prompts if self.labelled is None else f"{self.prompts}_{self.labelled}"

    @property
    def exclude_own(self) -> bool:
        """Whether each row's own task must be excluded."""
        return not self.own_adapters and self.tasks == LIBRARY


def _tasks(*, trained: bool) -> tuple[str, ...]:
    entries = map(load_entry, entry_names())
    return tuple(entry.task for entry in entries if (entry.training_split is not None) == trained)


LIBRARY = _tasks(trained=True)
UNSEEN = tuple(task for task in _tasks(trained=False) if task not in UNFAMILIAR)
# Policies of OWN are not evaluated again with own tasks excluded, because that does not change their answers.
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
    """Digest of everything that its answers depend on (`state.State.digest`)."""
    available: int
    """Number of rows that can be evaluated."""

    @property
    def evaluation(self) -> str:
        """Name of the evaluation in the database."""
        return f"{self.part.name}/{self.task}/{self.policy}/{self.digest}"

    def wanted(self, rows: int | None, control_rows: int) -> int:
        """Number of rows that the unit should have after a stage of `rows` rows for each task."""
        limits = [self.available, *([] if rows is None else [rows])]
        return min(*limits, control_rows) if self.policy in CONTROLS else min(limits)


def lacking(
    units: list[Unit], measured: Mapping[Unit, int], rows: int | None, control_rows: int
) -> list[tuple[Unit, int]]:
    """Units that have fewer rows than wanted, each with the number of rows that it should have."""
    wanted = [(unit, unit.wanted(rows, control_rows)) for unit in units]
    return [(unit, count) for unit, count in wanted if measured.get(unit, 0) < count]

"""`loracomp evaluate`: starts an evaluation, waits until its jobs are answered, and prints the results."""

from pathlib import Path
from typing import Annotated, Any

import typer

from loracomp.cli.answering import Waiting, see_to_answers
from loracomp.cli.common import INTEGER, AsJson, emit_json, open_database, remark
from loracomp.config import Settings, load_settings
from loracomp.database.connections import Connection
from loracomp.errors import LoracompError, UsageError
from loracomp_lab import evaluation
from loracomp_lab.cli.evaluation_tables import print_results


def evaluate(
    name: Annotated[str, typer.Argument(help="Name of the evaluation. Without --tasks, continue an existing one.")],
    *,
    tasks: Annotated[str | None, typer.Option(help="Tasks, such as piqa,rte.")] = None,
    policies: Annotated[str | None, typer.Option(help="Policies, such as base,own_task,default.")] = None,
    split: Annotated[str, typer.Option(help="Split whose rows become jobs.")] = "validation",
    rows: Annotated[
        int | None, typer.Option(min=1, max=INTEGER, help="Maximum number of rows for each task. Defaults to all.")
    ] = None,
    exclude_own: Annotated[
        bool, typer.Option("--exclude-own", help="Leave out the row's own task, and adapters that were trained on it.")
    ] = False,
    route_only: Annotated[bool, typer.Option("--route-only", help="Only compute routing weights.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=INTEGER, help="Seed by which rows are drawn.")] = 0,
    base_model: Annotated[str | None, typer.Option(help="Defaults to the database's default.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder with TASK/validation.jsonl, to import first.")] = None,
    csv: Annotated[Path | None, typer.Option(help="CSV file to write: one line for each job, without texts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer the same rows of tasks under several policies and compare. If it is stopped, run it again to continue."""
    if (tasks is None) != (policies is None):
        raise UsageError("--tasks and --policies go together; leave both out to continue an evaluation")
    settings = load_settings()
    with open_database() as connection:
        if tasks and policies:
            named = _listed(tasks)
            _import(connection, named, split, data)
            started = evaluation.start_evaluation(
                connection,
                name,
                tasks=named,
                policies=_listed(policies),
                split=split,
                rows_a_task=rows,
                exclude_own=exclude_own,
                kind="route" if route_only else "predict",
                base_model=base_model or settings.base_model,
                seed=seed,
            )
            remark(
                f"{sum(row['added'] for row in started)} of {sum(row['jobs'] for row in started)} jobs were added now"
            )
        left = _answer(connection, name, settings)
        _show(connection, name, csv, as_json)
    if left:
        raise LoracompError(f"{left} jobs are left: run `loracomp evaluate {name}` again to continue")


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _import(connection: Connection, tasks: list[str], split: str, data: str | None) -> None:
    for task in tasks if data else []:
        assert data
        report = evaluation.import_split(connection, task, split, data)
        remark(f"{task}: {', '.join(f'{count} {outcome}' for outcome, count in report.counts.items())}")


def _answer(connection: Connection, name: str, settings: Settings) -> int:
    """Wait until the evaluation's jobs are answered, here or by other workers; returns how many are left."""

    def look(connection: Connection) -> Waiting:
        state = evaluation.show_evaluation(connection, name)
        return Waiting(state["base_model"], state["queued"], state["running"])

    total = evaluation.show_evaluation(connection, name)["jobs"]
    return see_to_answers(connection, settings, look, total, "answering")


def _show(connection: Connection, name: str, csv: Path | None, as_json: bool) -> None:
    state: dict[str, Any] = evaluation.show_evaluation(connection, name)
    results = evaluation.read_results(connection, name)
    if csv:
        remark(f"{evaluation.write_csv(connection, name, csv)} lines written to {csv}")
    if as_json:
        emit_json({"evaluation": state, **results})
    else:
        print_results(results)
        own = ", own tasks kept out" if state["exclude_own"] else ""
        answered = f"{state['succeeded']} of {state['jobs']} jobs answered"
        remark(f"{name}: {state['split']} rows on {state['base_model']}{own}; {answered}")
    if lacking := evaluation.lacking_rows(connection, name):
        found = (f"{row['policy']} {row['asked']} of {row['of']} rows of {row['task']}" for row in lacking)
        remark(
            f"not all policies were asked the same rows ({', '.join(found)}), so compare only their pairs; to ask the "
            "others too, run it again with all --tasks, all --policies and the largest --rows that were given"
        )
    if state["failed"]:
        remark(f"{state['failed']} jobs failed: bi.prediction says why, loracomp.retry_job tries one again")

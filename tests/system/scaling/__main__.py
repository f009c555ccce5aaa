"""`make scaling`: the table of docs/scaling.md, on a server of its own; exits with 1 if a goal is missed."""

import sys

from conftest import create_database, place_for_a_server
from job_data import add_base_model
from loracomp.database import connections as db
from loracomp.database import embedded, schema
from trial import TARGET_S, run

with place_for_a_server() as data:
    url = create_database(embedded.start(data), "scaling")
    schema.initialize(url)
    with db.connect(url) as connection:
        add_base_model(connection)
    trial = run(url)
    embedded.stop(data)
print(f"| phase | jobs | within {TARGET_S:.0f} s | median, s | longest, s | workers | changes |")
print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
for each in trial.phases:
    workers = f"{each.fewest} to {each.most}" if each.fewest != each.most else each.most
    waits = f"{each.within:.1%} | {each.median_s:.1f} | {each.worst_s:.1f}" if each.jobs else "| | "
    print(f"| {each.name} | {each.jobs:,} | {waits} | {workers} | {each.changes} |")
print(
    f"\n{trial.reversals} turns, {trial.unanswered} jobs unanswered; {trial.worker_s:.0f} s of workers for"
    f" {trial.work_s:.0f} s of work."
)
sys.exit("\n".join(trial.problems()) or None)

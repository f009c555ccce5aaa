"""Changes that an administrator leaves open, or that must wait, hold up neither submitters nor workers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from job_data import BASE, add_base_model, add_jobs, claim, prediction_row, record, shared_database, wait_for_a_lock
from loracomp.database import connections as db
from people_fixtures import connect
from routing_data import add_adapter

OPEN = {
    "a policy's settings": "set_policy('default', '{\"routing_top_p\": 0.5}')",
    "a base model": f"register_base_model('{BASE}', 'other', NULL, repeat('a', 64), 'Tiny', 128, 1, '{{}}')",
    "the default base model": f"set_default_base_model('{BASE}')",
    "an adapter": "retire_adapter('tea')",
    "the limit of the queue": "set_queue_limits(1000)",
    "a task's readers": "restrict_task('tea', 'loracomp_admin')",
    "another task": "add_task('coffee')",
    "routing's settings": "tune_routing()",
}


@pytest.fixture(scope="module")
def url(server: str, template: str, logins: None) -> Iterator[str]:
    with shared_database(server, template) as shared, db.connect(shared) as owner:
        add_base_model(owner)
        owner.execute("SELECT loracomp.add_task('tea')")
        add_adapter(owner, "tea", base_model=BASE)
        yield shared


@pytest.mark.parametrize("change", OPEN)
def test_nobody_waits_for_a_change_that_is_left_open(url: str, change: str) -> None:
    with connect(url, "bob") as bob, connect(url, "adam") as adam, connect(url, "wendy") as wendy:
        add_jobs(bob, "before", policy="default", base_model=BASE)
        with adam.transaction(force_rollback=True):
            adam.execute(f"SELECT loracomp.{OPEN[change]}".encode())
            for person in (bob, wendy):
                person.execute("SET lock_timeout = '20s'")
            add_jobs(bob, "meanwhile", policy="default", base_model=BASE)
            jobs = {job.id: job.lease_token for job in claim(wendy)}
            rows = [prediction_row(job_id, output="a", adapter_sha256=[]) for job_id in jobs]
            assert len(jobs) == 2 and record(wendy, jobs, rows) == set(jobs)


@pytest.mark.parametrize("call", ["build_embedding_index()", "drop_embedding_index(1000000)"])
def test_routing_goes_on_while_a_change_of_the_index_waits_for_a_reader(url: str, call: str) -> None:
    """A backup reads all tables for as long as it takes."""
    with db.connect(url) as changing, ThreadPoolExecutor(1) as pool, changing.transaction(force_rollback=True):
        with db.connect(url) as backup, backup.transaction(), db.connect(url) as routing:
            backup.execute("SELECT FROM loracomp.example_embedding LIMIT 1")
            changed = pool.submit(changing.execute, f"SELECT loracomp.{call}".encode())
            wait_for_a_lock(backup)
            routing.execute("SET lock_timeout = '20s'")
            for _ in range(10):
                routing.execute("SELECT FROM loracomp.example_embedding LIMIT 1")
            assert not changed.done()
        changed.result()

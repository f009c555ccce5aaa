"""Adapters in memory: what is loaded, when, and what goes first."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loracomp.composition import blocks, composer
from loracomp.composition.cache import ByteLimitedCache
from loracomp.composition.composer import ResidentAdapters
from loracomp.errors import JobError
from model_fixtures import random_adapter

SHAPES = {"a": (8, 8)}
BYTES = blocks.nbytes(random_adapter(SHAPES).packed().blocks)


class Registry:
    """Adapters by id; 13 is corrupt. Notes what is asked for."""

    def __init__(self):
        self.calls = []

    def fetch(self, adapter_ids):
        self.calls.append(list(adapter_ids))
        if 13 in adapter_ids:
            raise JobError("adapter 13: sha256 differs", code="adapter_hash_mismatch")
        return [random_adapter(SHAPES, seed=id_) for id_ in adapter_ids]


def pairs(*ids):
    """The ids, each with the sha256 of the adapter that has it."""
    return [(id_, f"{id_:064x}") for id_ in ids]


@pytest.fixture
def registry():
    return Registry()


def test_missing_adapters_come_in_one_round_trip_and_stay(registry):
    resident = ResidentAdapters(budget_bytes=10 * BYTES)
    assert list(resident.get(pairs(1, 2, 3), registry.fetch)) == [1, 2, 3]
    found = resident.get(pairs(2, 4, 1), registry.fetch)
    assert [found[id_].id for id_ in (2, 4, 1)] == [2, 4, 1]
    assert registry.calls == [[1, 2, 3], [4]]
    assert resident.get([], registry.fetch) == {}


def test_an_id_that_means_another_adapter_than_before_is_fetched_again():
    """As after the database was restored from another backup; a job that was composed before may come in beside."""
    before, after = (replace(random_adapter(SHAPES, seed=seed), id=1) for seed in (1, 2))
    resident, stored = ResidentAdapters(budget_bytes=10 * BYTES), [before]
    resident.get([(1, before.sha256)], lambda _: stored)
    stored[:] = [after]
    for used in ([after], [before, after], [after, before]):
        assert resident.get([(1, each.sha256) for each in used], lambda _: stored)[1].sha256 == after.sha256


def test_the_least_recently_used_goes_first(registry):
    resident = ResidentAdapters(budget_bytes=2 * BYTES)
    resident.get(pairs(1, 2), registry.fetch)
    resident.get(pairs(1), registry.fetch)
    resident.get(pairs(3), registry.fetch)  # 2 goes
    resident.get(pairs(1), registry.fetch)
    resident.get(pairs(2), registry.fetch)
    assert registry.calls == [[1, 2], [3], [2]]


def test_a_batch_may_use_more_than_the_budget(registry):
    resident = ResidentAdapters(budget_bytes=BYTES)
    assert list(resident.get(pairs(1, 2, 3), registry.fetch)) == [1, 2, 3]
    assert resident.cache.nbytes == BYTES


def test_one_corrupt_adapter_costs_the_others_nothing(registry):
    resident = ResidentAdapters(budget_bytes=10 * BYTES)
    found = resident.get(pairs(1, 13, 2), registry.fetch)
    assert isinstance(found[13], JobError)
    assert (found[1].id, found[2].id) == (1, 2)
    registry.calls.clear()
    resident.get(pairs(1, 13, 2), registry.fetch)
    assert registry.calls == [[13]]  # asked for again: it may have been mended


def test_where_memory_runs_out_the_others_leave_it_and_what_is_too_large_fails_its_jobs_alone(registry, monkeypatch):
    resident, move, device = ResidentAdapters(10 * BYTES), composer.move, 3

    def onto_a_small_device(stored, to):
        if id_of(stored) == 7 or len(resident.cache) >= device:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return move(stored, to)

    def id_of(stored):
        return next(id_ for id_ in range(9) if equal(random_adapter(SHAPES, seed=id_).packed().stored, stored))

    def equal(one, other):
        return all(torch.equal(one[shape].A, other[shape].A) for shape in one)

    monkeypatch.setattr(composer, "move", onto_a_small_device)
    resident.get(pairs(0, 1, 2), registry.fetch)
    found = resident.get(pairs(3, 7, 4), registry.fetch)
    assert (found[3].id, found[4].id) == (3, 4)
    assert (found[7].code, found[7].retry) == ("out_of_memory", True)
    assert resident.cache.nbytes <= 3 * BYTES


def test_of_a_library_of_a_thousand_what_is_in_use_is_resident_and_no_more():
    """Batches of 32 jobs, four adapters each, of mixed ranks, under a budget of 150: one round trip for each batch."""
    shapes = {"a.q": (64, 32), "a.v": (16, 32), "b.q": (64, 32), "b.v": (16, 32)}
    ranks, draw = [4, 8, 16], random.Random(0)
    files = {
        id_: sum(f.A.nbytes + f.B.nbytes for f in adapter(shapes, id_, ranks).factors.values()) for id_ in range(3)
    }
    calls = []

    def fetch(adapter_ids):
        calls.append(len(adapter_ids))
        return [adapter(shapes, id_, ranks) for id_ in adapter_ids]

    resident = ResidentAdapters(budget_bytes=50 * sum(files.values()))
    for batch in range(40):
        used = {id_ for _ in range(32) for id_ in draw.sample(range(1000), 4)}
        found = resident.get(pairs(*used), fetch)
        assert found.keys() == used
        assert len(calls) == batch + 1
        in_use = sum(files[id_ % 3] for id_ in used)
        storages = {
            side.untyped_storage().data_ptr(): side.untyped_storage().nbytes()
            for each in found.values()
            for block in each.blocks.values()
            for side in (block.A, block.B)
        }
        assert sum(storages.values()) <= 1.1 * in_use
        assert resident.cache.nbytes <= resident.cache.budget
    assert sum(calls[20:]) < 20 * 32 * 4 * 0.95  # some were there


def adapter(shapes, id_, ranks):
    return random_adapter(shapes, rank=ranks[id_ % 3], seed=id_)


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12))))
def test_bytes_are_counted_and_stay_in_the_budget(budget, puts):
    cache = ByteLimitedCache(budget)
    sizes = {}
    for key, nbytes in puts:
        cache.put(key, key, nbytes)
        sizes[key] = nbytes
        assert cache.get(key) == key
    assert cache.nbytes == sum(size for key, size in sizes.items() if cache.get(key) is not None)
    assert cache.nbytes <= budget or len(cache) == 1

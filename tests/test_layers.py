"""One pass over rows that each have a composition of their own, against merging each and running it alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loracomp.composition.layers import composed
from loracomp.composition.strategies import STRATEGIES, compose
from loracomp.scoring import pad_right
from model_fixtures import linear_shapes, merged, random_adapter, tiny_llama

TARGETS = [("q_proj", "v_proj"), ("q_proj",), ("o_proj", "down_proj"), ("k_proj", "up_proj", "gate_proj")]


@pytest.fixture(scope="module")
def library(tiny_model):
    """Eight adapters of mixed ranks, scalings and target modules, strong enough to matter."""
    return [
        random_adapter(
            linear_shapes(tiny_model, *TARGETS[i % 4]), rank=(2, 4, 8)[i % 3], seed=i, scaling=0.5 * (i + 1), size=0.1
        )
        for i in range(8)
    ]


@st.composite
def row_batches(draw):
    """For each row: token ids, and a composition's strategy, adapters by number, weights and density, or None."""
    compositions = st.tuples(
        st.sampled_from(STRATEGIES),
        st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True),
        st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4),
        st.sampled_from([0.3, 1.0]),
    )
    tokens = st.lists(st.integers(2, 70), min_size=1, max_size=12)
    return draw(st.lists(st.tuples(tokens, st.none() | compositions), min_size=1, max_size=6))


def factors_of(library, composition):
    if composition is None:
        return {}
    strategy, numbers, weights, density = composition
    return compose(strategy, [library[i] for i in numbers], weights[: len(numbers)], density=density)


@torch.no_grad()
def logits_together(model, tokens, rows):
    input_ids, attention_mask = pad_right(tokens, model.device)
    with composed(model, rows):
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    return [row[: len(ids)] for row, ids in zip(logits, tokens, strict=True)]


@torch.no_grad()
def logits_alone(model, tokens, factors):
    with merged(model, factors):
        return model(torch.tensor([tokens])).logits[0]


@settings(max_examples=80, deadline=None)
@given(batch=row_batches())
def test_each_row_equals_merging_and_running_it_alone(tiny_model, library, batch):
    tokens = [ids for ids, _ in batch]
    rows = [factors_of(library, composition) for _, composition in batch]
    for got, ids, factors in zip(logits_together(tiny_model, tokens, rows), tokens, rows, strict=True):
        expected = logits_alone(tiny_model, ids, factors)
        assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_bfloat16_stays_within_a_bound_of_the_float32_reference(tiny_model, library):
    """Twice the base model's own rounding error: applying factors adds no more than running in bfloat16 does."""
    tokens = [[5, 9, 30, 41, 8], [7, 7, 12]]
    rows = [compose("cat", library[:4], [0.4, 0.3, 0.2, 0.1]), compose("linear", library[3:5], [0.6, 0.4])]
    narrow = tiny_llama().bfloat16()
    widened = tiny_llama()
    widened.load_state_dict(narrow.state_dict())  # the same rounded weights, computed with in float32
    got = logits_together(narrow, tokens, rows)
    for ids, factors, logits in zip(tokens, rows, got, strict=True):
        expected = logits_alone(widened, ids, factors)
        rounding = (logits_alone(narrow, ids, {}) - logits_alone(widened, ids, {})).norm()
        assert (logits - expected).norm() <= 2 * rounding


def test_a_row_without_composition_is_the_base_model_exactly(tiny_model, library):
    tokens = [[5, 9, 30], [5, 9, 30], [8, 2]]
    base = logits_together(tiny_model, tokens, [{}, {}, {}])
    mixed = logits_together(tiny_model, tokens, [{}, compose("cat", library, [0.5] * 8), {}])
    assert torch.equal(mixed[0], base[0])
    assert torch.equal(mixed[2], base[2])
    assert (mixed[1] - base[1]).abs().max() > 0.1


def test_rows_of_one_composition_share_its_factors(tiny_model, library):
    factors = compose("linear", library[:2], [0.5, 0.5])
    shared = logits_together(tiny_model, [[5, 9], [6, 1], [5, 9]], [factors, {}, factors])
    copied = logits_together(tiny_model, [[5, 9], [6, 1], [5, 9]], [factors, {}, dict(factors)])
    assert all(torch.equal(a, b) for a, b in zip(shared, copied, strict=True))


def test_the_model_is_as_it_was_whatever_ends_the_context(tiny_model, library):
    factors = compose("cat", library, [0.5] * 8)
    before = logits_alone(tiny_model, [5, 9, 30], {})
    with pytest.raises(KeyError), composed(tiny_model, [factors]):
        raise KeyError
    with pytest.raises(AttributeError), composed(tiny_model, [{**factors, "model.zzz": factors[next(iter(factors))]}]):
        pass
    assert torch.equal(logits_alone(tiny_model, [5, 9, 30], {}), before)
    assert not any(module._forward_hooks for module in tiny_model.modules())


def test_a_batch_of_another_size_is_refused(tiny_model, library):
    with composed(tiny_model, [library[0].factors] * 2), pytest.raises(ValueError, match=r"\[3, 4, 32\].* of 2 rows"):
        tiny_model(torch.zeros(3, 4, dtype=torch.long))

"""Merges are checked against PEFT's `add_weighted_adapter`, against dense sums, and by algebra."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loracomp.composition.blocks import Factors, are_largest, nbytes, pack_bits, unpack_bits
from loracomp.composition.fidelity import fidelity, merged
from loracomp.composition.strategies import STRATEGIES, gated
from loracomp.errors import UsageError
from model_fixtures import compose, linear_shapes, mask_all, peft_twin, random_adapter, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 reads it

SHAPES = {"a": (7, 5), "b": (4, 6), "c": (5, 5)}
PEFTS = ("linear", "cat", "ties", "magnitude_prune")


def mixed(strategy, adapters, weights, *, density=1.0):
    packed = [adapter.packed() for adapter in adapters]
    return gated(strategy, mask_all(strategy, packed, density=density), weights)


def dense(factors):
    """Module -> B @ A in float64."""
    return {module: f.B.double() @ f.A.double() for module, f in factors.items()}


def assert_same(got, expected, rtol=1e-5, atol=1e-6):
    assert got.keys() == expected.keys()
    for module in expected:
        torch.testing.assert_close(got[module], expected[module], rtol=rtol, atol=atol)


@st.composite
def cases(draw, strategies=STRATEGIES):
    """A strategy with settings, and 1 to 4 adapters of mixed ranks, scalings and modules, with weights."""
    modules = st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, unique=True)
    count = draw(st.integers(1, 4))
    adapters = [
        random_adapter(
            {module: SHAPES[module] for module in draw(modules)},
            rank=draw(st.integers(1, 4)),
            seed=draw(st.integers(0, 1000)) * 4 + number,
            scaling=draw(st.sampled_from([0.5, 1.0, 2.0, 2.0**1.5])),
            size=1.0,
        )
        for number in range(count)
    ]
    weights = [draw(st.floats(0.05, 1.0)) for _ in range(count)]
    settings_ = {"density": draw(st.sampled_from([0.2, 0.5, 0.9, 1.0]))}
    return draw(st.sampled_from(strategies)), adapters, weights, settings_


properties = settings(max_examples=60, deadline=None)


@properties
@given(cases(("cat",)))
def test_cat_equals_the_dense_weighted_sum(case):
    strategy, adapters, weights, kwargs = case
    expected = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for module, delta in dense(adapter.factors).items():
            expected[module] = expected.get(module, 0) + weight * adapter.scaling * delta
    assert_same(dense(compose(strategy, adapters, weights, **kwargs)), expected)


@properties
@given(cases(), st.data())
def test_order_does_not_matter(case, data):
    strategy, adapters, weights, kwargs = case
    order = data.draw(st.permutations(range(len(adapters))))
    permuted = compose(strategy, [adapters[i] for i in order], [weights[i] for i in order], **kwargs)
    assert_same(dense(permuted), dense(compose(strategy, adapters, weights, **kwargs)))


@properties
@given(cases(), st.floats(0.1, 10))
def test_weights_scale_the_change(case, scale):
    strategy, adapters, weights, kwargs = case
    scaled = compose(strategy, adapters, [scale * weight for weight in weights], **kwargs)
    expected = {m: scale * d for m, d in dense(compose(strategy, adapters, weights, **kwargs)).items()}
    assert_same(dense(scaled), expected, rtol=1e-4, atol=1e-5)  # terms near 100 may cancel


@properties
@given(cases())
def test_one_adapter_at_weight_1_is_itself(case):
    strategy, (adapter, *_), _, _ = case
    itself = {module: adapter.scaling * delta for module, delta in dense(adapter.factors).items()}
    assert_same(dense(compose(strategy, [adapter], [1.0], density=1.0)), itself)


@properties
@given(cases(), st.floats(0.01, 0.99))
def test_twins_at_w_and_1_minus_w(case, w):
    """cat, rescaled: they are one. Else cross terms give (sqrt w + sqrt(1 - w))^2 of it; averaging leaves a quarter."""
    strategy, (adapter, *_), _, kwargs = case
    factor = 1.0 if strategy in ("cat", "linear_rescaled") else (math.sqrt(w) + math.sqrt(1 - w)) ** 2
    factor /= 4 if strategy == "ties" else 1
    one = dense(compose(strategy, [adapter], [1.0], **kwargs))
    twins = dense(compose(strategy, [adapter, replace(adapter, id=-1)], [w, 1 - w], **kwargs))
    expected = {module: factor * delta for module, delta in one.items()}
    assert_same(twins, expected, rtol=1e-4, atol=1e-5)  # terms of float32 may cancel


@properties
@given(cases())
def test_a_weight_of_zero_and_a_missing_adapter_are_the_same_where_masks_see_one_adapter(case):
    strategy, adapters, weights, kwargs = case
    if strategy == "ties":  # signs are elected by all, whatever they weigh
        return
    with_zero = dense(compose(strategy, adapters, [0.0, *weights[1:]], **kwargs))
    without = dense(compose(strategy, adapters[1:], weights[1:], **kwargs))
    for module, delta in with_zero.items():
        torch.testing.assert_close(delta, without.get(module, torch.zeros_like(delta)), rtol=1e-5, atol=1e-6)


@properties
@given(cases(tuple(strategy for strategy in STRATEGIES if strategy != "cat")))
def test_norm_ratio_and_cosine_equal_those_of_dense_changes(case):
    strategy, adapters, weights, kwargs = case
    composed, exact = compose(strategy, adapters, weights, **kwargs), compose("cat", adapters, weights)
    a = torch.cat([delta.flatten() for _, delta in sorted(dense(composed).items())])
    b = torch.cat([delta.flatten() for _, delta in sorted(dense(exact).items())])
    measured = fidelity(mixed(strategy, adapters, weights, **kwargs), mixed("cat", adapters, weights))
    if a.norm() == 0:
        assert measured is None
        return
    ratio, cosine = measured
    # Of the squares: they are sums of inner products, which may cancel.
    assert ratio**2 == pytest.approx(float(a.norm() / b.norm()) ** 2, rel=2e-5, abs=1e-6)
    assert cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-5)


@properties
@given(cases(("linear_rescaled",)))
def test_rescaled_it_is_linear_with_the_norm_of_the_exact_sum_in_each_module(case):
    _, adapters, weights, _ = case
    rescaled, linear, exact = (
        dense(compose(strategy, adapters, weights)) for strategy in ("linear_rescaled", "linear", "cat")
    )
    expected = {module: delta * exact[module].norm() / delta.norm() for module, delta in linear.items()}
    assert_same(rescaled, expected, rtol=1e-3, atol=1e-4)  # norms are of sums that may nearly cancel


def test_a_change_of_zero_has_no_ratio_and_no_cosine():
    adapter = random_adapter(SHAPES, seed=1)
    twin = replace(adapter, id=-1)
    cancelled = mixed("cat", [adapter, twin], [0.5, -0.5])
    assert fidelity(mixed("linear", [adapter, twin], [0.5, 0.5]), cancelled) is None
    assert fidelity(mixed("linear", [adapter], [0.0]), mixed("cat", [adapter], [1.0])) is None


def test_negative_weights_subtract():
    adapters = [random_adapter(SHAPES, seed=1), random_adapter(SHAPES, seed=2)]
    for strategy in ("linear", "cat"):
        one = dense(compose(strategy, adapters[:1], [0.7]))
        minus = dense(compose(strategy, adapters[:1], [-0.7]))
        assert_same(minus, {module: -delta for module, delta in one.items()})


def test_equal_magnitudes_are_kept_from_the_first():
    two = torch.tensor([[1.0, -1.0, 2.0, 1.0, 0.5], [0.5, 3.0, -0.5, -4.0, 0.1]])
    for dtype in (torch.float32, torch.bfloat16):
        assert are_largest(two.to(dtype), 0.6).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0]]
    assert are_largest(torch.ones(1, 3), 0.3).int().tolist() == [[0, 0, 0]]  # int(0.9) elements


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_eight_booleans_are_kept_in_a_byte(flags):
    kept = torch.tensor(flags)[None]
    packed = pack_bits(kept)
    assert packed.nbytes == math.ceil(len(flags) / 8)
    assert torch.equal(unpack_bits(packed, kept.shape, torch.bool), kept)


def test_of_a_masked_adapter_only_its_mask_takes_memory():
    adapter = random_adapter({"a": (80, 40), "b": (24, 40)}, seed=1).packed()
    (masked,) = mask_all("ties", [adapter], density=0.5)
    assert masked.stored is adapter.stored
    assert masked.mask.nbytes * 32 == nbytes(adapter.stored)  # a bit for each float32


def test_an_adapter_equals_another_that_is_masked_alike_from_the_same_file():
    one, same, changed = (random_adapter(SHAPES, seed=1).packed() for _ in range(3))
    changed = replace(changed, sha256="f" * 64)
    (masked,), (again,) = (mask_all("ties", [each], density=0.5) for each in (one, same))
    assert (one, masked) == (same, again)
    assert len({one, same, masked, again, changed}) == 3


def test_merging_bfloat16_adapters_happens_in_float32():
    exact = random_adapter(SHAPES, seed=1)
    stored = {module: Factors(f.A.bfloat16(), f.B.bfloat16()) for module, f in exact.factors.items()}
    widened = {module: Factors(f.A.float(), f.B.float()) for module, f in stored.items()}
    for strategy in STRATEGIES:
        from_stored = compose(strategy, [replace(exact, factors=stored)], [0.3], density=0.5)
        from_widened = compose(strategy, [replace(exact, factors=widened)], [0.3], density=0.5)
        assert all(torch.equal(from_stored[m].A, from_widened[m].A) for m in SHAPES)
        assert from_stored["a"].A.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "svd"}, "strategy 'svd' is not one of linear, cat"),
        ({"weights": [0.5]}, "weights must be one finite number an adapter"),
        ({"weights": [0.5, math.nan]}, "weights must be one finite number an adapter"),
        ({"weights": [0.5, math.inf]}, "weights must be one finite number an adapter"),
        ({"density": 0.0}, "density must be above 0 and at most 1"),
        ({"density": 1.1}, "density must be above 0 and at most 1"),
        ({"density": math.nan}, "density must be above 0 and at most 1"),
    ],
)
def test_bad_settings_are_refused_by_name(change, message):
    call = {"strategy": "ties", "weights": [0.5, 0.5], "density": 0.5, **change}
    with pytest.raises(UsageError, match=message):
        compose(call["strategy"], [random_adapter(SHAPES)] * 2, call["weights"], density=call["density"])


def peft_merge(model, adapters, weights, strategy, density, rslora=False):
    """PEFT's merge: module -> its factors, with the merged adapter's scaling in A."""
    with peft_twin(model, adapters, rslora) as wrapped, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density .* no pruning")
        names = [str(number) for number in range(len(adapters))]
        wrapped.add_weighted_adapter(names, weights, "merged", combination_type=strategy, density=density)
        return merged_factors(wrapped, "merged", {module for adapter in adapters for module in adapter.factors})


def merged_factors(wrapped, name, modules):
    layers = {module: wrapped.get_base_model().get_submodule(module) for module in modules}
    return {
        module: Factors(layer.lora_A[name].weight.data * layer.scaling[name], layer.lora_B[name].weight.data)
        for module, layer in layers.items()
    }


def assert_factors_equal(got, expected):
    assert got.keys() == expected.keys()
    for module in expected:
        torch.testing.assert_close(got[module].A, expected[module].A, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(got[module].B, expected[module].B, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strategy", PEFTS)
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_factors_equal_pefts(strategy, density):
    model = tiny_llama()
    adapters = [random_adapter(linear_shapes(model, "q_proj", "v_proj"), seed=i, scaling=i) for i in (1, 2, 3)]
    weights = [0.6, 0.3, -0.1]
    expected = peft_merge(model, adapters, weights, strategy, density)
    assert_factors_equal(compose(strategy, adapters, weights, density=density), expected)


@pytest.mark.parametrize("strategy", PEFTS)
def test_factors_equal_pefts_where_adapters_target_different_modules(strategy):
    model = tiny_llama()
    adapters = [
        random_adapter(linear_shapes(model, *names), seed=seed)
        for seed, names in enumerate([("q_proj", "v_proj"), ("q_proj", "up_proj"), ("v_proj",)])
    ]
    expected = peft_merge(model, adapters, [0.5, 0.3, 0.2], strategy, 0.4)
    got = compose(strategy, adapters, [0.5, 0.3, 0.2], density=0.4)
    for module in got:  # PEFT's cat leaves rows of zeros where an adapter lacks the module
        torch.testing.assert_close(got[module].B @ got[module].A, expected[module].B @ expected[module].A)


def test_differs_from_peft_in_rslora_which_it_scales_twice():
    model = tiny_llama()
    adapters = [random_adapter(linear_shapes(model, "q_proj"), seed=i, rank=4) for i in (1, 2)]
    peft = dense(peft_merge(model, adapters, [0.6, 0.4], "cat", None, rslora=True))
    # The merged adapter (rank 8) has scaling sqrt(8) again, on top of its sources' own.
    assert_same(peft, {m: math.sqrt(8) * delta for m, delta in dense(compose("cat", adapters, [0.6, 0.4])).items()})


def test_differs_from_peft_in_a_short_weights_list_which_it_cuts():
    model = tiny_llama()
    adapters = [random_adapter(linear_shapes(model, "q_proj"), seed=i) for i in (1, 2)]
    peft = peft_merge(model, adapters, [0.6], "linear", None)
    assert_factors_equal(compose("linear", adapters[:1], [0.6]), peft)  # the second adapter is lost without a word
    with pytest.raises(UsageError, match="weights"):
        compose("linear", adapters, [0.6])


def test_differs_from_peft_in_a_single_adapter_which_it_never_prunes():
    model = tiny_llama()
    adapters = [random_adapter(linear_shapes(model, "q_proj"), seed=1)]
    peft = peft_merge(model, adapters, [1.0], "magnitude_prune", 0.5)
    assert_factors_equal(compose("linear", adapters, [1.0]), peft)
    pruned = compose("magnitude_prune", adapters, [1.0], density=0.5)
    assert all((f.A == 0).float().mean() == 0.5 for f in pruned.values())


def test_differs_from_peft_in_mixed_ranks_which_it_refuses():
    model = tiny_llama()
    adapters = [random_adapter(linear_shapes(model, "q_proj"), seed=i, rank=i) for i in (2, 4)]
    with pytest.raises(ValueError, match="same r value"):
        peft_merge(model, adapters, [0.6, 0.4], "linear", None)
    padded = compose("linear", adapters, [0.6, 0.4])
    assert {f.A.shape[0] for f in padded.values()} == {4}


@pytest.mark.model
def test_equals_peft_on_the_real_base_model(smollm2):
    """Factors of every module, and the logits of a text: PEFT's merges against ours merged into the weights."""
    model = smollm2.model
    text = smollm2.tokenizer("Where would a heron look for its breakfast?", return_tensors="pt").input_ids
    shapes = linear_shapes(model, "q_proj", "v_proj")
    adapters = [random_adapter(shapes, seed=i, rank=8, size=0.04) for i in (1, 2, 3, 4)]
    weights = [0.45, 0.3, 0.15, 0.1]
    base, peft_logits, peft_factors = model(text).logits, {}, {}
    with peft_twin(model, adapters) as wrapped:
        for strategy in PEFTS:
            wrapped.add_weighted_adapter(list("0123"), weights, strategy, combination_type=strategy, density=0.5)
            wrapped.set_adapter(strategy)
            peft_logits[strategy] = wrapped(text).logits
            peft_factors[strategy] = merged_factors(wrapped, strategy, shapes)
    for strategy in PEFTS:
        composed = compose(strategy, adapters, weights, density=0.5)
        assert_factors_equal(composed, peft_factors[strategy])
        with merged(model, composed):
            logits = model(text).logits
        torch.testing.assert_close(logits, peft_logits[strategy], rtol=1e-5, atol=2e-4)
        assert (logits - base).abs().max() > 1  # the adapters matter
    assert torch.equal(model(text).logits, base)

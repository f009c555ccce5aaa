"""The same answers on GPUs as on the processor: mixes in one pass, generation, a model spread over two."""

import pytest
import torch

from loracomp.composition.layers import AdapterStack
from loracomp.composition.strategies import STRATEGIES, PackedAdapter, gated
from loracomp.engine.predictor import Predictor
from loracomp.model.loading import load_base_model, resolve_device
from loracomp.model.tokens import pad_right
from loracomp.records import Composition, Request
from model_fixtures import as_base, letter_tokenizer, linear_shapes, mask_all, random_adapter, tiny_llama

pytestmark = pytest.mark.cuda
a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
TOKENS = [[5, 9, 30, 7], [8, 2], [40, 41, 42]]


@pytest.fixture(scope="module")
def adapters():
    shapes = linear_shapes(tiny_llama(), "q_proj", "v_proj", "down_proj")
    return [random_adapter(shapes, rank=rank, seed=number) for number, rank in enumerate((2, 4, 8))]


def logits(model, mixes, shared):
    input_ids, attention_mask = pad_right(TOKENS, model.device)
    with torch.no_grad(), AdapterStack(model, mixes).composed(mixes, shared=shared):
        return model(input_ids=input_ids, attention_mask=attention_mask).logits.cpu()


@a_gpu
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pass_equals_the_processors(adapters, strategy, shared):
    def passed(device: str) -> torch.Tensor:
        on_device = [moved(adapter.packed(), device) for adapter in adapters]
        masked = mask_all(strategy, on_device, density=0.5)
        mixes = [gated(strategy, masked, weights) for weights in ([0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0])]
        return logits(tiny_llama().to(device), mixes, shared)

    torch.testing.assert_close(passed("cuda"), passed("cpu"), rtol=1e-3, atol=1e-3)


@a_gpu
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("strategy", ["cat", "linear", "ties", "magnitude_prune"])
def test_in_bfloat16_a_pass_is_within_the_bound_that_holds_on_the_processor(adapters, strategy, shared):
    """See tests/composition/test_layers.py: 4 % of the norm of the same rounded weights' logits in float32."""

    def passed(model) -> torch.Tensor:
        on_device = [moved(adapter.packed(), model.device) for adapter in adapters]
        masked = mask_all(strategy, on_device, density=0.5)
        mixes = [gated(strategy, masked, weights) for weights in ([0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0])]
        return logits(model, mixes, shared).float()

    narrow = tiny_llama().bfloat16()
    expected = passed(tiny_llama().bfloat16().float())
    assert (passed(narrow.to("cuda")) - expected).norm() <= 0.04 * expected.norm()


def moved(adapter: PackedAdapter, device: str) -> PackedAdapter:
    from dataclasses import replace

    from loracomp.composition.blocks import move

    return replace(adapter, stored=move(adapter.stored, device))


@a_gpu
def test_scored_and_generated_answers_equal_the_processors(adapters):
    assert answers("cuda", adapters) == answers("cpu", adapters)


def answers(device, adapters):
    base = as_base(tiny_llama().to(device), letter_tokenizer())
    return [(each.output, each.choice_index) for each in ask(base, adapters)]


def ask(base, adapters):
    known = {adapter.id: adapter for adapter in adapters}
    mix = Composition((0, 2), (adapters[0].sha256, adapters[2].sha256), (0.6, 0.4), "cat")
    requests = [
        Request("some text", ("aa", "bcd"), None, composition=mix),
        Request("other text", None, 6, composition=mix),
        Request("other text", None, 6, composition=Composition()),
    ]
    return Predictor(base).predict(requests, lambda ids: [known[id_] for id_ in ids])


@two_gpus
def test_a_model_spread_over_gpus_answers_as_one_on_the_processor(adapters, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    device = resolve_device("auto", "balanced")
    spread = load_base_model(str(tmp_path), device=device, device_map="balanced", dtype="float32", cache_dir=tmp_path)
    assert len(set(spread.model.hf_device_map.values())) > 1
    found = [(each.output, each.choice_index) for each in ask(spread, adapters)]
    assert found == answers("cpu", adapters)

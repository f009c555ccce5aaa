"""Passes on a device that is not the processor: no tensor stays behind, and the host waits once for each pass.

The device is torch's "meta", whose tensors have a shape but no numbers. What reads a number from it would make the host
wait for a real device. So these tests need no GPU; test_gpu.py has those that do.
"""

import traceback
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import loracomp
from loracomp.composition.strategies import STRATEGIES
from loracomp.engine.predictor import Predictor
from loracomp.records import Composition, Prediction, Request
from model_fixtures import as_base, letter_tokenizer, linear_shapes, random_adapter, tiny_llama

THERE, HERE = torch.device("meta"), torch.device("cpu")
PACKAGE = loracomp.__path__[0]
READING = ("_local_scalar_dense", "item", "is_nonzero")
MASKING = "_ignore_causal_mask_sdpa"
"""A function of transformers that asks in each pass of generation, also of the base model alone, for one number."""


class Device(TorchDispatchMode):
    """Counts what is read from the device, by the function that reads, and gives 2 for each number.

    An operation on tensors from here and from there is an error, as on a GPU.
    """

    def __init__(self):
        super().__init__()
        self.reads = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        leaves, _ = tree_flatten((args, kwargs or {}))
        tensors = [each for each in leaves if isinstance(each, torch.Tensor)]
        there = [each for each in tensors if each.device == THERE]
        if there and operation.overloadpacket.__name__ in READING:
            return self._read(2)
        if there and any(isinstance(each, torch.device) and each == HERE for each in leaves):
            return self._read(torch.full(there[0].shape, 2, dtype=there[0].dtype))
        moved = operation.overloadpacket.__name__ in ("copy_", "to")
        if there and not moved and any(each.device == HERE and each.dim() for each in tensors):
            raise AssertionError(f"{operation} mixes devices")
        return operation(*args, **(kwargs or {}))

    def _read(self, value):
        stack = traceback.extract_stack()
        ours = [frame.name for frame in stack if frame.filename.startswith(PACKAGE)]
        self.reads[MASKING if MASKING in [frame.name for frame in stack] else ours[-1]] += 1
        return value


@pytest.fixture(scope="module")
def adapters():
    shapes = linear_shapes(tiny_llama(), "q_proj", "v_proj", "lm_head") | {"model.embed_tokens": (32, 77)}
    return [random_adapter(shapes, seed=number, rank=2 + number) for number in range(3)]


@pytest.fixture(scope="module")
def base():
    model = tiny_llama().to(THERE)
    model.generation_config.eos_token_id = None
    return as_base(model, letter_tokenizer())


def reads(base, adapters, request):
    """How often results are read from the device to answer a request, under each strategy and under the base model
    alone."""
    digests, weights = tuple(each.sha256 for each in adapters), (0.5, 0.3, 0.2)
    mixes = [Composition((0, 1, 2), digests, weights, strategy, density=0.5) for strategy in STRATEGIES]
    predictor = Predictor(base)
    asked = [replace(request, composition=mix) for mix in (*mixes, Composition())]
    with Device() as device:
        answers = predictor.predict(asked, lambda ids: [adapters[id_] for id_ in ids])
    assert [type(each) for each in answers] == [Prediction] * len(asked)
    return dict(device.reads)


SCORED, WRITTEN = Request("some text", ("aa", "bcd", "b"), None), Request("some text", None, max_new_tokens=3)


def test_scores_are_read_once_for_all_rows_of_a_pass(base, adapters):
    assert reads(base, adapters, SCORED) == {"_score": 1}


def test_a_step_of_generation_reads_once_for_all_texts(base, adapters):
    assert reads(base, adapters, WRITTEN) == {"_take": 3, MASKING: 3}


def test_drawing_tokens_reads_once_more(base, adapters):
    assert reads(base, adapters, replace(WRITTEN, temperature=0.5)) == {"_take": 6, MASKING: 3}

"""Odd adapter folders: every setting with every kind of JSON, odd tensors, lying headers, strange files.

Each folder is either taken or refused by a RefusedError in little time; nothing else may come out.
"""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load, save

from loracomp.errors import RefusedError
from loracomp.records import KnownBaseModel
from loracomp.registry import adapter_checks
from loracomp.registry.adapter_checks import HARMLESS, AdapterFile, read_adapter
from loracomp.registry.adapter_files import CONFIG, TRAINING, WEIGHTS
from loracomp.registry.adapter_store import stage_adapter
from registry_data import registered, tiny_description, write_adapter

TINY = KnownBaseModel("tiny", "made-up/tiny", None, "a" * 64, tiny_description().modules)
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
SLOW = "(" * 12 + "a|" + "(.*)*" + ")*" * 12 + "x"

SETTINGS = sorted({*HARMLESS.split(), *LoraConfig().to_dict(), "unknown"})
VALUES = [
    None, True, False, 0, 1, -1, 4, 2**31, 10**30, 0.5, -0.0, 1e-320, 1e308, "", "no", "CAUSAL_LM", "LORA", "q_proj",
    "(", "[", "*", "a{99999999999999999999}", "(?P<a>x)(?P<a>y)", "(" * 5000 + ")" * 5000, "all-linear", "x" * 100_000,
    [], [None], ["q_proj"], ["q_proj", 1], [[["q_proj"]]], {}, {"q_proj": 4}, {"q_proj": None}, {"(": 4}, {"": {}},
    "\x1b[31mred", "\u202e", [0], [0, 1], [0.5], [True],
]  # fmt: skip
TEXTS = {
    "nested": "[" * 100_000,
    "nested and closed": '{"r":' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested less": '{"lora_dropout":' + "[" * 600 + "]" * 600 + "}",
    "not a number": '{"lora_dropout": NaN}',
    "infinite": '{"lora_dropout": 1e400}',
    "a long number": '{"lora_dropout": ' + "9" * 5000 + "}",
    "half a surrogate pair": r'{"revision": "\ud800"}',
    "NUL": r'{"revision": "a\u0000b"}',
    "not UTF-8": b'{"revision": "\xff"}',
    "a byte order mark": b'\xef\xbb\xbf{"r": 4}',
    "UTF-16": '{"r": 4}'.encode("utf-16"),
    "nothing": "",
    "no object": '"text"',
    "cut off": '{"r": 4',
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "sound"
    write_adapter(path)
    return path


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    """A sound PEFT folder, to be spoilt."""
    return Path(shutil.copytree(sound, tmp_path / "adapter"))


def read(folder: Path) -> AdapterFile | None:
    """The adapter, or None if it is refused; any other exception fails the test."""
    try:
        return read_adapter(folder, TINY)
    except RefusedError as error:
        assert str(folder) in str(error) and len(str(error)) < 2000
        return None


def spoil(path: Path, text: str | bytes) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_any_kind_is_refused_or_changes_nothing_unnoticed(folder, name):
    config = json.loads((folder / CONFIG).read_text())
    plain = read_adapter(folder, TINY)
    for value in VALUES:
        spoil(folder / CONFIG, json.dumps(config | {name: value}))
        if taken := read(folder):
            assert (taken.rank, taken.target_modules) == (plain.rank, plain.target_modules), value
            if (taken.scaling, taken.digest) != (plain.scaling, plain.digest):
                assert name in ("lora_alpha", "use_rslora", "alpha_pattern"), value
                assert (
                    type(value) in {"lora_alpha": (int, float), "use_rslora": (bool,), "alpha_pattern": (dict,)}[name]
                )


@pytest.mark.parametrize("file", [CONFIG, TRAINING])
@pytest.mark.parametrize("text", TEXTS)
def test_odd_json_is_refused(folder, file, text):
    spoil(folder / file, TEXTS[text])
    assert read(folder) is None


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_would_take_years_is_refused_by_name(folder, name, monkeypatch):
    monkeypatch.setattr(adapter_checks, "PATTERNS_S", 0.1)
    value = {SLOW: 4} if name.endswith("_pattern") else SLOW
    spoil(folder / CONFIG, json.dumps(json.loads((folder / CONFIG).read_text()) | {name: value}))
    with pytest.raises(RefusedError, match=rf"{name} .* takes longer than 0.1 s to match"):
        read_adapter(folder, TINY)


TYPES = [
    torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.complex64,
]  # fmt: skip
SHAPES = [(), (0,), (4,), (128,), (4, 0), (0, 32), (4, 32, 1), (1, 4, 32), (32, 4), (4, 33), (128, 1), (1, 128)]
KEYS = [
    "", ".", "base_model.model.", "base_model.model..lora_A.weight", f"{Q0}.lora_A", f"{Q0}.lora_A.default.weight",
    f"{Q0}.lora_C.weight", f"{Q0}.lora_A.weight.lora_A.weight", f"{Q0}.lora_A.weight\n", f"\n{Q0}.lora_A.weight",
    f"{Q0}\x1b[2J.lora_A.weight", "base_model.model.lm_head.base_layer.weight.x", "é" * 1000,
]  # fmt: skip


def test_tensors_of_any_type_and_shape_are_refused(folder):
    tensors = load((folder / WEIGHTS).read_bytes())
    key = f"{Q0}.lora_A.weight"
    odd = [torch.ones(shape) for shape in SHAPES]
    odd += [torch.full((4, 32), value) for value in (float("nan"), float("inf"), -float("inf"), 3e38)]
    odd += [torch.ones(4, 32).to(dtype) for dtype in TYPES]
    for tensor in odd:
        spoil(folder / WEIGHTS, save(tensors | {key: tensor}))
        assert read(folder) is None, (tensor.dtype, tensor.shape)


def test_denormal_and_negative_zero_factors_count_as_numbers(folder):
    tensors = load((folder / WEIGHTS).read_bytes())
    spoil(folder / WEIGHTS, save(tensors | {f"{Q0}.lora_A.weight": torch.full((4, 32), 1e-45)}))
    assert read(folder)
    spoil(folder / WEIGHTS, save({name: torch.full_like(each, -0.0) for name, each in tensors.items()}))
    assert read(folder) is None


@pytest.mark.parametrize("key", KEYS)
def test_tensors_of_strange_names_are_refused(folder, key):
    spoil(folder / WEIGHTS, save(load((folder / WEIGHTS).read_bytes()) | {key: torch.ones(4, 32)}))
    assert read(folder) is None


@pytest.mark.parametrize("factor", "AB")
def test_two_factors_of_one_module_are_refused(folder, factor):
    tensors = load((folder / WEIGHTS).read_bytes())
    other = {f"{Q0}.lora_embedding_{factor}": 2 * tensors[f"{Q0}.lora_{factor}.weight"]}
    spoil(folder / WEIGHTS, save(tensors | other))
    with pytest.raises(RefusedError, match=f"two factors {factor} of model.layers.0.self_attn.q_proj"):
        read_adapter(folder, TINY)


def header(text: str | bytes, size: int | None = None, rest: bytes = b"\0" * 512) -> bytes:
    content = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(content) if size is None else size) + content + rest


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> str:
    return json.dumps({f"{Q0}.lora_A.weight": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}})


HEADERS = [
    header("{}"),
    header("{}", size=2**63),
    header("{}", size=2**64 - 1),
    header("{}", size=99_999_999),
    header("[]"),
    header("null"),
    header("{" + '"a":{' * 50_000),
    header("[" * 100_000),
    header(b"\xff\xfe"),
    header(entry([4, 32], 0, 512)[:-1] + "," + entry([4, 32], 0, 512)[1:]),  # the same name twice
    header(entry([4, 32], 0, 2**62)),
    header(entry([4, 32], -8, 504)),
    header(entry([4, 32], 512, 0)),
    header(entry([2**32, 2**32], 0, 512)),
    header(entry([-4, -32], 0, 512)),
    header(entry([4, 32], 0, 512, "F7")),
    header(entry([4, 32], 0, 512, "BOOL")),
    header(entry([4, 32], 0, 511)),
    header(entry([4, 32], 1, 513), rest=b"\0" * 513),
    header(entry([4, 32], 0, 512), rest=b""),
    header(entry([4, 32], 0, 512), rest=b"\0" * 513),
    header('{"__metadata__": {"a": 1}}'),
    header('{"__metadata__": {"a": "' + "x" * 1_000_000 + '"}}'),
    header('{"' + "x" * 1_000_000 + '": {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 512]}}'),
]


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_headers_that_lie_are_refused(folder, number):
    spoil(folder / WEIGHTS, HEADERS[number])
    assert read(folder) is None


def test_a_file_cut_off_anywhere_is_refused(folder):
    weights = (folder / WEIGHTS).read_bytes()
    for length in [*range(20), *range(20, len(weights), 101), len(weights) - 1]:
        spoil(folder / WEIGHTS, weights[:length])
        assert read(folder) is None, length


def a_folder(path: Path) -> None:
    path.mkdir()


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, TRAINING])
@pytest.mark.parametrize("put", [a_folder, a_loop, a_pipe, a_device, a_dangling_link])
def test_what_is_no_file_is_refused(folder, file, put):
    (folder / file).unlink(missing_ok=True)
    put(folder / file)
    taken = read(folder)
    assert taken is None or file == TRAINING


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, TRAINING])
def test_a_file_that_cannot_be_read_is_refused(folder, file, monkeypatch):
    spoil(folder / TRAINING, "{}")
    actual = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == file:
            raise PermissionError(13, "Permission denied", str(path))
        return actual(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert read(folder) is None


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, TRAINING])
def test_a_sparse_file_of_any_size_is_refused_unread(folder, file):
    (folder / file).touch()
    os.truncate(folder / file, 300 * 2**30)
    with pytest.raises(RefusedError, match=rf"{file} has 322,122,547,200 bytes; at most [\d,]+ are read"):
        read_adapter(folder, TINY)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_file_that_memory_is_too_small_for_is_refused(folder, file, monkeypatch):
    actual = Path.read_bytes

    def fill(path: Path) -> bytes:
        if path.name == file:
            raise MemoryError
        return actual(path)

    monkeypatch.setattr(Path, "read_bytes", fill)
    with pytest.raises(RefusedError, match=rf"{file} has [\d,]+ bytes, which is more than this machine has free"):
        read_adapter(folder, TINY)


def test_a_link_to_a_sound_folder_is_taken(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert read(tmp_path / "link")


def test_what_is_taken_can_be_stored(connection, folder):
    """Tries the odd values that PEFT's other settings may have."""
    registered(connection, "piqa")
    config = json.loads((folder / CONFIG).read_text())
    for value in VALUES:
        spoil(folder / CONFIG, json.dumps(config | {"loftq_config": value}))
        spoil(folder / TRAINING, json.dumps({"note": value}))
        assert stage_adapter(connection, folder, task="piqa")


def test_the_norm_of_a_change_does_not_need_a_matrix_of_rank_times_rank(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for rank, d_out, d_in in ((3, 8, 16), (30, 8, 16), (11, 8, 16), (12, 16, 8)):
        A, B = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
        assert adapter_checks._norm(A.double(), B.double()) == pytest.approx(float((B.double() @ A.double()).norm()))
    rank = 60_000  # a matrix of rank times rank would take 29 GB
    A, B = torch.ones(rank, 2, dtype=torch.float64), torch.ones(2, rank, dtype=torch.float64)
    assert adapter_checks._norm(A, B) == pytest.approx(2 * rank)

"""Files of libraries with any change: of a byte, of a value in their JSON, of an array. Each is read or refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.numpy import save

from loracomp.errors import RefusedError
from loracomp.records import KnownBaseModel
from loracomp.registry.adapter_checks import read_adapter
from loracomp.registry.adapter_files import CONFIG, TRAINING, WEIGHTS
from loracomp.registry.library_files import MANIFEST, read_examples_file, read_manifest
from loracomp.registry.measurement_files import measurements_path, read_measurements
from registry_data import tiny_description, write_adapter

TINY = KnownBaseModel("tiny", "made-up/tiny", None, "a" * 64, tiny_description().modules)
MODEL = {"name": "tiny", "source": "made-up/tiny", "revision": None, "fingerprint": "a" * 64}
FILES: dict[str, Any] = {
    "library": {
        "base_model": MODEL,
        "encoder": MODEL | {"identity": "d" * 64, "dimensions": 4, "input_version": 3},
        "tasks": {"tea": {"family": "drinks", "description": "Is it tea?"}},
    },
    "examples": {
        "source_refs": ["tea/train#0", "tea/train#1"],
        "hash_version": 1,
        "encoder": "a" * 64,
        "input_version": 3,
        "input_digest": "b" * 64,
    },
    "measurements": {"base_model": "a" * 64, "normalization": "none", "adapters": {"tea": "c" * 64}},
    "config": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM").to_dict()
    | {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 4}, "layers_to_transform": None},
    "training": {"tasks_seen": ["tea"], "kept_aside": ["d" * 64], "base_model": MODEL, "steps": 100},
}
SCORES = np.array([[[-1, -2, np.nan], [-3, -1, np.nan]], [[-1, -2, -3], [np.nan] * 3]], np.float32)
HASHES = np.arange(64, dtype=np.uint8).reshape(2, 32)
ARRAYS: dict[str, dict[str, Any]] = {
    "examples": {"embeddings": np.eye(2, 4, dtype=np.float16), "content_hashes": HASHES},
    "measurements": {
        "content_hashes": HASHES,
        "digests": HASHES,
        "labels": np.array([1, 2], np.uint8),
        "scores": SCORES,
    },
}
ODD_JSON = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        10**30,
        0.5,
        "",
        "\0",
        "\ud800",
        "../../x",
        "x" * 5000,
        [],
        [None],
        [[1]],
        {},
        {"": {}},
        {"a/..": 1},
    ]
)
ODD_TEXTS = ["[" * 100_000, '{"tasks":' * 50_000, "NaN", "\ufeff{}", "", "{", '"x"', '{"base_model": 1e999}']
NUMBERS = st.sampled_from([0, 1, -1, 2, 9, 0.5, np.nan, np.inf, -np.inf, 1e30, 1e-30, 6e4])
TYPES = st.sampled_from([np.float16, np.float32, np.float64, np.uint8, np.int8, np.int64, np.bool_])
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 32]), max_size=4)
READERS: dict[str, Callable[[Path], object]] = {
    "library": read_manifest,
    "examples": lambda folder: read_examples_file(folder, "tea").embeddings,
    "measurements": lambda folder: gains(measurements_path(folder, "tea")),
    "config": lambda folder: read_adapter(folder / "adapters/tea", TINY),
    "training": lambda folder: read_adapter(folder / "adapters/tea", TINY),
}
PLACES = {
    "library": MANIFEST,
    "examples": "examples/tea.safetensors",
    "measurements": "measurements/tea.safetensors",
    "config": f"adapters/tea/{CONFIG}",
    "training": f"adapters/tea/{TRAINING}",
}


def gains(path: Path) -> object:
    found = read_measurements(path)
    assert found is not None
    return found.gains()


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside a JSON value."""
    yield before
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(inner, (*before, key))


def changed(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copied = value.copy()
    copied[path[0]] = changed(value[path[0]], path[1:], odd)
    return copied


def written(kind: str, about: str, arrays: dict[str, Any]) -> bytes:
    return save(arrays, {kind: about}) if arrays else about.encode(errors="surrogatepass")


@st.composite
def odd_file(draw: st.DrawFn, kind: str) -> bytes:
    """The bytes of a file that was sound before one change."""
    about, arrays = FILES[kind], ARRAYS.get(kind, {})
    match draw(st.sampled_from(["json", "text", "bytes", "array", "lacks an array"])):
        case "json":
            way = draw(st.sampled_from(list(paths(about))))
            return written(kind, json.dumps(changed(about, way, draw(ODD_JSON))), arrays)
        case "text":
            return written(kind, draw(st.sampled_from(ODD_TEXTS)), arrays)
        case "array" if arrays:
            shape, name = draw(SHAPES), draw(st.sampled_from(sorted(arrays)))
            shape = draw(st.sampled_from([shape, list(arrays[name].shape)]))
            numbers = draw(st.lists(NUMBERS, min_size=1, max_size=4))
            with np.errstate(all="ignore"):
                array = np.resize(np.array(numbers), shape).astype(draw(TYPES))
            return written(kind, json.dumps(about), arrays | {name: array})
        case "lacks an array" if arrays:
            left = draw(st.sampled_from(sorted(arrays)))
            return written(kind, json.dumps(about), {name: arrays[name] for name in arrays if name != left})
    sound = written(kind, json.dumps(about), arrays)
    start = draw(st.integers(0, len(sound)))
    end = draw(st.one_of(st.just(len(sound)), st.integers(start, min(start + 8, len(sound)))))
    return sound[:start] + draw(st.binary(max_size=4)) + sound[end:]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound file of each kind."""
    folder = tmp_path_factory.mktemp("library")
    write_adapter(folder / "adapters/tea")
    for kind, place in PLACES.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_bytes(written(kind, json.dumps(FILES[kind]), ARRAYS.get(kind, {})))
    assert (folder / "adapters/tea" / WEIGHTS).is_file()
    return folder


@pytest.mark.parametrize("kind", FILES)
def test_a_sound_file_is_read(sound: Path, kind: str) -> None:
    READERS[kind](sound)


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_any_change_is_read_or_refused(sound: Path, kind: str, data: st.DataObject) -> None:
    file = sound / PLACES[kind]
    before = file.read_bytes()
    file.write_bytes(data.draw(odd_file(kind)))
    try:
        found: Any = READERS[kind](sound)
    except RefusedError as error:
        assert str(file.parent) in str(error) and len(str(error)) < 2000
        return
    finally:
        file.write_bytes(before)
    if kind == "examples":
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    if kind == "measurements":
        assert not np.isinf([found.base_scores.sum(), np.nansum(found.gains)]).any()


def test_an_example_that_is_measured_twice_is_named(tmp_path: Path) -> None:
    file = measurements_path(tmp_path, "tea")
    file.parent.mkdir()
    arrays = ARRAYS["measurements"] | {"content_hashes": HASHES[[1, 1]]}
    file.write_bytes(written("measurements", json.dumps(FILES["measurements"]), arrays))
    with pytest.raises(RefusedError, match=rf"tea.safetensors: .* {HASHES[1].tobytes().hex()} is measured 2 times"):
        read_measurements(file)

"""Laws of the doors for any input: what is asked for, or one line; 200 examples each, 10,000 in the slow tests."""

import dataclasses
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.data.images import encoded, photo
from vit_jax import config
from vit_jax.command import UserError
from vit_jax.config.schema import schema_of, value_of
from vit_jax.data import decoding
from vit_jax.data.sources import Dataset
from vit_jax.pretrained.files import open_arrays
from vit_jax.pretrained.fit import resize

FILES = [encoded(photo(9, 7), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO")]
GIVEN = config.load("configs/digits.py")
TREE = config.to_dict(GIVEN)
KEYS = sorted(key for key in schema_of(GIVEN) if key not in ("plugins", "model.name", "task.name"))


def weights() -> list[bytes]:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float16([1, 2])}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return [save(arrays), file.getvalue()]


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """One of the files with some bytes changed, left out, doubled or put in."""
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(("change", "cut", "insert", "remove", "double"))):
            case "change" if at < len(content):
                content[at] = draw(st.integers(0, 255))
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = draw(st.binary(max_size=9))
            case "remove":
                del content[at : at + draw(st.integers(1, 9))]
            case "double":
                content[at:at] = content[at : at + 9]
    return bytes(content)


def image_or_reason(content: bytes) -> None:
    """Whole pixels, or `BrokenImage`; the header tells their shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = decoding.decode(content, 0)
        except decoding.BrokenImage as fault:
            assert str(fault)
            return
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size
        assert decoding.decode(content, 3).shape == (*pixels.shape[:2], 3)


def arrays_or_reason(content: bytes) -> None:
    """Arrays of the shapes that are told, or `UserError`."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "x"
        path.write_bytes(content)
        try:
            arrays = open_arrays(path)
            for name in arrays:
                assert arrays[name].shape == arrays.shapes[name]
        except UserError as mistake:
            assert str(path) in str(mistake)


def value_or_reason(given: tuple[str, str]) -> None:
    """A flag gives a configuration that survives JSON, or `UserError`, which names the field."""
    key, text = given
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of regular expressions
            found = config.from_dict(TREE, [f"{key}={text}"])
    except UserError as mistake:
        assert key.rpartition(".")[2].split("_")[0] in str(mistake)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = config.from_dict(config.to_dict(found))
    assert again == found and repr(value_of(again, key)) == repr(value_of(found, key))


def rows_or_reason(spec: str) -> None:
    """Rows within their splits, at least one each, or `UserError`."""
    sizes = {"train": 41, "test": 7}
    data = dataclasses.replace(Dataset("numbers", (), (1, 1, 1), sizes, lambda split: None))
    try:
        found = data._slices(spec)
    except UserError as mistake:
        assert "numbers" in str(mistake)
        return
    assert found and all(len(rows) and 0 <= rows.start < rows.stop <= sizes[split] for split, rows in found)


def a_constant_stays(given: tuple[tuple[int, int], tuple[int, int], str, bool]) -> None:
    """Resized positions: a constant stays, a turned table gives the turned result, the same grid the same bits."""
    before, after, interpolation, antialias = given
    table = np.random.default_rng(before[0]).standard_normal((*before, 2)).astype(np.float32)
    table[..., 1] = 1.7
    found = resize(table, after, interpolation, antialias)
    assert found.shape == (*after, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found[..., 1], 1.7, rtol=1e-5)
    np.testing.assert_allclose(resize(table[::-1, ::-1], after, interpolation, antialias), found[::-1, ::-1], atol=1e-5)
    turned = resize(table.swapaxes(0, 1), after[::-1], interpolation, antialias)
    np.testing.assert_allclose(turned.swapaxes(0, 1), found, atol=1e-5)
    if before == after:
        np.testing.assert_array_equal(found, table)


TEXT = st.one_of(
    st.text(max_size=20),
    st.floats().map(repr),
    st.integers().map(repr),
    st.lists(st.integers(-9, 999), max_size=3).map(repr),
    st.sampled_from(
        ("true", "False", "none", "()", "(", "1,2", "('a',)", "[[1]]", "1e999", "nan", "-0", "b'x'", "{}", "..")
    ),
)
NUMBER = st.one_of(
    st.just(""), st.integers(-60, 60).map(str), st.integers(-120, 120).map("{}%".format), st.text(max_size=3)
)
SLICE = st.builds("{}[{}:{}]".format, st.sampled_from(("train", "test", "tset")), NUMBER, NUMBER)
SIDES = st.tuples(st.integers(1, 17), st.integers(1, 17))
LAWS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "decode": (image_or_reason, st.one_of(damaged(FILES), st.binary(max_size=64))),
    "weight headers": (arrays_or_reason, st.one_of(damaged(weights()), st.binary(max_size=64))),
    "flags": (value_or_reason, st.tuples(st.sampled_from(KEYS), TEXT)),
    "splits": (rows_or_reason, st.one_of(st.lists(SLICE, min_size=1, max_size=3).map("+".join), st.text(max_size=20))),
    "positions": (
        a_constant_stays,
        st.tuples(SIDES, SIDES, st.sampled_from(("bilinear", "bicubic")), st.booleans()),
    ),
}


@pytest.mark.parametrize("examples", [200, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LAWS)
def test_holds_for_any_input(name: str, examples: int):
    law, strategy = LAWS[name]
    settings = hypothesis.settings(max_examples=examples, database=None, derandomize=examples == 200)
    settings(hypothesis.given(strategy)(law))()

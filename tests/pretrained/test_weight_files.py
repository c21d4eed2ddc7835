"""Files of arrays: what they hold, and one line about each way in which they can be something else."""

import json
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vit_jax.command import UserError
from vit_jax.pretrained.files import open_arrays, read_about

RNG = np.random.default_rng(0)
ARRAYS = {
    "embedding/kernel": RNG.standard_normal((2, 3, 5, 7)).astype(np.float32),
    "bias": RNG.standard_normal(11).astype(np.float64),
    "labels": np.arange(13),
    "scale": np.array(1.5, np.float32),
    "transposed": np.asfortranarray(RNG.standard_normal((17, 2)).astype(np.float32)),
    "half": RNG.standard_normal(19).astype(np.float16),
    "brain": RNG.standard_normal((3, 2)).astype(ml_dtypes.bfloat16),
}


def save(folder, kind):
    path = folder / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, **ARRAYS)
    else:
        save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in ARRAYS.items()}, path)
    return path


def refused(path):
    with pytest.raises(UserError) as caught:
        arrays = open_arrays(path)
        for name in arrays:
            arrays[name]
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_arrays_come_as_they_were_stored(tmp_path, kind):
    arrays = open_arrays(save(tmp_path, kind))
    assert arrays.shapes == {name: array.shape for name, array in ARRAYS.items()}
    assert set(arrays) == set(ARRAYS) and len(arrays) == len(ARRAYS)
    for name, array in ARRAYS.items():
        wanted = array.astype(np.float32) if name in ("half", "brain") else array
        assert arrays[name].dtype == wanted.dtype
        np.testing.assert_array_equal(arrays[name], wanted)
    assert "other" not in arrays
    with pytest.raises(KeyError):
        arrays["other"]


def test_shapes_are_known_without_reading_arrays(tmp_path, monkeypatch):
    path = tmp_path / "weights.npz"
    np.savez(path, first=np.zeros(3), second=np.zeros((100, 10)))
    reads, read = [], np.lib.format.read_array

    def watched(*given, **more):
        reads.append(read(*given, **more).shape)
        return np.zeros(reads[-1])

    monkeypatch.setattr(np.lib.format, "read_array", watched)
    assert open_arrays(path).shapes == {"first": (3,), "second": (100, 10)}
    assert (100, 10) not in reads  # beartype looks at the first value of a mapping


def test_the_content_says_what_a_file_is(tmp_path):
    path = save(tmp_path, "npz").rename(tmp_path / "weights.bin")
    assert open_arrays(path).shapes["bias"] == (11,)


def write_sharded(folder):
    first, second = ({"a": ARRAYS["bias"], "b": ARRAYS["scale"]}, {"c": ARRAYS["half"]})
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")
    where = {name: "model-00001-of-00002.safetensors" for name in first}
    where |= {name: "model-00002-of-00002.safetensors" for name in second}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def test_shards_are_one_mapping(tmp_path):
    index = write_sharded(tmp_path)
    for path in (index, tmp_path):
        arrays = open_arrays(path)
        assert arrays.shapes == {"a": (11,), "b": (), "c": (19,)}
        np.testing.assert_array_equal(arrays["a"], ARRAYS["bias"])
        np.testing.assert_array_equal(arrays["c"], ARRAYS["half"].astype(np.float32))


def test_shards_that_do_not_fit_their_index(tmp_path):
    index = write_sharded(tmp_path)
    save_file({"d": ARRAYS["half"]}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(
        UserError, match="model-00002-of-00002.safetensors lacks 'c', which model.safetensors.index.json"
    ):
        open_arrays(index)
    for text in ('{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        assert "has no 'weight_map' from names to files" in refused(index)


def test_a_folder(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert "holds no .safetensors or .npz: pytorch_model.bin is a pickle" in refused(tmp_path)
    np.savez(tmp_path / "one.npz", a=np.zeros(2))
    assert open_arrays(tmp_path).shapes == {"a": (2,)}
    np.savez(tmp_path / "two.npz", b=np.zeros(3))
    assert "holds several files of weights: one.npz, two.npz; give the path of one" in refused(tmp_path)
    save_file({"c": np.zeros(5)}, tmp_path / "tuned.safetensors")
    assert open_arrays(tmp_path).shapes == {"c": (5,)}
    save_file({"d": np.zeros(7)}, tmp_path / "model.safetensors")
    assert open_arrays(tmp_path).shapes == {"d": (7,)}


def test_damage_in_an_array_is_noticed(tmp_path):
    path = tmp_path / "weights.npz"
    large = RNG.standard_normal(50_021)
    np.savez(path, small=np.zeros(3), large=large)
    content = bytearray(path.read_bytes())
    content[content.index(large[-3:].tobytes())] ^= 0xFF
    path.write_bytes(content)
    arrays = open_arrays(path)
    assert arrays["small"].shape == (3,)
    with pytest.raises(UserError, match="damaged at 'large' .*CRC"):
        arrays["large"]


def test_missing_and_unreadable(tmp_path):
    assert refused(tmp_path / "weights.npz").endswith("does not exist")
    loop = tmp_path / "loop.npz"
    loop.symlink_to(loop)
    assert "cannot read" in refused(loop)


def test_without_safetensors(tmp_path, monkeypatch):
    path = save(tmp_path, "safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert refused(path) == f"reading {path} needs the package safetensors: pip install 'vit_jax[hf]'"


def test_what_lies_beside_the_weights(tmp_path):
    path = save(tmp_path, "npz")
    assert read_about(path) == {}
    (tmp_path / "config.json").write_text('{"hidden_size": 768}')
    (tmp_path / "other.json").write_text("{}")
    assert read_about(path) == read_about(tmp_path) == {"config.json": {"hidden_size": 768}}

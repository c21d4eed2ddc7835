"""Weights from an address to arrays under our names, through a layout made up for these tests and a real one."""

from dataclasses import replace

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from vit_jax import models, pretrained
from vit_jax.command import UserError
from vit_jax.pretrained import Weights, fit, open_weights, parameter_shapes, position_grid
from vit_jax.pretrained.layout import Entry, Layout, Preprocessing
from vit_jax.pretrained.write import save_huggingface

MODEL = models.settings("vit", patch_size=(2,), width=6, depth=1, mlp_dim=11, num_heads=3, num_classes=5)
VIEW = Preprocessing((10, 10), "stretch", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
SHAPES = parameter_shapes(MODEL, (6, 10, 3))  # of the grid, not of the images that it was evaluated on
ATTENTION = "params/Transformer/encoderblock_0/MultiHeadDotProductAttention_1"


def part(i):
    return lambda array: array[i]


def entries():
    """Their name for `params/a/b` is `a.b`; queries, keys and values lie in one array; biases come as float64."""
    fused = [Entry(f"{ATTENTION}/{n}/kernel", "qkv", part(i)) for i, n in enumerate(("query", "key", "value"))]
    known = {entry.ours for entry in fused}
    rest = [Entry(name, name.removeprefix("params/").replace("/", ".")) for name in SHAPES if name not in known]
    return (*fused, *rest)


LAYOUT = Layout("Test", MODEL, (3, 5), VIEW, entries(), ignored=(r"counter\d+",), class_names=tuple("abcde"))


def their_arrays():
    rng = np.random.default_rng(0)
    arrays = {e.theirs: rng.standard_normal(SHAPES[e.ours]) for e in LAYOUT.entries if e.theirs != "qkv"}
    return {**arrays, "qkv": rng.standard_normal((3, 6, 3, 2)).astype(np.float16), "counter7": np.arange(3)}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens arrays of theirs, saved as .npz, as the layout given."""

    def opened(arrays, layout=LAYOUT):
        np.savez(tmp_path / "weights.npz", **arrays)
        monkeypatch.setattr(pretrained.google, "detect", lambda shapes, about: layout)
        return open_weights(str(tmp_path / "weights.npz"))

    return opened


def refused(weights):
    with pytest.raises(UserError) as caught:
        weights.read()
    return str(caught.value).removeprefix(f"{weights.address} (Test, vit) ")


def test_what_a_file_holds_is_known_before_it_is_read(opened, monkeypatch):
    weights = opened(their_arrays())
    assert (weights.layout_name, weights.model, weights.grid) == ("Test", MODEL, (3, 5))
    assert weights.preprocessing == VIEW and weights.class_names == tuple("abcde")
    assert weights.address.endswith("weights.npz")


def test_arrays_come_by_our_names(opened):
    theirs = their_arrays()
    arrays = opened(theirs).read()
    assert {name: array.shape for name, array in arrays.items()} == SHAPES
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays.values())
    np.testing.assert_array_equal(arrays[f"{ATTENTION}/key/kernel"], theirs["qkv"][1].astype(np.float32))
    np.testing.assert_array_equal(arrays["params/head/bias"], theirs["head.bias"].astype(np.float32))


def test_a_scanned_model_has_the_same_arrays(opened):
    layout = replace(LAYOUT, model={**MODEL, "scan": True})
    assert opened(their_arrays(), layout).read().keys() == SHAPES.keys()


def test_an_array_shared_by_several_is_read_once(opened, monkeypatch):
    weights, reads = opened(their_arrays()), []
    read = np.lib.format.read_array
    monkeypatch.setattr(np.lib.format, "read_array", lambda file, **o: reads.append(file.name) or read(file, **o))
    weights.read()
    assert reads.count("qkv.npy") == 1


def test_arrays_of_theirs_that_are_missing_or_left_over(opened):
    theirs = their_arrays()
    without = {name: array for name, array in theirs.items() if name not in ("cls", "qkv")}
    assert refused(opened(without)) == "lacks cls, qkv; it may be another variant, or damaged"
    more = {name: np.zeros(2) for name in ("xcounter7", "b", "c", "d", "counter7b")}
    expected = "holds arrays that this model has no place for: b, c, counter7b and 2 more; it may be another variant"
    assert refused(opened(theirs | more)).startswith(expected)


def test_arrays_of_ours_that_the_layout_lacks_or_invents(opened):
    theirs = their_arrays()
    fewer = replace(LAYOUT, entries=tuple(e for e in LAYOUT.entries if e.theirs != "cls"), ignored=(r"counter\d+|cls",))
    assert refused(opened(theirs, fewer)).startswith("lacks what makes up params/cls;")
    deeper = replace(LAYOUT, entries=(*LAYOUT.entries, Entry("params/other", "cls")))
    assert refused(opened(theirs, deeper)).startswith("makes up parameters that this model does not have: params/other")


def test_shapes_that_do_not_fit(opened):
    theirs = their_arrays() | {"head.bias": np.zeros(7)}
    expected = "has shapes that this model does not have: params/head/bias (7,), not (5,); it may be another variant"
    assert refused(opened(theirs)).startswith(expected)
    theirs = their_arrays() | {"qkv": np.zeros((2, 6))}
    assert "qkv (2, 6) does not make params/Transformer" in refused(opened(theirs))


def test_a_grid_with_a_stem_below_it(opened):
    model = models.settings(
        "hybrid", patch_size=(1,), width=6, depth=1, mlp_dim=11, num_heads=3, stage_sizes=(1, 1), resnet_width=32
    )
    shapes = parameter_shapes(model, (24, 40, 3))
    named = tuple(Entry(name, name) for name in shapes)
    layout = replace(LAYOUT, model=model, entries=named, ignored=())
    arrays = opened({name: np.zeros(shape) for name, shape in shapes.items()}, layout).read()
    assert arrays["params/Transformer/posembed_input/pos_embedding"].shape == (1, 16, 6)


def test_an_unknown_layout(tmp_path):
    np.savez(tmp_path / "weights.npz", foo=np.zeros(2), bar=np.zeros(3))
    with pytest.raises(
        UserError, match=r"weights.npz holds 2 arrays of no layout that is known \(foo, bar ...\); known: "
    ):
        open_weights(str(tmp_path / "weights.npz"))


def test_a_folder_as_transformers_has_it(tmp_path):
    rng, names = np.random.default_rng(0), tuple("abcde")
    model = {**MODEL, "norm_epsilon": 1e-12}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    view = Preprocessing((6, 10), "stretch", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
    save_huggingface(tmp_path, model, unflatten_dict(arrays, sep="/"), names, view, (6, 10))
    weights = open_weights(str(tmp_path))
    assert (weights.layout_name, weights.model, weights.grid) == ("Hugging Face", model, (3, 5))
    assert (weights.preprocessing, weights.class_names) == (view, names)
    read = weights.read()
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_the_grid_of_a_models_positions():
    assert position_grid(MODEL, (6, 10, 3)) == (3, 5)
    assert position_grid({**MODEL, "pos_embed": "learned_2d"}, (6, 10, 3)) == (3, 5)
    assert position_grid({**MODEL, "pos_embed": "none"}, (6, 10, 3)) == (0, 0)
    compact = models.settings("compact", width=6, depth=1, mlp_dim=7, num_heads=2, convolutions=1)
    assert position_grid(compact, (16, 24, 3)) == (8, 12)
    resnet = models.settings("resnet", stage_sizes=(1,), bottleneck=False, width=3)
    assert position_grid(resnet, (8, 8, 3)) == (0, 0)


def test_weights_of_other_origin_are_read_by_their_reader():
    arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    weights = Weights("runs/x", "run", MODEL, (3, 5), VIEW, (), reader=lambda: arrays)
    fitted, report = fit(
        weights.read(), source=MODEL, grid=weights.grid, model=MODEL, image_shape=(6, 10, 3), shapes=SHAPES
    )
    assert fitted.keys() == SHAPES.keys()
    assert report.parameters_loaded == sum(array.size for array in arrays.values())

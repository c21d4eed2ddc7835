"""Weights from an address to arrays under our names, through a layout made up for these tests and a real one."""

import numpy as np
import pytest

from vit_jax import models
from vit_jax.command import UserError
from vit_jax.pretrained import open_weights, parameter_shapes, position_grid
from vit_jax.pretrained.layout import Entry, Layout, Preprocessing, complete, identity

MODEL = models.settings("vit", patch_size=(2,), width=6, depth=1, mlp_dim=11, num_heads=3, num_classes=5)
VIEW = Preprocessing((10, 10), "stretch", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
SHAPES = parameter_shapes(MODEL, (6, 10, 3))  # of the grid, not of the images that it was evaluated on
LAYOUT = Layout("Test", MODEL, (3, 5), VIEW, tuple("abcde"))
THEIRS = {name.replace("/", "."): shape for name, shape in SHAPES.items()} | {"counter7": ()}


def completed(shapes, layout=LAYOUT):
    """The layout of a file whose name for `params/a/b` is `params.a.b`."""
    return complete(
        layout, shapes, lambda ours, shape: Entry(ours, ours.replace("/", "."), shape, identity), (r"counter\d+",)
    )


def test_every_array_of_the_model_has_an_entry():
    for model in (MODEL, {**MODEL, "scan": True}):
        layout = Layout("Test", model, (3, 5), VIEW, tuple("abcde"))
        assert {entry.ours: entry.shape for entry in completed(THEIRS, layout).entries} == SHAPES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params.cls": None}, "Test: params.cls is missing, which the other arrays imply; is the file complete?"),
        (
            dict.fromkeys(("xcounter7", "b", "c", "d", "counter7b"), (2,)),
            "Test: no model here has a place for b, c, counter7b and 2 more; it may be another variant, or damaged",
        ),
        ({"params.head.bias": (7,)}, "Test: params.head.bias has the shape (7,), but the other arrays imply (5,)"),
    ],
)
def test_arrays_that_are_missing_left_over_or_of_another_shape(changes, message):
    with pytest.raises(UserError) as caught:
        completed({key: shape for key, shape in (THEIRS | changes).items() if shape is not None})
    assert str(caught.value) == message


def test_sizes_that_no_model_has():
    model = models.settings("bit", stage_sizes=(1,), width=33, num_classes=5)
    with pytest.raises(UserError, match="^Test: the arrays have shapes that no model here has .*33"):
        completed(THEIRS, Layout("Test", model, (0, 0), VIEW))


def test_arrays_come_by_our_names_and_one_that_several_share_is_read_once(tmp_path, monkeypatch):
    """Of scanned blocks, which big_vision stores in one array; float16 becomes float32."""
    model, rng = {**MODEL, "depth": 3}, np.random.default_rng(0)
    shapes = parameter_shapes(model, (6, 6, 3))
    theirs = {}
    for name, shape in shapes.items():
        key = name.removeprefix("params/").replace("encoderblock_0/", "encoderblock/")
        if "encoderblock_" not in key:
            theirs[key] = rng.standard_normal((3, *shape) if "encoderblock/" in key else shape).astype(np.float16)
    np.savez(tmp_path / "weights.npz", **theirs)
    weights, reads, read = open_weights(str(tmp_path / "weights.npz")), [], np.lib.format.read_array
    assert (weights.layout_name, weights.grid, weights.class_names) == ("Google npz", (3, 3), ())
    assert weights.address.endswith("weights.npz")
    monkeypatch.setattr(np.lib.format, "read_array", lambda file, **o: reads.append(file.name) or read(file, **o))
    arrays = weights.read()
    assert {name: array.shape for name, array in arrays.items()} == shapes
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays.values())
    key = "MultiHeadDotProductAttention_1/key/kernel"
    expected = theirs[f"Transformer/encoderblock/{key}"][1].astype(np.float32)
    np.testing.assert_array_equal(arrays[f"params/Transformer/encoderblock_1/{key}"], expected)
    assert reads.count(f"Transformer/encoderblock/{key}.npy") == 1


def test_the_grid_of_a_models_positions():
    assert position_grid(MODEL, (6, 10, 3)) == (3, 5)
    assert position_grid({**MODEL, "pos_embed": "learned_2d"}, (6, 10, 3)) == (3, 5)
    assert position_grid({**MODEL, "pos_embed": "none"}, (6, 10, 3)) == (0, 0)
    compact = models.settings("compact", width=6, depth=1, mlp_dim=7, num_heads=2, convolutions=1)
    assert position_grid(compact, (16, 24, 3)) == (8, 12)
    resnet = models.settings("resnet", stage_sizes=(1,), bottleneck=False, width=3)
    assert position_grid(resnet, (8, 8, 3)) == (0, 0)

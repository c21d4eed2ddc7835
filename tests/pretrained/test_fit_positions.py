"""Fitting weights to another image size: tables of positions, resized, dropped or new."""

import jax
import numpy as np
import pytest

from tests.pretrained.fitted import BIAS, KERNEL, POSITIONS, actions, run, vit
from vit_jax import models
from vit_jax.command import UserError
from vit_jax.pretrained.fit import resize


def reference(table, m, interpolation):
    """Resizes the first axis, one output at a time, from the definition of the smoothing kernel."""
    n, out = len(table), []
    stretch = max(1.0, n / m)
    for i in range(m):
        centre = (i + 0.5) * n / m
        total, weight = 0.0, 0.0
        for j in range(n):
            t = abs(j + 0.5 - centre) / stretch
            if interpolation == "bilinear":
                value = max(0.0, 1 - t)
            elif t < 1:
                value = 1 - 2.5 * t * t + 1.5 * t**3
            else:
                value = max(0.0, 2 - t) ** 2 * (1 - t) / 2  # Keys, a = -0.5
            total, weight = total + value * table[j].astype(np.float64), weight + value
        out.append(total / weight)
    return np.array(out)


# Resizing.


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("old", "new"), [((5, 7), (11, 3)), ((7, 7), (13, 13)), ((13, 2), (5, 3))])
def test_resize_equals_its_definition_and_jax(old, new, interpolation):
    table = np.random.default_rng(1).standard_normal((*old, 3)).astype(np.float32)
    resized = resize(table, new, interpolation)
    expected = reference(table, new[0], interpolation)
    expected = reference(expected.swapaxes(0, 1), new[1], interpolation).swapaxes(0, 1)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=1e-6)
    method = {"bilinear": "linear", "bicubic": "cubic"}[interpolation]
    np.testing.assert_allclose(resized, jax.image.resize(table, (*new, 3), method, antialias=True), atol=3e-6)


# PosEmbed.


def rows_of(array, before):
    return array[0, :before], array[0, before:]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_positions_of_another_grid(interpolation):
    found, arrays, report = run(vit(), vit(), image_shape=(6, 14, 3), interpolation=interpolation)
    cls, patches = rows_of(found[POSITIONS], 1)
    new_cls, new_patches = rows_of(arrays[POSITIONS], 1)
    np.testing.assert_array_equal(new_cls, cls)
    expected = resize(patches.reshape(4, 4, 6), (3, 7), interpolation).reshape(21, 6)
    np.testing.assert_array_equal(new_patches, expected)
    assert [row.detail for row in report.rows if row.name == POSITIONS] == [f"4x4 -> 3x7, {interpolation}"]


def test_the_same_number_of_patches_in_another_grid_is_resized():
    found, arrays, report = run(vit(), vit(), made_for=(8, 8, 3), image_shape=(4, 16, 3))
    assert actions(report) == {POSITIONS: "resized"}
    assert arrays[POSITIONS].shape == found[POSITIONS].shape
    assert not np.array_equal(arrays[POSITIONS], found[POSITIONS])


def test_a_class_token_is_dropped():
    found, arrays, report = run(vit(), vit(class_token=False, pooling="gap"), image_shape=(8, 8, 3))
    np.testing.assert_array_equal(arrays[POSITIONS], found[POSITIONS][:, 1:])
    assert "params/cls" not in arrays
    assert actions(report) == {POSITIONS: "adapted", KERNEL: "new", BIAS: "new", "params/cls": "unused"}
    assert {row.detail for row in report.rows if row.action == "new"} == {"pooling 'token' -> 'gap'"}


def test_a_class_token_is_new():
    source = vit(class_token=False, pooling="gap")
    found, arrays, report = run(source, vit(), image_shape=(12, 12, 3))
    cls, patches = rows_of(arrays[POSITIONS], 1)
    assert (cls == 0).all()
    np.testing.assert_array_equal(patches, resize(found[POSITIONS].reshape(4, 4, 6), (6, 6), "bicubic").reshape(36, 6))
    assert "params/cls" not in arrays  # its initial value is the caller's
    assert actions(report)["params/cls"] == "new"
    detail = next(row.detail for row in report.rows if row.name == POSITIONS)
    assert detail == "4x4 -> 6x6, bicubic; class_token's new (zero)"


def test_a_distillation_token_is_dropped_with_its_head_or_new():
    plain, distilled = vit(), vit(distillation_token=True)
    found, arrays, report = run(distilled, plain)
    np.testing.assert_array_equal(arrays[POSITIONS], found[POSITIONS][:, [0, *range(2, 18)]])
    np.testing.assert_array_equal(arrays[KERNEL], found[KERNEL])
    unused = {"params/dist": "unused", "params/head_dist/kernel": "unused", "params/head_dist/bias": "unused"}
    assert actions(report) == {POSITIONS: "adapted", **unused}
    found, arrays, report = run(plain, distilled)
    np.testing.assert_array_equal(arrays[POSITIONS][:, [0, *range(2, 18)]], found[POSITIONS])
    assert (arrays[POSITIONS][0, 1] == 0).all() and (arrays["params/head_dist/kernel"] == 0).all()
    new = {"params/dist": "new", "params/head_dist/kernel": "new", "params/head_dist/bias": "new"}
    assert actions(report) == {POSITIONS: "adapted", **new}
    found, arrays, _ = run(distilled, distilled)
    assert all(arrays[name] is found[name] for name in found)


def test_positions_that_are_no_grid():
    with pytest.raises(UserError, match="17 positions are not 1 tokens and a 5x4 grid"):
        run(vit(), vit(), grid=(5, 4))


def test_tables_for_x_and_y_are_resized_each():
    model = vit(pos_embed="learned_2d")
    found, arrays, report = run(model, model, image_shape=(8, 14, 3))
    x, y = (f"params/Transformer/posembed_input/{axis}_embedding" for axis in "xy")
    np.testing.assert_allclose(arrays[x], reference(found[x], 7, "bicubic"), atol=1e-6)
    assert arrays[y] is found[y]
    assert actions(report) == {x: "resized"}
    assert next(row.detail for row in report.rows if row.name == x) == "4 -> 7 along x, bicubic"


def test_relative_bias_is_resized_as_an_image_of_offsets():
    model = vit(pos_embed="relative_bias")
    found, arrays, report = run(model, model, image_shape=(8, 14, 3))
    name = "params/Transformer/encoderblock_0/MultiHeadDotProductAttention_1/relative_bias"
    np.testing.assert_array_equal(arrays[name], resize(found[name], (7, 13), "bicubic"))
    assert actions(report) == {name: "resized"}
    assert next(row.detail for row in report.rows if row.name == name) == "7x7x3 -> 7x13x3 offsets, bicubic"


def test_one_dimensional_relative_positions_are_tied_to_their_length():
    model = vit(pos_embed="relative")
    run(model, model)
    with pytest.raises(UserError, match="relative_embedding is 33x2 in the weights, but 57x2.*number of tokens"):
        run(model, model, image_shape=(8, 14, 3))


def test_positions_of_a_hybrid_follow_its_map():
    small = {"patch_size": (1,), "width": 6, "depth": 1, "mlp_dim": 7, "num_heads": 2, "resnet_width": 32}
    model = models.settings("hybrid", stage_sizes=(1, 1), num_classes=3, **small)
    found, arrays, report = run(model, model, made_for=(32, 32, 3), image_shape=(40, 24, 1))
    assert actions(report) == {POSITIONS: "resized", "params/conv_root/kernel": "adapted"}
    patches = found[POSITIONS][0, 1:].reshape(4, 4, 6)
    np.testing.assert_array_equal(arrays[POSITIONS][0, 1:], resize(patches, (5, 3), "bicubic").reshape(15, 6))


@pytest.mark.parametrize(
    ("fields", "image_shape", "expected"),
    [
        ({"convolutions": 1, "pooling": "sequence"}, (16, 24, 3), (8, 12)),
        ({"patch_size": (4, 2), "pooling": "token"}, (16, 24, 3), (4, 12)),
    ],
)
def test_positions_of_a_compact_transformer(fields, image_shape, expected):
    model = models.settings("compact", width=6, depth=1, mlp_dim=7, num_heads=2, num_classes=3, **fields)
    old = (8, 8) if "convolutions" in fields else (4, 8)
    found, arrays, report = run(model, model, made_for=(16, 16, 3), image_shape=image_shape, grid=old)
    before = 1 if "patch_size" in fields else 0
    assert actions(report) == {POSITIONS: "resized"}
    patches = found[POSITIONS][0, before:].reshape(*old, 6)
    np.testing.assert_array_equal(arrays[POSITIONS][0, :before], found[POSITIONS][0, :before])
    np.testing.assert_array_equal(arrays[POSITIONS][0, before:], resize(patches, expected, "bicubic").reshape(-1, 6))


def test_a_mixer_is_tied_to_its_image_size():
    sizes = {"patch_size": (4,), "width": 5, "depth": 1, "token_mlp_dim": 3, "channel_mlp_dim": 7}
    model = models.settings("mixer", num_classes=3, **sizes)
    assert actions(run(model, model)[2]) == {}
    with pytest.raises(UserError, match="token_mixing/Dense_0/kernel is 4x3 in the weights, but 6x3.*augment.resize"):
        run(model, model, image_shape=(8, 12, 3))


@pytest.mark.parametrize(("interpolation", "expected"), [("bilinear", (1.5, 5.0)), ("bicubic", (1.3125, 5.1875))])
def test_positions_that_are_not_smoothed_are_those_of_the_nearest_places(interpolation, expected):
    """By hand: of 1, 2, 4, 6 the places 0.5 and 2.5; Keys's kernel with a = -0.75 is 0.59375 and -0.09375 there."""
    table = np.float32([1, 2, 4, 6])[:, None, None]
    found = resize(table, (2, 1), interpolation, antialias=False)[:, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3), (5, 7), (11, 13)])
def test_positions_that_are_not_smoothed_equal_pytorchs_definition(grid):
    """`upsample_bicubic2d`, one output at a time: four taps on each axis, those beyond an edge at the edge."""
    table = np.random.default_rng(1).standard_normal((5, 7, 2)).astype(np.float32)

    def taps(n, m, i):
        place, a = (i + 0.5) * n / m - 0.5, -0.75
        x = place - np.floor(place)
        near, far = (
            (lambda s: ((a + 2) * s - (a + 3)) * s * s + 1),
            (lambda s: ((a * s - 5 * a) * s + 8 * a) * s - 4 * a),
        )
        weights = far(x + 1), near(x), near(1 - x), far(2 - x)
        return [(min(max(int(np.floor(place)) + k, 0), n - 1), w) for k, w in zip((-1, 0, 1, 2), weights, strict=True)]

    expected = [
        [
            sum(v * w * table[y, x].astype(float) for y, v in taps(5, grid[0], i) for x, w in taps(7, grid[1], j))
            for j in range(grid[1])
        ]
        for i in range(grid[0])
    ]
    np.testing.assert_allclose(resize(table, grid, "bicubic", antialias=False), expected, atol=1e-6)

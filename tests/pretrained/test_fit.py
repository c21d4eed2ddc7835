"""Fitting weights to another image size, other channels, other classes; and what is refused."""

import jax
import numpy as np
import pytest

from vit_jax import models
from vit_jax.command import UserError
from vit_jax.pretrained import parameter_shapes
from vit_jax.pretrained.fit import FREE, channels, fit, patch_grid, resize
from vit_jax.pretrained.report import Report, Row

POSITIONS = "params/Transformer/posembed_input/pos_embedding"
KERNEL, BIAS = "params/head/kernel", "params/head/bias"
NAMES = ("ant", "Bee", "cat")


def vit(**fields):
    """A small ViT, all sizes distinct."""
    sizes = {"patch_size": (2,), "width": 6, "depth": 1, "mlp_width": 11, "heads": 3, "num_classes": 3}
    return models.settings("vit", **{**sizes, **fields})


KNOWN = {}  # shapes, by model and image: tracing a model takes longer than everything else here


def shapes_of(model, image_shape):
    key = repr((model, image_shape))
    if key not in KNOWN:
        KNOWN[key] = parameter_shapes(model, image_shape)
    return KNOWN[key]


def weights(model, image_shape):
    """Random arrays in place of a model's parameters."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes_of(model, image_shape).items()
    }


def run(source, model, *, made_for=(8, 8, 3), image_shape=None, grid=None, without=(), extra=(), **options):
    """The weights of `source`, made for one image shape, and their fit to `model` at another."""
    image_shape = image_shape or made_for
    found = {name: array for name, array in weights(source, made_for).items() if name not in without}
    found |= {name: np.zeros((2,), np.float32) for name in extra}
    positions = [name for name in found if name.endswith("pos_embedding")]
    arrays, report = fit(
        found,
        source=source,
        grid=grid or (patch_grid(source, made_for, 0) if positions else (0, 0)),
        model=model,
        image_shape=image_shape,
        shapes=shapes_of(model, image_shape),
        **options,
    )
    return found, arrays, report


def actions(report, *but):
    """What became of the arrays that were not simply loaded."""
    return {row.name: row.action for row in report.rows if row.action not in ("loaded", *but)}


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


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_keeps_constants_ramps_and_the_same_grid(interpolation):
    constant = np.full((5, 7, 2), 1.7, np.float32)
    np.testing.assert_allclose(resize(constant, (11, 3), interpolation), 1.7, rtol=1e-6)
    ramp = np.tile((np.arange(20, dtype=np.float32) + 0.5)[:, None, None], (1, 3, 1))
    doubled = resize(ramp, (40, 3), interpolation)[:, 0, 0]
    inside = slice(4, -4)  # at the edges half of the kernel is missing
    np.testing.assert_allclose(doubled[inside], ((np.arange(40) + 0.5) / 2)[inside], atol=1e-5)
    halved = resize(ramp, (10, 3), interpolation)[:, 0, 0]
    np.testing.assert_allclose(halved[2:-2], ((np.arange(10) + 0.5) * 2)[2:-2], atol=1e-5)
    assert resize(constant, (5, 7), interpolation) is constant


# The whole.


def test_the_same_model_gets_the_same_bits():
    found, arrays, report = run(vit(), vit(), class_names=NAMES, source_names=NAMES)
    assert arrays.keys() == found.keys()
    assert all(arrays[name] is found[name] for name in found)
    assert actions(report) == {}
    assert report.parameters_loaded == sum(array.size for array in found.values())


def test_a_fitted_model_runs_and_free_fields_may_differ():
    model = vit(num_classes=5, dropout=0.1, stochastic_depth=0.2, remat="full", dtype="bfloat16", head_bias=-3.0)
    found, arrays, report = run(vit(), model, image_shape=(12, 20, 1))
    assert actions(report) == {
        "params/embedding/kernel": "adapted",
        POSITIONS: "resized",
        KERNEL: "new",
        BIAS: "new",
    }
    assert (arrays[KERNEL] == 0).all() and (arrays[BIAS] == -3).all()
    assert {row.detail for row in report.rows if row.action == "new"} == {"3 -> 5 classes"}
    details = {row.name: row.detail for row in report.rows}
    assert details[POSITIONS] == "4x4 -> 6x10, bicubic"
    assert details["params/embedding/kernel"] == "3 -> 1 channels"
    assert {name: array.shape for name, array in arrays.items()} == shapes_of(model, (12, 20, 1))
    untouched = set(found) - set(actions(report))
    assert all(arrays[name] is found[name] for name in untouched)
    assert report.parameters_loaded == sum(array.size for array in arrays.values()) - 5 * 6 - 5


def test_every_free_field_is_a_field_of_some_model():
    known = {field for name in models.FAMILIES for field in models.fields(name)}
    assert known >= FREE - {"name"}


def test_layer_scale_and_head_width_are_compared_by_meaning():
    _, _, report = run(vit(layer_scale=1e-5, head_width=2), vit(layer_scale=0.1, patch_size=(2, 2)))
    assert actions(report) == {}


# Positions.


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
    model = vit(positions="learned_2d")
    found, arrays, report = run(model, model, image_shape=(8, 14, 3))
    x, y = (f"params/Transformer/posembed_input/{axis}_embedding" for axis in "xy")
    np.testing.assert_allclose(arrays[x], reference(found[x], 7, "bicubic"), atol=1e-6)
    assert arrays[y] is found[y]
    assert actions(report) == {x: "resized"}
    assert next(row.detail for row in report.rows if row.name == x) == "4 -> 7 along x, bicubic"


def test_relative_bias_is_resized_as_an_image_of_offsets():
    model = vit(positions="relative_bias")
    found, arrays, report = run(model, model, image_shape=(8, 14, 3))
    name = "params/Transformer/encoderblock_0/MultiHeadDotProductAttention_1/relative_bias"
    np.testing.assert_array_equal(arrays[name], resize(found[name], (7, 13), "bicubic"))
    assert actions(report) == {name: "resized"}
    assert next(row.detail for row in report.rows if row.name == name) == "7x7x3 -> 7x13x3 offsets, bicubic"


def test_one_dimensional_relative_positions_are_tied_to_their_length():
    model = vit(positions="relative")
    run(model, model)
    with pytest.raises(UserError, match="relative_embedding is 33x2 in the weights, but 57x2.*number of tokens"):
        run(model, model, image_shape=(8, 14, 3))


def test_positions_of_a_hybrid_follow_its_map():
    small = {"patch_size": (1,), "width": 6, "depth": 1, "mlp_width": 7, "heads": 2, "resnet_width": 32}
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
    model = models.settings("compact", width=6, depth=1, mlp_width=7, heads=2, num_classes=3, **fields)
    old = (8, 8) if "convolutions" in fields else (4, 8)
    found, arrays, report = run(model, model, made_for=(16, 16, 3), image_shape=image_shape, grid=old)
    before = 1 if "patch_size" in fields else 0
    assert actions(report) == {POSITIONS: "resized"}
    patches = found[POSITIONS][0, before:].reshape(*old, 6)
    np.testing.assert_array_equal(arrays[POSITIONS][0, :before], found[POSITIONS][0, :before])
    np.testing.assert_array_equal(arrays[POSITIONS][0, before:], resize(patches, expected, "bicubic").reshape(-1, 6))


def test_a_mixer_is_tied_to_its_image_size():
    sizes = {"patch_size": (4,), "width": 5, "depth": 1, "token_mlp_width": 3, "channel_mlp_width": 7}
    model = models.settings("mixer", num_classes=3, **sizes)
    assert actions(run(model, model)[2]) == {}
    with pytest.raises(UserError, match="token_mixing/Dense_0/kernel is 4x3 in the weights, but 6x3.*augment.resize"):
        run(model, model, image_shape=(8, 12, 3))


# Channels.


def test_a_grey_image_has_the_response_that_it_had_in_colour():
    kernel = np.random.default_rng(2).standard_normal((2, 5, 3, 7)).astype(np.float32)
    grey = np.random.default_rng(3).random((2, 5, 1)).astype(np.float32)

    def response(image, kernel):
        return np.einsum("pqc,pqcd->d", image, kernel)

    colour = np.repeat(grey, 3, axis=2)
    expected = response(colour, kernel)
    np.testing.assert_allclose(response(grey, channels(kernel, 1)), expected, rtol=1e-5)
    back = channels(channels(kernel, 1), 3)
    np.testing.assert_allclose(response(colour, back), expected, rtol=1e-5)
    np.testing.assert_allclose(back[:, :, 0], kernel.mean(axis=2), rtol=1e-5)


def test_other_numbers_of_channels_take_turns():
    kernel = np.ones((1, 1, 3, 1), np.float32) * np.array([1, 2, 4], np.float32)[None, None, :, None]
    np.testing.assert_allclose(channels(kernel, 5)[0, 0, :, 0], np.array([1, 2, 4, 1, 2]) * 3 / 5, rtol=1e-6)
    np.testing.assert_allclose(channels(kernel, 2)[0, 0, :, 0], np.array([1, 2]) * 3 / 2, rtol=1e-6)


FIRST = {
    "resnet": ({"stage_sizes": (1,), "bottleneck": False, "width": 3}, "params/conv_root/kernel"),
    "resnetv2": ({"stage_sizes": (1,), "width": 3, "pooling": "gap"}, "params/conv_root/kernel"),
    "bit": ({"stage_sizes": (1,), "width": 32}, "params/root_block/conv_root/kernel"),
    "cnn": ({"stages": ((3,),), "dense_widths": (5,)}, "params/stage0_conv0/kernel"),
    "mixer": (
        {"patch_size": (4,), "width": 5, "depth": 1, "token_mlp_width": 3, "channel_mlp_width": 7},
        "params/stem/kernel",
    ),
    "compact": (
        {"width": 6, "depth": 1, "mlp_width": 7, "heads": 2, "convolutions": 1},
        "params/tokenizer/conv_0/kernel",
    ),
}


@pytest.mark.parametrize("family", FIRST)
def test_every_family_has_a_first_kernel_and_a_head(family):
    fields, kernel = FIRST[family]
    source, model = (models.settings(family, num_classes=k, **fields) for k in (3, 5))
    found, arrays, report = run(source, model, image_shape=(8, 8, 1), grid=(4, 4) if family == "compact" else None)
    assert actions(report) == {kernel: "adapted", KERNEL: "new", BIAS: "new"}
    np.testing.assert_array_equal(arrays[kernel], found[kernel].sum(axis=2, keepdims=True))
    assert (arrays[KERNEL] == 0).all() and arrays[KERNEL].shape[-1] == 5
    kept = [name for name in found if name.startswith("batch_stats/")]
    assert all(arrays[name] is found[name] for name in kept)
    assert bool(kept) == (family in ("resnet", "resnetv2", "cnn"))
    assert report.parameters_loaded == sum(a.size for n, a in arrays.items() if n not in (KERNEL, BIAS, *kept))


# The head.


@pytest.mark.parametrize(
    ("class_names", "source_names", "detail"),
    [
        (NAMES, NAMES, "3 classes, the same names"),
        (("ANT", " bee", "cat"), NAMES, "3 classes, the same names"),
        (("crane", "crane", "cat"), ("crane", "Crane", "cat"), "3 classes, the same names"),
        (NAMES, (), "3 classes, the names unknown"),
        ((), NAMES, "3 classes, the names unknown"),
    ],
)
def test_the_head_is_kept(class_names, source_names, detail):
    found, arrays, report = run(vit(), vit(), class_names=class_names, source_names=source_names)
    assert arrays[KERNEL] is found[KERNEL]
    assert [row.detail for row in report.rows if row.name == KERNEL] == [detail]


def test_the_head_is_put_in_order():
    model = vit(distillation_token=True)
    found, arrays, report = run(model, model, class_names=("cat", "ant", "bee"), source_names=NAMES)
    for name in (KERNEL, BIAS, "params/head_dist/kernel", "params/head_dist/bias"):
        np.testing.assert_array_equal(arrays[name], found[name][..., [2, 0, 1]])
        assert actions(report)[name] == "adapted"
    assert report.rows[-1].detail == "3 classes, put in the data set's order"


@pytest.mark.parametrize(
    ("class_names", "source_names"),
    [(("dog", "bee", "cat"), NAMES), (("crane", "cat", "crane"), ("crane",) * 2 + ("cat",))],
)
def test_the_head_is_new_for_other_names_unless_kept(class_names, source_names):
    names = {"class_names": class_names, "source_names": source_names}
    _, arrays, report = run(vit(), vit(), **names)
    assert (arrays[KERNEL] == 0).all()
    assert {row.detail for row in report.rows if row.action == "new"} == {
        "3 classes, other names; init.head='keep' keeps it"
    }
    found, arrays, report = run(vit(), vit(), head="keep", **names)
    assert arrays[KERNEL] is found[KERNEL]
    assert actions(report) == {}


def test_a_new_head_when_asked_for():
    _, arrays, report = run(vit(), vit(), head="new", class_names=NAMES, source_names=NAMES)
    assert (arrays[KERNEL] == 0).all()
    assert [row.detail for row in report.rows if row.name == KERNEL] == ["init.head='new'"]


def test_hidden_layers_belong_to_the_head():
    source, model = vit(head_widths=(7,)), vit(head_widths=(7,), num_classes=5)
    found, arrays, report = run(source, source)
    assert all(arrays[name] is found[name] for name in found)
    _, arrays, report = run(source, model)
    hidden = {"params/head_hidden_0/kernel", "params/head_hidden_0/bias"}
    assert {name for name, action in actions(report).items() if action == "new"} == {KERNEL, BIAS, *hidden}
    assert not hidden & arrays.keys()  # a zero layer below a zero layer would learn nothing: the caller draws it
    _, _, report = run(source, vit())
    assert {name for name, action in actions(report).items() if action == "unused"} == hidden
    assert {row.detail for row in report.rows if row.action in ("new", "unused")} == {"head_widths (7,) -> ()"}


def test_pre_logits_are_dropped_with_the_head_kept_with_others_or_new():
    source = vit(pre_logits=6)  # the width: the head's shape is then no hint
    _, _, report = run(source, vit())
    layer = {"params/pre_logits/kernel": "unused", "params/pre_logits/bias": "unused"}
    assert actions(report) == {KERNEL: "new", BIAS: "new", **layer}
    found, arrays, report = run(source, vit(pre_logits=6, num_classes=5))
    assert arrays["params/pre_logits/kernel"] is found["params/pre_logits/kernel"]
    _, arrays, report = run(vit(), source)
    assert actions(report)["params/pre_logits/kernel"] == "new"
    assert "params/pre_logits/kernel" not in arrays


def test_without_a_head_on_either_side():
    _, _, report = run(vit(), vit(num_classes=0))
    assert actions(report) == {KERNEL: "unused", BIAS: "unused"}
    _, arrays, report = run(vit(num_classes=0), vit())
    assert actions(report) == {KERNEL: "new", BIAS: "new"}
    assert {row.detail for row in report.rows if row.action == "new"} == {"the weights have no head"}
    for source, model, found, wanted in ((vit(num_classes=0), vit(), 0, 3), (vit(), vit(num_classes=5), 3, 5)):
        with pytest.raises(
            UserError, match=f"head='keep', but the weights' head has {found} classes, this run's {wanted}"
        ):
            run(source, model, head="keep")


def test_a_head_whose_input_depends_on_the_image_size():
    model = vit(pooling="flatten")
    _, arrays, report = run(model, model, image_shape=(8, 12, 3))
    assert (arrays[KERNEL] == 0).all()
    assert [row.detail for row in report.rows if row.name == KERNEL] == ["its input has another shape"]
    with pytest.raises(UserError, match="head/kernel is 96x3 in the weights, but 144x3 in the model"):
        run(model, model, image_shape=(8, 12, 3), head="keep")


# What is refused.


@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        (
            {},
            {"width": 9},
            r"do not fit model.width=9 \(weights: 6\), model.head_width=3 \(weights: 2\); start the config",
        ),
        ({}, {"patch_size": (4,)}, r"patch_size=\(4,\) \(weights: \(2,\)\); patches of another size are not supp"),
        ({"norm_epsilon": 1e-12}, {}, r"model.norm_epsilon=1e-06 \(weights: 1e-12\)"),
        ({}, {"activation": "gelu_tanh"}, r"model.activation='gelu_tanh' \(weights: 'gelu'\)"),
        ({}, {"pooling": "map"}, r"model.pooling='map' \(weights: 'token'\)"),
        ({"head_width": 5}, {}, r"model.head_width=0 \(weights: 5\)"),
        ({"layer_scale": 0.1}, {}, r"model.layer_scale=0.0 \(weights: 0.1\)"),
        ({"positions": "none"}, {}, r"model.positions='learned' \(weights: 'none'\)"),
        (
            {},
            {"depth": 3, "heads": 2, "mlp_width": 5, "qk_norm": True},
            r"depth=3 .*mlp_width=5 .*heads=2 .* and 2 more;",
        ),
    ],
)
def test_another_architecture(source, model, message):
    with pytest.raises(UserError, match=message) as caught:
        run(vit(**source), vit(**model))
    assert str(caught.value).endswith("start the config from these weights: configs/finetune.py:WEIGHTS,DATASET")


def test_another_family():
    resnet = models.settings("resnet", stage_sizes=(1,), bottleneck=False, width=3, num_classes=3)
    with pytest.raises(UserError, match="the weights are of 'vit', not of model 'resnet'; start the config"):
        run(vit(), resnet)
    run(vit(), {**vit(), "name": "deit"})  # a name for the same module


def test_missing_arrays():
    lost = [f"params/Transformer/encoderblock_0/LayerNorm_{i}/{part}" for i in (0, 2) for part in ("bias", "scale")]
    with pytest.raises(UserError, match="the weights lack 4 arrays: .*encoderblock_0/LayerNorm_0/bias, .* and 1 more"):
        run(vit(), vit(), without=lost)
    with pytest.raises(UserError, match="the weights lack 1 arrays: params/cls"):
        run(vit(), vit(), without=["params/cls"])
    with pytest.raises(UserError, match="the weights lack 1 arrays: params/head/bias"):
        run(vit(), vit(), without=[BIAS])


def test_arrays_left_over():
    with pytest.raises(
        UserError, match="has no place for the weights' 2 arrays: params/extra, params/head_hidden_0/bias"
    ):
        run(vit(), vit(), extra=["params/extra", "params/head_hidden_0/bias"])


def test_an_array_of_another_shape():
    found = weights(vit(), (8, 8, 3)) | {"params/embedding/bias": np.zeros(7, np.float32)}
    options = {"source": vit(), "model": vit(), "grid": (4, 4), "image_shape": (8, 8, 3)}
    with pytest.raises(UserError, match="embedding/bias is 7 in the weights, but 6 in the model"):
        fit(found, shapes=shapes_of(vit(), (8, 8, 3)), **options)


# The report.


def test_the_report_groups_by_module():
    source, model = vit(depth=11, distillation_token=True), vit(depth=11, num_classes=5)
    _, _, report = run(source, model, image_shape=(12, 12, 3))
    assert [row._replace(parameters=0) for row in report.groups()] == [
        Row("loaded", "Transformer/encoder_norm", "", 0),
        Row("loaded", "Transformer/encoderblock_0 .. 10", "", 0),
        Row("loaded", "cls", "", 0),
        Row("loaded", "embedding", "", 0),
        Row("resized", "Transformer/posembed_input", "4x4 -> 6x6, bicubic; distillation_token's dropped", 0),
        Row("new", "head", "3 -> 5 classes", 0),
        Row("unused", "dist", "the model has no distillation_token", 0),
        Row("unused", "head_dist", "the model has no distillation_token", 0),
    ]
    assert sum(row.parameters for row in report.groups()) == sum(row.parameters for row in report.rows)


def test_the_report_keeps_gaps_and_different_fates_apart():
    names = ["block_0/a", "block_1/a", "block_3/a", "block_10/a", "block_11/a", "stem/a", "stem/b"]
    rows = [Row("loaded", f"params/{name}", "", 2) for name in names] + [Row("adapted", "params/stem/c", "x", 3)]
    assert Report(tuple(rows)).groups() == [
        Row("loaded", "block_0 .. 1", "", 4),
        Row("loaded", "block_3", "", 2),
        Row("loaded", "block_10 .. 11", "", 4),
        Row("loaded", "stem", "", 4),
        Row("adapted", "stem", "x", 3),
    ]

"""Fitting weights to another head, other channels; what is refused, and the report."""

import numpy as np
import pytest

from tests.pretrained.fitted import BIAS, KERNEL, NAMES, POSITIONS, actions, run, vit, weights
from vit_jax import models
from vit_jax.command import UserError
from vit_jax.pretrained import parameter_shapes
from vit_jax.pretrained.fit import FREE, channels, fit
from vit_jax.pretrained.report import Report, Row


def test_the_same_model_gets_the_same_bits():
    found, arrays, report = run(vit(), vit(), class_names=NAMES, source_names=NAMES)
    assert arrays.keys() == found.keys()
    assert all(arrays[name] is found[name] for name in found)
    assert actions(report) == {}
    assert report.parameters_loaded == sum(array.size for array in found.values())


def test_a_fitted_model_runs_and_free_fields_may_differ():
    model = vit(num_classes=5, dropout=0.1, stochastic_depth=0.2, remat="full", dtype="bfloat16", head_bias=-3.0)
    found, arrays, report = run(vit(), model, image_shape=(12, 20, 1))
    assert actions(report) == {"params/embedding/kernel": "adapted", POSITIONS: "resized", KERNEL: "new", BIAS: "new"}
    assert (arrays[KERNEL] == 0).all() and (arrays[BIAS] == -3).all()
    assert {row.detail for row in report.rows if row.action == "new"} == {"3 -> 5 classes"}
    details = {row.name: row.detail for row in report.rows}
    assert details[POSITIONS] == "4x4 -> 6x10, bicubic"
    assert details["params/embedding/kernel"] == "3 -> 1 channels"
    assert {name: array.shape for name, array in arrays.items()} == parameter_shapes(model, (12, 20, 1))
    untouched = set(found) - set(actions(report))
    assert all(arrays[name] is found[name] for name in untouched)
    assert report.parameters_loaded == sum(array.size for array in arrays.values()) - 5 * 6 - 5


def test_every_free_field_is_a_field_of_some_model():
    known = {field for name in models.FAMILIES for field in models.fields(name)}
    assert known >= FREE - {"name"}


def test_layer_scale_and_head_width_are_compared_by_meaning():
    _, _, report = run(vit(layer_scale=1e-5, head_dim=2), vit(layer_scale=0.1, patch_size=(2, 2)))
    assert actions(report) == {}


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
        {"patch_size": (4,), "width": 5, "depth": 1, "token_mlp_dim": 3, "channel_mlp_dim": 7},
        "params/stem/kernel",
    ),
    "compact": (
        {"width": 6, "depth": 1, "mlp_dim": 7, "num_heads": 2, "convolutions": 1},
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


def test_a_head_that_stood_for_two_is_halved_where_it_stays_alone():
    source, zero = vit(distillation_token=True), ("params/head_dist/kernel", "params/head_dist/bias")
    found, arrays, report = run(source, vit(), zero=zero)
    for name in (KERNEL, BIAS):
        np.testing.assert_array_equal(arrays[name], found[name] / 2)
        assert {row.name: row.detail for row in report.rows}[name].endswith("halved: it stood for two heads")
    _, kept, _ = run(source, source, zero=zero)
    np.testing.assert_array_equal(kept[KERNEL], found[KERNEL])
    found, arrays, _ = run(source, vit())  # a distilled model's own class head stays as it is
    np.testing.assert_array_equal(arrays[KERNEL], found[KERNEL])


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
            r"do not fit model.width=9 \(weights: 6\), model.head_dim=3 \(weights: 2\); start the config",
        ),
        ({}, {"patch_size": (4,)}, r"patch_size=\(4,\) \(weights: \(2,\)\); patches of another size are not supp"),
        ({"norm_epsilon": 1e-12}, {}, r"model.norm_epsilon=1e-06 \(weights: 1e-12\)"),
        ({}, {"activation": "gelu_tanh"}, r"model.activation='gelu_tanh' \(weights: 'gelu'\)"),
        ({}, {"pooling": "map"}, r"model.pooling='map' \(weights: 'token'\)"),
        ({"head_dim": 5}, {}, r"model.head_dim=0 \(weights: 5\)"),
        ({"layer_scale": 0.1}, {}, r"model.layer_scale=0.0 \(weights: 0.1\)"),
        ({"pos_embed": "none"}, {}, r"model.pos_embed='learned' \(weights: 'none'\)"),
        (
            {},
            {"depth": 3, "num_heads": 2, "mlp_dim": 5, "qk_norm": True},
            r"depth=3 .*mlp_dim=5 .*num_heads=2 .* and 2 more;",
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
        fit(found, shapes=parameter_shapes(vit(), (8, 8, 3)), **options)


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

"""timm's layout: the same arrays under other names give the same model; what its config.json tells."""

from typing import Any

import numpy as np
import pytest

from tests.conftest import rest_is_slow
from tests.pretrained import huggingface_files as files
from tests.pretrained import parity
from tests.pretrained.huggingface_files import Shapes
from vit_jax.command import UserError
from vit_jax.pretrained import huggingface, parameter_shapes, timm
from vit_jax.pretrained.layout import Layout, Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
Arrays = dict[str, np.ndarray]

BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
}
REST = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
    "cls_classifier": "head",
    "distillation_classifier": "head_dist",
}


def transformer_to_timm(arrays: Arrays, prefix: str = "") -> Arrays:
    """The arrays of a ViT, DeiT or DINOv2 of `transformers`, with queries, keys and values in one."""
    renamed, attention = {}, {}
    for key, array in arrays.items():
        name, leaf = key.removeprefix(prefix).rsplit(".", 1)
        if f"{name}.{leaf}" in REST:
            renamed[REST[f"{name}.{leaf}"]] = array
        elif name in REST:
            renamed[f"{REST[name]}.{leaf}"] = array
        else:
            _, _, i, part = name.split(".", 3)
            if part.startswith("attention.attention."):
                attention[i, part.removeprefix("attention.attention."), leaf] = array
            else:
                renamed[f"blocks.{i}.{BLOCK[part]}.{'gamma' if leaf == 'lambda1' else leaf}"] = array
    for i, leaf in {(i, leaf) for i, _, leaf in attention}:
        parts = [attention[i, part, leaf] for part in ("query", "key", "value")]
        renamed[f"blocks.{i}.attn.qkv.{leaf}"] = np.concatenate(parts)
    return renamed


def resnet_to_timm(arrays: Arrays) -> Arrays:
    """The arrays of a ResNet of `transformers` as timm and torchvision name them."""
    renamed = {}
    for key, array in arrays.items():
        *path, leaf = key.removeprefix("resnet.").split(".")
        kind = {"convolution": "conv", "normalization": "bn"}.get(path[-1])
        if path[0] == "classifier":
            renamed[f"fc.{leaf}"] = array
        elif path[0] == "embedder":
            renamed[f"{kind}1.{leaf}"] = array
        else:
            block = f"layer{int(path[2]) + 1}.{path[4]}"
            shortcut = f"downsample.{0 if kind == 'conv' else 1}"
            name = shortcut if path[5] == "shortcut" else f"{kind}{int(path[6]) + 1}"
            renamed[f"{block}.{name}.{leaf}"] = array
    return renamed


def bit_to_timm(arrays: Arrays) -> Arrays:
    renames = (("bit.encoder.", ""), ("layers", "blocks"), ("bit.embedder.convolution", "stem.conv"), ("bit.", ""))
    renamed = {}
    for key, array in arrays.items():
        for old, new in renames:
            key = key.replace(old, new)
        key = key.replace("classifier.1", "head.fc")
        renamed[key] = array[:, :, None, None] if key == "head.fc.weight" else array
    return renamed


VIT: Shapes = files.vit(130, 13, 3, 7, 10) | files.linear("classifier", 130, 5)
CONFIG: dict[str, Any] = {"num_attention_heads": 2}
ARGUMENTS = {"config.json": {"model_args": {"num_heads": 2}}}


def assert_same_model(
    originals: Arrays, arrays: Arrays, about: dict[str, Any] = ARGUMENTS, config: dict[str, Any] = CONFIG
) -> Layout:
    """Both layouts make the same arrays, to the last bit, of the same model; timm's."""
    found = timm.detect(parity.shapes_of(arrays), about)
    expected = huggingface.detect(parity.shapes_of(originals), {"config.json": config})
    assert found is not None and expected is not None
    ours, wanted = parity.converted(found, arrays), parity.converted(expected, originals)
    assert ours.keys() == wanted.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    assert found.model | {"norm_epsilon": 0, "layer_scale": 0} == expected.model | {"norm_epsilon": 0, "layer_scale": 0}
    assert found.grid == expected.grid
    return found


@pytest.mark.parametrize("wrapper", ["", "timm_model."])
def test_vit(wrapper):
    originals = files.arrays(VIT)
    arrays = {wrapper + key: array for key, array in transformer_to_timm(originals, "vit.").items()}
    assert assert_same_model(originals, arrays).model["norm_epsilon"] == 1e-6


def test_deit():
    originals = files.arrays(files.deit(130, 13, 2, 7, 11, 5))
    layout = assert_same_model(originals, transformer_to_timm(originals, "deit."))
    assert layout.preprocessing.mean == IMAGENET["mean"]


@pytest.mark.parametrize("gated", rest_is_slow([True, False]))
def test_dinov2_whose_class_token_has_no_position(gated):
    originals = files.arrays(files.dinov2(130, 13, 2, 7, 10, gated=gated, registers=3))
    originals["embeddings.position_embeddings"][:, 0] = 0
    arrays = transformer_to_timm(originals)
    arrays["pos_embed"] = arrays["pos_embed"][:, 1:]
    layout = assert_same_model(originals, arrays)
    assert layout.model["registers"] == 3 and layout.model["layer_scale"] == 1e-5


@pytest.mark.parametrize("registers", rest_is_slow([3, 0]))
def test_dinov2_with_its_authors_names(registers):
    originals = files.arrays(files.dinov2(130, 13, 2, 7, 10, gated=True, registers=registers))
    arrays = {}
    for key, array in transformer_to_timm(originals).items():
        for old, new in {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3", "reg_token": "register_tokens"}.items():
            key = key.replace(old, new)
        arrays[key] = array
    assert_same_model(originals, arrays)


def test_a_gate_of_its_own():
    originals = files.arrays(files.dinov2(130, 13, 2, 7, 10, gated=True))
    arrays = transformer_to_timm(originals)
    for key in [key for key in arrays if "mlp.fc1" in key]:
        arrays[key.replace("fc1", "fc1_g")], arrays[key.replace("fc1", "fc1_x")] = np.split(arrays.pop(key), 2)
    assert_same_model(originals, arrays)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_resnet(bottleneck):
    originals = files.arrays(files.resnet(7, (2, 1, 3), bottleneck, 5))
    layout = assert_same_model(originals, resnet_to_timm(originals), {}, {})
    assert layout.preprocessing == Preprocessing((224, 224), "crop", 0.875, "bilinear", **IMAGENET)


def test_bit():
    originals = files.arrays(files.bit(32, (2, 1), 5))
    assert_same_model(originals, bit_to_timm(originals), {}, {})


@pytest.mark.slow
def test_arrays_named_as_timms_give_the_original_models_outputs(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 22, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 21, "patch_size": 7}
    config = transformers.ViTConfig(**sizes, intermediate_size=13, num_labels=5, layer_norm_eps=1e-6)
    model = parity.randomise(transformers.ViTForImageClassification(config))
    model.save_pretrained(tmp_path)
    arrays = transformer_to_timm(parity.loaded(tmp_path)[0], "vit.")
    layout = timm.detect(parity.shapes_of(arrays), ARGUMENTS)
    images = parity.random_images(3, 21, 21, 3)
    parity.assert_close(
        parity.run_ours(layout.model, parity.converted(layout, arrays), images), parity.run_theirs(model, images).logits
    )


def vit_shapes(d: int, f: int, depth: int, patch: int, rows: int) -> Shapes:
    """Without a head."""
    shapes: Shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, rows, d),
        "patch_embed.proj.weight": (d, 3, patch, patch),
    }
    shapes |= {"patch_embed.proj.bias": (d,)} | files.norm("norm", d)
    for i in range(depth):
        block = f"blocks.{i}."
        shapes |= files.norm(f"{block}norm1", d) | files.norm(f"{block}norm2", d)
        shapes |= files.linear(f"{block}attn.qkv", d, 3 * d) | files.linear(f"{block}attn.proj", d, d)
        shapes |= files.linear(f"{block}mlp.fc1", d, f) | files.linear(f"{block}mlp.fc2", f, d)
    return shapes


def test_published_vit_base():
    shapes = vit_shapes(768, 3072, 12, 16, 197) | files.linear("head", 768, 1000)
    details = {"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center"}
    details |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "vit_base_patch16_224", "global_pool": "token", "pretrained_cfg": details}
    layout = timm.detect(shapes, {"config.json": config})
    assert layout.model["name"] == "vit/B16" and layout.model["num_classes"] == 1000
    assert (layout.grid, layout.model["activation"]) == ((14, 14), "gelu")
    assert layout.preprocessing == Preprocessing((224, 224), "crop", 224 / 248, "bicubic", **HALF)
    assert files.our_shapes(layout, shapes) == parameter_shapes(layout.model, (224, 224, 3))


def without_class_token(shapes: Shapes) -> Shapes:
    return {key: shape for key, shape in shapes.items() if key != "cls_token"}


def test_average_pooling_after_the_norm():
    shapes = without_class_token(vit_shapes(130, 13, 2, 7, 15)) | files.linear("head", 130, 5)
    shapes["reg_token"] = (1, 3, 130)
    config = {"global_pool": "avg", "model_args": {"num_heads": 2}, "pretrained_cfg": {"input_size": [3, 21, 35]}}
    layout = timm.detect(shapes, {"config.json": config})
    assert (layout.model["pooling"], layout.model["class_token"], layout.grid) == ("gap", False, (3, 5))
    assert files.our_shapes(layout, shapes) == parameter_shapes(layout.model, (21, 35, 3))


def test_qk_norm_pre_logits_and_heads_of_another_size():
    shapes = vit_shapes(22, 13, 2, 7, 10) | files.linear("pre_logits.fc", 22, 17) | files.linear("head", 17, 5)
    for i in range(2):
        shapes |= {f"blocks.{i}.attn.{part}_norm.weight": (7,) for part in "qk"}
        shapes |= {f"blocks.{i}.attn.qkv.weight": (63, 22), f"blocks.{i}.attn.proj.weight": (22, 21)}
        del shapes[f"blocks.{i}.attn.qkv.bias"]
    layout = timm.detect(shapes, {"config.json": {"model_args": {"num_heads": 3}}})
    fields = ("qk_norm", "qkv_bias", "num_heads", "head_dim", "pre_logits")
    assert [layout.model[field] for field in fields] == [True, False, 3, 7, 17]
    assert files.our_shapes(layout, shapes) == parameter_shapes(layout.model, (21, 21, 3))


def test_preprocessing_at_the_top_of_an_old_config_and_label_names():
    config = {"input_size": [3, 21, 21], "crop_pct": 0.7, "crop_mode": "squash", "mean": [0.1, 0.2, 0.3]}
    config |= {"interpolation": "bilinear", "label_names": ["ant", "bee", "cat", "dog", "elk"]}
    shapes = parity.shapes_of(transformer_to_timm(files.arrays(VIT), "vit."))
    layout = timm.detect(shapes, {"config.json": config | {"model_args": {"num_heads": 2}}})
    mean = (0.1, 0.2, 0.3)
    assert layout.preprocessing == Preprocessing((21, 21), "stretch", 0.7, "bilinear", mean, (0.5, 0.5, 0.5))
    assert layout.class_names == ("ant", "bee", "cat", "dog", "elk")
    assert timm.class_names({"label_names": {"1": "bee", "0": "ant"}}, 2) == ("ant", "bee")
    assert timm.class_names({"label_names": {"1": "bee", "3": "ant"}}, 2) == ()
    assert timm.class_names({"label_names": ["ant"]}, 2) == ()


@pytest.mark.parametrize(
    ("shapes", "config", "message"),
    [
        ({"norm_pre.weight": (130,)}, {}, "no model here has a place for norm_pre.weight"),
        ({}, {"architecture": "vit_base_patch16_clip_quickgelu_224"}, "vit_base_patch16_clip_quickgelu_224 of config"),
        ({}, {"architecture": "vit_base_patch16_rpn_224"}, "vit_base_patch16_rpn_224 of config"),
        ({}, {"model_args": {"num_heads": 2, "act_layer": "silu"}}, "act_layer='silu' of config.json is not among"),
        ({}, {"global_pool": "map"}, "global_pool='map' of config.json; known: token, avg"),
        ({}, {"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode='border' .* expected center or squash"),
        (
            {},
            {"pretrained_cfg": {"interpolation": "nearest"}},
            "interpolation='nearest' .* expected bilinear or bicubic",
        ),
        ({}, {"pretrained_cfg": {"input_size": [3, 28, 28]}}, "10 positions, which are not the grid of a 28x28 image"),
        ({"blocks.1.attn.q_norm.weight": (65,)}, {}, "no model here has a place for blocks.1.attn.q_norm.weight"),
        ({"blocks.1.mlp.fc2.weight": (130, 17)}, {}, r"\(130, 17\), but the other arrays imply \(130, 13\)"),
        ({}, {"model_args": {}}, 'width of 130 does not tell the number of heads; the field "model_args"'),
        ({}, {"model_args": {"num_heads": 3}}, "3 heads do not divide the queries' 130 channels"),
    ],
)
def test_contradictions_and_unknown_variants_are_explained(shapes, config, message):
    with pytest.raises(UserError, match=message):
        timm.detect(vit_shapes(130, 13, 2, 7, 10) | shapes, {"config.json": {"model_args": {"num_heads": 2}} | config})


def test_64_channels_are_no_sign_of_one_head():
    with pytest.raises(UserError, match="width of 64 does not tell the number of heads"):
        timm.detect(vit_shapes(64, 13, 2, 7, 10), {})


def test_other_files_are_not_taken():
    assert timm.detect(VIT, {}) is None
    assert timm.detect({"Transformer/encoder_norm/scale": (8,)}, {}) is None


def test_a_norm_after_pooling():
    shapes = without_class_token(vit_shapes(130, 13, 2, 7, 9)) | files.linear("head", 130, 5)
    shapes = {
        key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: shape for key, shape in shapes.items()
    }
    layout = timm.detect(shapes, {"config.json": {"global_pool": "avg", "model_args": {"num_heads": 2}}})
    assert (layout.model["norm_after_pooling"], layout.model["pooling"]) == (True, "gap")
    assert files.our_shapes(layout, shapes) == parameter_shapes(layout.model, (21, 21, 3))


@pytest.mark.parametrize("name", ["resnetaa50", "resnetblur50"])
def test_resnets_that_pool_where_others_stride_are_refused(name):
    """Their arrays are those of a ResNet-50."""
    shapes = {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 1, 1)}
    with pytest.raises(UserError, match=f"{name} of config.json is not among the models here"):
        timm.detect(shapes, {"config.json": {"architecture": name}})

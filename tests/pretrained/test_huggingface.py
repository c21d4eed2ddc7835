"""Hugging Face's layout: the outputs of `transformers`' models; what keys, shapes and side files tell."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tests.pretrained import huggingface_files as files
from tests.pretrained import parity
from vit_jax.command import UserError
from vit_jax.data import resizing
from vit_jax.pretrained import Weights, huggingface, open_weights, parameter_shapes
from vit_jax.pretrained.huggingface import processor
from vit_jax.pretrained.layout import Preprocessing

SHAPE = (21, 35, 3)
IMAGES = parity.random_images(3, *SHAPE)
SIZES = {"hidden_size": 22, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SHAPE[:2], "patch_size": 7}
TINY = {**SIZES, "num_labels": 5}
VIT = {**TINY, "intermediate_size": 13}
SQUARE = {"image_size": 21}  # the only images whose positions `transformers`' DINOv2 and MAE can take
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture(scope="module")
def transformers() -> Any:
    module = pytest.importorskip("transformers")
    module.utils.logging.disable_progress_bar()
    return module


def compared(model: Any, folder: Path, images: np.ndarray = IMAGES) -> tuple[Weights, np.ndarray, Any]:
    """What is read of a model that `save_pretrained` wrote with random weights, our output and its."""
    parity.randomise(model).save_pretrained(folder)
    weights = open_weights(str(folder))
    return weights, parity.run_ours(weights.model, weights.read(), images), parity.run_theirs(model, images)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu_new", "qkv_bias": False, "layer_norm_eps": 0.3}])
def test_vit(transformers, tmp_path, changes):
    names = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}
    config = transformers.ViTConfig(**VIT | changes, id2label=names)
    weights, ours, theirs = compared(transformers.ViTForImageClassification(config), tmp_path)
    parity.assert_close(ours, theirs.logits)
    assert weights.class_names == ("ant", "bee", "cat", "dog", "elk")
    assert (weights.grid, weights.preprocessing.size) == ((3, 5), (21, 35))
    assert weights.model["name"] == "vit" and weights.model["qkv_bias"] == ("qkv_bias" not in changes)


@pytest.mark.slow
def test_vit_base_at_its_full_size(transformers):
    config = transformers.ViTConfig(num_labels=1000)
    model = parity.randomise(transformers.ViTForImageClassification(config))
    arrays, images = parity.in_memory(model), parity.random_images(1, 224, 224, 3)
    layout = huggingface.detect(parity.shapes_of(arrays), {"config.json": config.to_dict()})
    ours = parity.run_ours(layout.model, parity.converted(layout, arrays), images, jax.jit)
    parity.assert_close(ours, parity.run_theirs(model, images).logits)
    assert layout.model["name"] == "vit/B16" and layout.model["num_classes"] == 1000


@pytest.mark.slow
def test_a_model_without_a_head_returns_the_class_token(transformers, tmp_path):
    weights, ours, theirs = compared(transformers.ViTModel(transformers.ViTConfig(**VIT)), tmp_path)
    parity.assert_close(ours, theirs.last_hidden_state[:, 0])
    assert weights.model["num_classes"] == 0 and weights.class_names == ()


@pytest.mark.slow
def test_vit_mae_is_a_vit_with_a_decoder_that_nothing_reads(transformers, tmp_path):
    decoder = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    config = transformers.ViTMAEConfig(**VIT | {"hidden_size": 24, **SQUARE}, **decoder, mask_ratio=0.0)
    model = parity.randomise(transformers.ViTMAEForPreTraining(config))
    model.save_pretrained(tmp_path)
    weights, images = open_weights(str(tmp_path)), IMAGES[:, :, :21]
    theirs = parity.run_theirs(model.vit, images).last_hidden_state[:, 0]  # whatever the order of the patches
    parity.assert_close(parity.run_ours(weights.model, weights.read(), images), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["DeiTForImageClassificationWithTeacher", "DeiTForImageClassification", "DeiTModel"])
def test_deit(transformers, tmp_path, head):
    weights, ours, theirs = compared(getattr(transformers, head)(transformers.DeiTConfig(**VIT)), tmp_path)
    if head == "DeiTModel":
        parity.assert_close(ours, theirs.last_hidden_state[:, :2].mean(dim=1))
    else:
        parity.assert_close(ours, theirs.logits)
    assert weights.model["name"] == "deit" and weights.preprocessing.mean == IMAGENET["mean"]


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2(transformers, tmp_path, gated, registers):
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    extra = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(**SIZES | SQUARE, mlp_ratio=3, use_swiglu_ffn=gated, **extra)
    weights, ours, theirs = compared(getattr(transformers, f"{kind}Model")(config), tmp_path, IMAGES[:, :, :21])
    parity.assert_close(ours, theirs.last_hidden_state[:, 0])
    assert (weights.model["activation"], weights.model["registers"]) == ("swiglu" if gated else "gelu", registers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Dinov2-gated"])
def test_names_of_transformers_5_in_memory(transformers, kind):
    config = transformers.ViTConfig(**VIT | SQUARE)
    if kind != "ViT":
        config = transformers.Dinov2Config(**SIZES | SQUARE, use_swiglu_ffn=kind == "Dinov2-gated")
    model = parity.randomise(getattr(transformers, f"{kind.removesuffix('-gated')}Model")(config))
    arrays = parity.in_memory(model)
    layout = huggingface.detect(parity.shapes_of(arrays), {"config.json": config.to_dict()})
    theirs = parity.run_theirs(model, IMAGES[:, :, :21]).last_hidden_state[:, 0]
    parity.assert_close(parity.run_ours(layout.model, parity.converted(layout, arrays), IMAGES[:, :, :21]), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("layer_type", ["bottleneck", "basic"])
def test_resnet(transformers, tmp_path, layer_type):
    widths = [28, 56, 112] if layer_type == "bottleneck" else [7, 14, 28]
    config = transformers.ResNetConfig(
        embedding_size=7, hidden_sizes=widths, depths=[2, 1, 3], layer_type=layer_type, num_labels=5
    )
    images = parity.random_images(2, 50, 78, 3)
    weights, ours, theirs = compared(transformers.ResNetForImageClassification(config), tmp_path, images)
    parity.assert_close(ours, theirs.logits)
    assert weights.model["stage_sizes"] == (2, 1, 3) and weights.model["bottleneck"] == (layer_type == "bottleneck")


@pytest.mark.slow
def test_bit(transformers, tmp_path):
    config = transformers.BitConfig(embedding_size=32, hidden_sizes=[128, 256, 512], depths=[2, 1, 2], num_labels=5)
    images = parity.random_images(2, 50, 78, 3)
    weights, ours, theirs = compared(transformers.BitForImageClassification(config), tmp_path, images)
    parity.assert_close(ours, theirs.logits)
    assert weights.model["stage_sizes"] == (2, 1, 2) and weights.preprocessing.mean == HALF["mean"]


def labels(count: int, name: str = "LABEL_{}") -> dict[str, dict[str, str]]:
    return {"id2label": {str(label): name.format(label) for label in range(count)}}


def test_published_vit_base():
    shapes = files.vit(768, 3072, 12, 16, 197) | files.linear("classifier", 768, 1000)
    config = {"model_type": "vit", "image_size": 224, "num_attention_heads": 12, "hidden_act": "gelu"}
    given = {"do_normalize": True, "do_resize": True, "size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    about = {"config.json": config | labels(1000, "class {}"), "preprocessor_config.json": given}
    layout = huggingface.detect(shapes, about)
    assert layout.model["name"] == "vit/B16" and layout.model["num_classes"] == 1000
    assert (layout.model["norm_epsilon"], layout.model["activation"]) == (1e-12, "gelu")
    assert (layout.grid, layout.class_names[999], len(layout.class_names)) == ((14, 14), "class 999", 1000)
    assert layout.preprocessing == Preprocessing((224, 224), "stretch", 1.0, "bilinear", **HALF)
    assert files.our_shapes(layout, shapes) == parameter_shapes(layout.model, (224, 224, 3))


def test_published_deit_base_distilled():
    shapes = files.deit(768, 3072, 12, 16, 198, 1000)
    given = {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "crop_size": 224,
        "do_center_crop": True,
        "size": 256,
        "resample": 3,
        "image_mean": IMAGENET["mean"],
        "image_std": IMAGENET["std"],
    }
    config = {"model_type": "deit", "image_size": 224, "num_attention_heads": 12} | labels(1000)
    layout = huggingface.detect(shapes, {"config.json": config, "preprocessor_config.json": given})
    assert layout.model["name"] == "deit/B16" and layout.grid == (14, 14) and layout.class_names == ()
    assert layout.preprocessing == Preprocessing((224, 224), "stretch", 0.875, "bicubic", **IMAGENET)


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
def test_published_dinov2_giant(registers):
    shapes = files.dinov2(1536, 4096, 40, 14, 37 * 37 + 1, gated=True, registers=registers)
    kind = "dinov2_with_registers" if registers else "dinov2"
    config = {"model_type": kind, "image_size": 518, "num_attention_heads": 24, "layerscale_value": 1.0}
    given = {
        "image_processor_type": "BitImageProcessor",
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "image_mean": list(IMAGENET["mean"]),
        "image_std": list(IMAGENET["std"]),
        "rescale_factor": 0.00392156862745098,
    }
    layout = huggingface.detect(shapes, {"config.json": config, "preprocessor_config.json": given})
    assert (layout.model["mlp_dim"], layout.model["activation"]) == (4096, "swiglu")
    assert (layout.model["registers"], layout.model["norm_epsilon"], layout.grid) == (registers, 1e-6, (37, 37))
    assert layout.preprocessing == Preprocessing((224, 224), "crop", 0.875, "bicubic", **IMAGENET)


@pytest.mark.parametrize(
    ("name", "stages", "bottleneck"),
    [("18", (2, 2, 2, 2), False), ("50", (3, 4, 6, 3), True), ("", (2, 2, 2, 2), True)],
)
def test_published_resnets(name, stages, bottleneck):
    given = {
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "crop_pct": 0.875,
        "size": 224,
        "resample": 3,
        "image_mean": IMAGENET["mean"],
        "image_std": IMAGENET["std"],
    }
    config = {"model_type": "resnet", "hidden_act": "relu", "downsample_in_first_stage": False} | labels(1000, "n{}")
    about = {"config.json": config, "preprocessor_config.json": given}
    shapes = files.resnet(64, stages, bottleneck, 1000)
    layout = huggingface.detect(shapes, about)
    assert layout.model["name"] == ("resnet/" + name).rstrip("/") and layout.class_names[7] == "n7"
    assert layout.preprocessing == Preprocessing((224, 224), "crop", 0.875, "bicubic", **IMAGENET)
    assert files.our_shapes(layout, shapes) == parameter_shapes(layout.model, (224, 224, 3))


@pytest.mark.slow
def test_published_bit():
    shapes = files.bit(64, (3, 4, 6, 3), 1000)
    layout = huggingface.detect(shapes, {"config.json": {"model_type": "bit"}})
    assert layout.model["name"] == "bit/50x1" and layout.grid == (0, 0)
    assert layout.preprocessing == Preprocessing((448, 448), "crop", 1.0, "bilinear", **HALF)
    assert files.our_shapes(layout, shapes) == parameter_shapes(layout.model, (224, 224, 3))


@pytest.mark.slow
def test_without_side_files_published_sizes_tell_the_heads_and_the_rest_is_usual():
    layout = huggingface.detect(files.vit(1280, 5120, 32, 14, 257, prefix=""), {})
    assert layout.model["name"] == "vit/H14" and layout.grid == (16, 16)
    assert layout.preprocessing == Preprocessing((224, 224), "stretch", 1.0, "bilinear", **HALF)
    layout = huggingface.detect(files.vit(320, 640, 2, 7, 10), {})
    assert (layout.model["name"], layout.model["num_heads"]) == ("vit", 5)


def test_other_files_are_not_taken():
    assert huggingface.detect({"Transformer/encoder_norm/scale": (8,), "blocks.0.attn.qkv.weight": (24, 8)}, {}) is None
    assert huggingface.detect({"model.vision.embeddings.patch_embeddings.projection.weight": (8, 3, 7, 7)}, {}) is None


def tiny() -> files.Shapes:
    return files.vit(22, 13, 2, 7, 10) | files.linear("classifier", 22, 5)


@pytest.mark.parametrize(
    ("shapes", "config", "message"),
    [
        ({}, {"num_attention_heads": 3}, "3 heads do not divide the queries' 22 channels"),
        ({}, {"num_attention_heads": None}, "width of 22 does not tell the number of heads; a config.json"),
        ({}, {"image_size": 28}, r"10 positions, which are not the grid of a 28x28 image of 7x7 patches"),
        ({"vit.embeddings.position_embeddings": (1, 12, 22)}, {}, "12 positions, which are not a square grid"),
        ({"vit.encoder.layer.1.output.dense.weight": (22, 17)}, {}, r"\(22, 17\), but the other arrays .* \(22, 13\)"),
        ({"vit.encoder.layer.1.output.dense.weight": None}, {}, r"layer.1.output.dense.weight is missing"),
        ({"vit.layernorm.bias": None}, {}, "vit.layernorm.bias is missing, which the other arrays imply"),
        ({"vit.encoder.layer.3.output.dense.bias": (22,)}, {}, "block 2 is missing, but there is block 3"),
        ({"vit.embeddings.cls_token": None}, {}, "vit.embeddings.cls_token is missing"),
        ({"vit.embeddings.detection_tokens": (1, 3, 22)}, {}, "no model here has a place for vit.embeddings.detection"),
        ({"vit.embeddings.patch_embeddings.projection.weight": (22, 147)}, {}, r"\(22, 147\), not \[d c p q\]"),
        ({"vit.encoder.layer.0.intermediate.dense.weight": None}, {}, "layer.0 have no names that are known"),
    ],
)
def test_contradictions_and_unknown_variants_are_explained(shapes, config, message):
    changed = {key: shape for key, shape in (tiny() | shapes).items() if shape is not None}
    assert huggingface.detect(tiny(), {"config.json": {"num_attention_heads": 2}}) is not None
    with pytest.raises(UserError, match=message):
        huggingface.detect(changed, {"config.json": {"num_attention_heads": 2} | config})


@pytest.mark.parametrize(
    ("shapes", "config", "message"),
    [
        (files.resnet(7, (1,), True, 5), {"downsample_in_bottleneck": True}, "downsample_in_bottleneck=True"),
        (files.resnet(7, (1,), True, 5), {"hidden_act": "gelu"}, "hidden_act='gelu' of config.json; expected 'relu'"),
        (files.bit(32, (1,), 5), {"layer_type": "bottleneck"}, "layer_type='bottleneck'"),
        (files.bit(32, (1,), 5), {"global_padding": "SAME"}, "global_padding='SAME' .* expected None"),
        (
            files.resnet(7, (1,), True, 5) | {"resnet.embedder.embedder.convolution.weight": (7, 3, 3, 3)},
            {},
            "first convolution is 3x3, not 7x7",
        ),
        (
            files.resnet(7, (1, 1), True, 5)
            | {"resnet.encoder.stages.1.layers.0.layer.1.convolution.weight": (9, 9, 3, 3)},
            {},
            r"\(9, 9, 3, 3\), but the other arrays imply \(14, 14, 3, 3\)",
        ),
    ],
)
def test_variants_of_convolutional_models_that_compute_something_else(shapes, config, message):
    with pytest.raises(UserError, match=message):
        huggingface.detect(shapes, {"config.json": config})


DEFAULT = Preprocessing((21, 35), "crop", 0.5, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"do_resize": False, "resample": 2}, {"interpolation": "bilinear", "resize": "stretch", "crop_fraction": 1.0}),
        ({"size": {"height": 224, "width": 192}}, {"size": (224, 192), "resize": "stretch", "crop_fraction": 1.0}),
        (
            {"size": {"height": 256, "width": 320}, "crop_size": {"height": 224, "width": 280}, "do_center_crop": True},
            {"size": (224, 280), "resize": "stretch", "crop_fraction": 0.875},
        ),
        ({"size": {"height": 20, "width": 30}}, {"size": (20, 30), "resize": "stretch", "crop_fraction": 1.0}),
        ({"size": {"shortest_edge": 20}}, {"size": (20, 20), "crop_fraction": 1.0}),
        (
            {"size": 20, "image_processor_type": "ViTImageProcessor"},
            {"size": (20, 20), "resize": "stretch", "crop_fraction": 1.0},
        ),
        ({"size": 20, "feature_extractor_type": "BitFeatureExtractor"}, {"size": (20, 20), "crop_fraction": 1.0}),
        ({"size": 384, "crop_pct": 0.9}, {"size": (384, 384), "resize": "stretch", "crop_fraction": 1.0}),
        ({"size": {"shortest_edge": 20}, "crop_pct": 0.7}, {"size": (20, 20), "crop_fraction": 20 / 28}),
        (
            {"size": {"shortest_edge": 20}, "image_processor_type": "ConvNextImageProcessor"},
            {"size": (20, 20), "crop_fraction": 20 / 22},
        ),
        (
            {"size": {"shortest_edge": 25}, "crop_size": 20, "do_center_crop": True},
            {"size": (20, 20), "crop_fraction": 0.8},
        ),
        (
            {"size": {"shortest_edge": 25}, "crop_size": 20, "do_center_crop": False},
            {"size": (25, 25), "crop_fraction": 1.0},
        ),
        ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({"image_mean": 0.7, "image_std": [0.6]}, {"mean": (0.7,) * 3, "std": (0.6,) * 3}),
        ({"rescale_factor": 0.00392156862745098}, {}),
        ({"rescale_factor": 2 / 255, "image_mean": [1, 1, 1]}, {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.25, 0.3)}),
        ({"do_rescale": False, "image_mean": 51, "image_std": 255}, {"mean": (0.2,) * 3, "std": (1.0,) * 3}),
    ],
)
def test_preprocessing(given, expected):
    assert processor.read(given, DEFAULT) == dataclasses.replace(DEFAULT, **expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 20, "do_center_crop": True, "crop_size": 21}, r"crop_size=\(21, 21\) exceeds size=\(20, 20\)"),
        (
            {"size": 256, "do_center_crop": True, "crop_size": {"height": 224, "width": 192}},
            r"crop_size=\(224, 192\) of size=\(256, 256\) is not supported",
        ),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 192}},
            r"crop_size=\(224, 192\) of a shorter side of 256 is not supported",
        ),
    ],
)
def test_preprocessing_that_is_not_supported(given, message):
    with pytest.raises(UserError, match=message):
        processor.read(given, DEFAULT)


@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (333, 517)])
def test_photos_have_the_pixels_of_processors_that_crop(shape):
    """Scaled as a whole, of the longer side the fraction is dropped, then cut: also where the crop takes it all."""
    pixels = np.random.default_rng(31).integers(0, 256, (*shape, 3), np.uint8)
    bilinear = dataclasses.replace(DEFAULT, interpolation="bilinear")
    view = processor.read({"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32}, bilinear)
    found = resizing.resize(pixels, view.size, view.resize, view.crop_fraction, view.interpolation)
    height, width = (int(32 * side / min(shape)) for side in shape)
    top, left = (height - 32) // 2, (width - 32) // 2
    whole = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, whole[top : top + 32, left : left + 32])


@pytest.mark.parametrize(
    ("classes", "problem_type", "loss"),
    [
        (5, None, "softmax"),
        (5, "single_label_classification", "softmax"),
        (5, "multi_label_classification", "sigmoid"),
        (1, None, "sigmoid"),
        (1, "single_label_classification", "sigmoid"),
        (0, "regression", "softmax"),
    ],
)
def test_what_the_logits_mean(classes, problem_type, loss):
    head = files.linear("classifier", 6, classes) if classes else {}
    shapes = files.vit(6, 13, 1, 4, 5) | head
    config = {"num_attention_heads": 2, "problem_type": problem_type}
    assert huggingface.detect(shapes, {"config.json": config}).loss == loss


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_smooths_positions_with_registers_alone(registers):
    shapes = files.dinov2(6, 13, 1, 4, 5, gated=False, registers=registers)
    found = huggingface.detect(shapes, {"config.json": {"num_attention_heads": 2}})
    assert found.antialias == bool(registers)


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_with_head(transformers, tmp_path, registers):
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    extra = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(**TINY | SQUARE, **extra)
    w, ours, theirs = compared(
        getattr(transformers, f"{kind}ForImageClassification")(config), tmp_path, IMAGES[:, :, :21]
    )
    parity.assert_close(ours, theirs.logits)

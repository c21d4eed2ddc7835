"""ResNet and BiT of `transformers`."""

from collections.abc import Mapping
from typing import Any

from vit_jax.command import UserError
from vit_jax.pretrained.huggingface import processor
from vit_jax.pretrained.huggingface.config import NAME, class_names, loss
from vit_jax.pretrained.layout import HALF, IMAGENET, Layout, Preprocessing, Shape, complete, preprocessing
from vit_jax.pretrained.pytorch.resnet import BIT_UNIT, COUNTERS, Names, read, read_bit
from vit_jax.pretrained.pytorch.table import Table

About = Mapping[str, Mapping[str, Any]]

RESNET = Names(
    stem=("embedder.embedder.convolution", "embedder.embedder.normalization"),
    block="encoder.stages.{stage}.layers.{block}.",
    layer=("layer.{}.convolution", "layer.{}.normalization"),
    shortcut=("shortcut.convolution", "shortcut.normalization"),
    first=(0, 0),
)
BIT = Names(("embedder.convolution",), RESNET.block, *BIT_UNIT)
# What the models here compute; shapes do not tell.
RESNET_CONFIG = {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False}
BIT_CONFIG = {
    "hidden_act": "relu",
    "layer_type": "preactivation",
    "global_padding": None,
    "embedding_dynamic_padding": False,
    "num_groups": 32,
    "output_stride": 32,
    "width_factor": 1,
}


def resnet(shapes: Mapping[str, Shape], prefix: str, about: About) -> Layout:
    """The layout of a ResNet whose keys, but the head's, begin with `prefix`."""
    _check(about, RESNET_CONFIG)
    table, model, channels = read(NAME, shapes, RESNET, prefix, "classifier.1")
    return _layout(table, model, about, preprocessing((224, 224), "crop", 0.875, "bicubic", IMAGENET, channels))


def bit(shapes: Mapping[str, Shape], prefix: str, about: About) -> Layout:
    """The layout of a BiT network whose keys, but the head's, begin with `prefix`.

    `transformers` adds 1e-8 to a kernel's variance, the authors' code and the model here 1e-10.
    """
    _check(about, BIT_CONFIG)
    table, model, channels = read_bit(NAME, shapes, BIT, prefix, "classifier.1")
    return _layout(table, model, about, preprocessing((448, 448), "crop", 1.0, "bilinear", HALF, channels))


def _check(about: About, expected: Mapping[str, Any]) -> None:
    """Raises `UserError` if config.json tells of a variant that computes something else."""
    for field, value in expected.items():
        given = about.get("config.json", {}).get(field, value)
        if given != value:
            raise UserError(f"{NAME}: no model here has {field}={given!r} of config.json; expected {value!r}")


def _layout(table: Table, model: dict[str, Any], about: About, usual: Preprocessing) -> Layout:
    view = processor.read(about.get("preprocessor_config.json", {}), usual)
    config, k = about.get("config.json", {}), model["num_classes"]
    found = Layout(NAME, model, (0, 0), view, class_names(config, k), loss=loss(config, k))
    return complete(found, table.shapes, table.entry, COUNTERS)

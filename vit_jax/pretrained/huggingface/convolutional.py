"""ResNet and BiT of `transformers`."""

from collections.abc import Mapping
from typing import Any

from vit_jax.command import UserError
from vit_jax.pretrained.huggingface import processor
from vit_jax.pretrained.huggingface.config import NAME, class_names
from vit_jax.pretrained.layout import Layout, Preprocessing
from vit_jax.pretrained.pytorch import resnet as pytorch_resnet
from vit_jax.pretrained.pytorch.resnet import COUNTERS, Names
from vit_jax.pretrained.pytorch.table import IMAGENET_MEAN, IMAGENET_STD, Shape, Table, per_channel

About = Mapping[str, Mapping[str, Any]]

RESNET = Names(
    stem=("embedder.embedder.convolution", "embedder.embedder.normalization"),
    block="encoder.stages.{stage}.layers.{block}.",
    layer=("layer.{}.convolution", "layer.{}.normalization"),
    shortcut=("shortcut.convolution", "shortcut.normalization"),
    first=0,
)
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
    table = Table(NAME, shapes)
    model, width = pytorch_resnet.read(table.inside(prefix), RESNET)
    channels = table.inside(prefix).shape(f"{RESNET.stem[0]}.weight", "d c p q")[1]
    mean, std = per_channel(IMAGENET_MEAN, channels), per_channel(IMAGENET_STD, channels)
    usual = Preprocessing((224, 224), "crop", 0.875, "bicubic", mean, std)
    return _layout(table, model, width, about, usual)


def bit(shapes: Mapping[str, Shape], prefix: str, about: About) -> Layout:
    """The layout of a BiT network whose keys, but the head's, begin with `prefix`.

    `transformers` adds 1e-8 to a kernel's variance, the authors' code and the model here 1e-10.
    """
    _check(about, BIT_CONFIG)
    table = Table(NAME, shapes)
    model, width = pytorch_resnet.read_bit(
        table.inside(prefix), "embedder.convolution", "encoder.stages.{stage}.layers.{block}."
    )
    half = per_channel(0.5, table.inside(prefix).shape("embedder.convolution.weight", "d c p q")[1])
    return _layout(table, model, width, about, Preprocessing((448, 448), "crop", 1.0, "bilinear", half, half))


def _check(about: About, expected: Mapping[str, Any]) -> None:
    """Raises `UserError` if config.json tells of a variant that computes something else."""
    for field, value in expected.items():
        given = about.get("config.json", {}).get(field, value)
        if given != value:
            raise UserError(f"{NAME}: no model here has {field}={given!r} of config.json; expected {value!r}")


def _layout(table: Table, model: dict[str, Any], width: int, about: About, usual: Preprocessing) -> Layout:
    config = about.get("config.json", {})
    classes = table.shape("classifier.1.weight", "k c")[0] if table.has("classifier.1.weight") else 0
    if classes:
        table.linear("params/head", "classifier.1", width, classes)
    return Layout(
        NAME,
        {**model, "num_classes": classes},
        (0, 0),
        processor.read(about.get("preprocessor_config.json", {}), usual),
        table.finish((COUNTERS,)),
        (COUNTERS,),
        class_names(config, classes),
    )

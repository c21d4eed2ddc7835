"""timm's safetensors files, and others that name their arrays so: ViT, distilled DeiT, ResNet, BiT.

github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py, deit.py, resnet.py and resnetv2.py.
torchvision's ResNets have the same keys, facebookresearch's DINOv2 nearly. Shapes tell the architecture, config.json
(timm's `architecture` and `pretrained_cfg`) the preprocessing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from vit_jax.command import UserError
from vit_jax.pretrained.layout import Layout, Preprocessing
from vit_jax.pretrained.pytorch import resnet, transformer
from vit_jax.pretrained.pytorch.table import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Shape,
    Table,
    pair,
    per_channel,
    settings,
)
from vit_jax.pretrained.pytorch.transformer import Names

NAME = "timm"

VIT = Names(
    patches="patch_embed.proj",
    cls="cls_token",
    dist="dist_token",
    registers="reg_token",
    pos_embed="pos_embed",
    norm="norm",
    pooled_norm="fc_norm",
    block="blocks.",
    norms=("norm1", "norm2"),
    projections=("attn.qkv",) * 3,
    out="attn.proj",
    qk_norms=("attn.q_norm", "attn.k_norm"),
    layers=("mlp.fc1", "mlp.fc2"),
    gate="",
    scales=("ls1.gamma", "ls2.gamma"),
)
GATED = replace(VIT, layers=("mlp.fc1_x", "mlp.fc2"), gate="mlp.fc1_g")
DINOV2 = replace(VIT, registers="register_tokens")  # as facebookresearch names them
DINOV2_GATED = replace(DINOV2, layers=("mlp.w12", "mlp.w3"))
RESNET = resnet.Names(
    stem=("conv1", "bn1"),
    block="layer{stage}.{block}.",
    layer=("conv{}", "bn{}"),
    shortcut=("downsample.0", "downsample.1"),
    first=1,
)
PREFIXES = ("", "timm_model.")  # the second: saved by transformers' wrapper
# Variants whose activation or attention shapes do not tell.
OTHERS = ("quickgelu", "siglip", "clip", "rope", "beit", "eva", "_rpn")
OTHER_RESNETS = ("resnetaa", "resnetblur")  # which pool where ResNets stride
ARGUMENTS = ("act_layer", "norm_layer", "attn_layer", "mlp_layer", "block_fn")  # of model_args: nor do they
UNUSED = ("mask_token",)  # of DINOv2's pre-training


def detect(shapes: Mapping[str, Shape], about: Mapping[str, Mapping[str, Any]]) -> Layout | None:
    """The layout of a timm file with these keys and shapes; None if it is something else.

    Raises `UserError` for shapes that contradict each other, and for models that are not among ours.
    """
    config = about.get("config.json", {})
    for prefix in PREFIXES:
        table = Table(NAME, shapes).inside(prefix)
        if table.has("patch_embed.proj.weight") and table.has("blocks.0.norm1.weight"):
            return _transformer(table, config)
        if table.has("layer1.0.conv1.weight"):
            return _resnet(table, config)
        if table.has("stages.0.blocks.0.conv1.weight") and table.has("stem.conv.weight"):
            return _bit(table, config)
    return None


def _transformer(table: Table, config: Mapping[str, Any]) -> Layout:
    _refuse(config, OTHERS)
    names = _names(table)
    found = transformer.fields(table, names)
    sizes = {field: found.pop(field) for field in ("patch_size", "width", "depth", "mlp_dim")}
    arguments = config.get("model_args", {})
    if strange := [name for name in ARGUMENTS if arguments.get(name)]:
        raise UserError(f"{NAME}: {strange[0]}={arguments[strange[0]]!r} of config.json is not among the models here")
    where = 'the field "model_args": {"num_heads": ...} of a config.json beside the file'
    attention = transformer.num_heads(table, names, arguments.get("num_heads"), where)
    classes = table.shape("head.weight", "k d")[0] if table.has("head.weight") else 0
    model = settings(
        "deit" if found["distillation_token"] else "vit",
        {**sizes, "num_heads": attention.pop("num_heads")},
        num_classes=classes,
        layer_scale=float(arguments.get("init_values") or 1e-5) if table.has(f"blocks.0.{names.scales[0]}") else 0.0,
        pooling=_pooling(config, found["class_token"]),
        pre_logits=table.shape("pre_logits.fc.weight", "r d")[0] if table.has("pre_logits.fc.weight") else 0,
        **found,
        **attention,
    )
    _, channels, *patch = table.shape(f"{names.patches}.weight", "d c p q")
    size = _size(config)
    grid, pos_embed = transformer.grid(table, names, model, size)
    transformer.add(table, names, model, channels, table.shape(names.pos_embed, "1 l d")[1], pos_embed)
    _add_heads(table, model)
    usual = _preprocessing(model, channels, (grid[0] * patch[0], grid[1] * patch[1]))
    return Layout(
        NAME, model, grid, preprocessing(config, usual), table.finish(UNUSED), UNUSED, class_names(config, classes)
    )


def _refuse(config: Mapping[str, Any], others: Sequence[str]) -> None:
    """Raises `UserError` for an architecture that is named otherwise, but has the shapes of one of ours."""
    if other := next((word for word in others if word in config.get("architecture", "")), None):
        raise UserError(f"{NAME}: {config['architecture']} of config.json is not among the models here ({other})")


def _names(table: Table) -> Names:
    block = table.inside("blocks.0.")
    if block.has("mlp.w12.weight"):
        return DINOV2_GATED
    if block.has("mlp.fc1_g.weight"):
        return GATED
    return DINOV2 if table.has(DINOV2.registers) else VIT


def _pooling(config: Mapping[str, Any], class_token: bool) -> str:
    """How the tokens become one: by config.json, else by whether there is a class token."""
    given = config.get("global_pool") or ("token" if class_token else "avg")
    known = {"token": "token", "avg": "gap"}
    if given not in known:
        raise UserError(f"{NAME}: no model here has global_pool={given!r} of config.json; known: {', '.join(known)}")
    return known[given]


def _add_heads(table: Table, model: Mapping[str, Any]) -> None:
    d, k = model["width"], model["num_classes"]
    if model["pre_logits"]:
        table.linear("params/pre_logits", "pre_logits.fc", d, model["pre_logits"])
        d = model["pre_logits"]
    if k:
        table.linear("params/head", "head", d, k)
    if k and model["distillation_token"]:
        table.linear("params/head_dist", "head_dist", d, k)


def _resnet(table: Table, config: Mapping[str, Any]) -> Layout:
    _refuse(config, OTHER_RESNETS)
    model, width = resnet.read(table, RESNET)
    channels = table.shape("conv1.weight", "d c p q")[1]
    classes = table.shape("fc.weight", "k c")[0] if table.has("fc.weight") else 0
    if classes:
        table.linear("params/head", "fc", width, classes)
    mean, std = per_channel(IMAGENET_MEAN, channels), per_channel(IMAGENET_STD, channels)
    usual = Preprocessing((224, 224), "crop", 0.875, "bilinear", mean, std)
    return _convolutional(table, config, {**model, "num_classes": classes}, usual, (resnet.COUNTERS,))


def _bit(table: Table, config: Mapping[str, Any]) -> Layout:
    model, width = resnet.read_bit(table, "stem.conv", "stages.{stage}.blocks.{block}.")
    half = per_channel(0.5, table.shape("stem.conv.weight", "d c p q")[1])
    classes = table.shape("head.fc.weight", "k c 1 1")[0] if table.has("head.fc.weight") else 0
    if classes:  # a convolution of one pixel
        table.add("params/head/kernel", "head.fc.weight", (classes, width, 1, 1), lambda array: array[:, :, 0, 0].T)
        table.add("params/head/bias", "head.fc.bias", (classes,))
    usual = Preprocessing((448, 448), "crop", 1.0, "bilinear", half, half)
    return _convolutional(table, config, {**model, "num_classes": classes}, usual, ())


def _convolutional(
    table: Table, config: Mapping[str, Any], model: dict[str, Any], usual: Preprocessing, ignored: tuple[str, ...]
) -> Layout:
    return Layout(
        NAME,
        model,
        (0, 0),
        preprocessing(config, usual),
        table.finish(ignored),
        ignored,
        class_names(config, model["num_classes"]),
    )


def _preprocessing(model: Mapping[str, Any], channels: int, size: tuple[int, int]) -> Preprocessing:
    """timm's usual one for Vision Transformers, for files without a config.json."""
    if model["distillation_token"] or model["layer_scale"]:
        mean, std = per_channel(IMAGENET_MEAN, channels), per_channel(IMAGENET_STD, channels)
    else:
        mean, std = per_channel(0.5, channels), per_channel(0.5, channels)
    return Preprocessing(size, "crop", _crop_fraction(size, 0.9), "bicubic", mean, std)


def preprocessing(config: Mapping[str, Any], usual: Preprocessing) -> Preprocessing:
    """What config.json says of evaluation; `usual` for the rest."""
    given = _pretrained(config)
    crop_mode = given.get("crop_mode") or "center"
    resizes: dict[str, Literal["crop", "stretch"]] = {"center": "crop", "squash": "stretch"}
    interpolation = given.get("interpolation") or usual.interpolation
    if crop_mode not in resizes:
        raise UserError(f"{NAME}: crop_mode={crop_mode!r} of config.json is not supported; expected center or squash")
    if interpolation not in ("bilinear", "bicubic"):
        raise UserError(
            f"{NAME}: interpolation={interpolation!r} of config.json is not supported; expected bilinear or bicubic"
        )
    size, channels = _size(config) or usual.size, len(usual.mean)
    return Preprocessing(
        size,
        resizes[crop_mode],
        _crop_fraction(size, given["crop_pct"]) if "crop_pct" in given else usual.crop_fraction,
        interpolation,
        per_channel(given.get("mean") or usual.mean, channels),
        per_channel(given.get("std") or usual.std, channels),
    )


def _pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the preprocessing stands: before 2023 at the top."""
    return config.get("pretrained_cfg") or config


def _size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    given = _pretrained(config).get("input_size")
    return pair(given[1:]) if given else None


def _crop_fraction(size: tuple[int, int], crop_pct: float) -> float:
    """timm scales the shorter side to a whole number of pixels, rounded down, before it crops."""
    return size[0] / int(size[0] / crop_pct)


def class_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """`label_names`, by label; () without a head of so many classes."""
    given = config.get("label_names") or _pretrained(config).get("label_names") or ()
    if isinstance(given, Mapping):  # from labels to names
        names = {int(label): str(name) for label, name in given.items()}
        given = [names[label] for label in sorted(names)] if sorted(names) == list(range(classes)) else ()
    return tuple(map(str, given)) if len(given) == classes else ()

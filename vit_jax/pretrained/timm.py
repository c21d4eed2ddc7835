"""timm's safetensors files, and others that name their arrays so: ViT, distilled DeiT, ResNet, BiT.

github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py, deit.py, resnet.py and resnetv2.py.
torchvision's ResNets have the same keys, facebookresearch's DINOv2 nearly. Shapes tell the architecture, config.json
(timm's `architecture` and `pretrained_cfg`) the preprocessing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from vit_jax.command import UserError
from vit_jax.models.layers import square
from vit_jax.pretrained import layout as layouts
from vit_jax.pretrained.layout import HALF, IMAGENET, Entry, Layout, Preprocessing, Shape, complete, pair, per_channel
from vit_jax.pretrained.pytorch import resnet, transformer
from vit_jax.pretrained.pytorch.transformer import ATTENTION, FIRST, GATE, KEY, QUERY, SECOND, VALUE, Names

NAME = "timm"

VIT = Names(
    outside={
        "embedding": "patch_embed.proj",
        "cls": "cls_token",
        "dist": "dist_token",
        "Transformer/registers": "reg_token",
        "Transformer/posembed_input/pos_embedding": "pos_embed",
        "Transformer/encoder_norm": "norm",
        "pooled_norm": "fc_norm",
        "pre_logits": "pre_logits.fc",
        "head": "head",
        "head_dist": "head_dist",
    },
    block="blocks.",
    inside={
        "LayerNorm_0": "norm1",
        **dict.fromkeys((QUERY, KEY, VALUE), "attn.qkv"),
        f"{ATTENTION}/query_norm": "attn.q_norm",
        f"{ATTENTION}/key_norm": "attn.k_norm",
        f"{ATTENTION}/out": "attn.proj",
        "LayerNorm_2": "norm2",
        FIRST: "mlp.fc1",
        SECOND: "mlp.fc2",
        "LayerScale_0/scale": "ls1.gamma",
        "LayerScale_1/scale": "ls2.gamma",
    },
)
GATED = VIT.with_inside({GATE: "mlp.fc1_g", FIRST: "mlp.fc1_x"})
DINOV2 = replace(
    VIT, outside={**VIT.outside, "Transformer/registers": "register_tokens"}
)  # as facebookresearch names them
DINOV2_GATED = DINOV2.with_inside({FIRST: "mlp.w12", SECOND: "mlp.w3"})
RESNET = resnet.Names(
    stem=("conv1", "bn1"),
    block="layer{stage}.{block}.",
    first=(1, 1),
    layer=("conv{}", "bn{}"),
    shortcut=("downsample.0", "downsample.1"),
)
BIT = resnet.Names(("stem.conv",), "stages.{stage}.blocks.{block}.", *resnet.BIT_UNIT)
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
        if {f"{prefix}patch_embed.proj.weight", f"{prefix}blocks.0.norm1.weight"} <= shapes.keys():
            return _transformer(shapes, prefix, config)
        if f"{prefix}layer1.0.conv1.weight" in shapes:
            return _resnet(shapes, prefix, config)
        if {f"{prefix}stages.0.blocks.0.conv1.weight", f"{prefix}stem.conv.weight"} <= shapes.keys():
            return _bit(shapes, prefix, config)
    return None


def _transformer(shapes: Mapping[str, Shape], prefix: str, config: Mapping[str, Any]) -> Layout:
    _refuse(config, OTHERS)
    table, fields = transformer.read(NAME, shapes, _names(shapes, prefix), prefix, {})
    arguments = config.get("model_args", {})
    if strange := [name for name in ARGUMENTS if arguments.get(name)]:
        raise UserError(f"{NAME}: {strange[0]}={arguments[strange[0]]!r} of config.json is not among the models here")
    where = 'the field "model_args": {"num_heads": ...} of a config.json beside the file'
    fields |= transformer.num_heads(table, fields, arguments.get("num_heads"), where)
    model = transformer.model_of(
        fields,
        layer_scale=float(arguments.get("init_values") or 1e-5) if fields["layer_scale"] else 0.0,
        pooling=_pooling(config, fields["class_token"]),
        pre_logits=table.outputs("pre_logits"),
    )
    grid, entry = transformer.grid(table, model, _size(config))
    p, q = square(model["patch_size"])
    usual = _preprocessing(model, table.shape("embedding/kernel", "d c p q")[1], (grid[0] * p, grid[1] * q))
    return complete(_layout(model, grid, usual, config), shapes, entry, UNUSED)


def _layout(model: dict[str, Any], grid: tuple[int, int], usual: Preprocessing, config: Mapping[str, Any]) -> Layout:
    return Layout(NAME, model, grid, preprocessing(config, usual), class_names(config, model["num_classes"]))


def _refuse(config: Mapping[str, Any], others: Sequence[str]) -> None:
    """Raises `UserError` for an architecture that is named otherwise, but has the shapes of one of ours."""
    if other := next((word for word in others if word in config.get("architecture", "")), None):
        raise UserError(f"{NAME}: {config['architecture']} of config.json is not among the models here ({other})")


def _names(shapes: Mapping[str, Shape], prefix: str) -> Names:
    if f"{prefix}blocks.0.mlp.w12.weight" in shapes:
        return DINOV2_GATED
    if f"{prefix}blocks.0.mlp.fc1_g.weight" in shapes:
        return GATED
    return DINOV2 if f"{prefix}register_tokens" in shapes else VIT


def _pooling(config: Mapping[str, Any], class_token: bool) -> str:
    """How the tokens become one: by config.json, else by whether there is a class token."""
    given = config.get("global_pool") or ("token" if class_token else "avg")
    known = {"token": "token", "avg": "gap"}
    if given not in known:
        raise UserError(f"{NAME}: no model here has global_pool={given!r} of config.json; known: {', '.join(known)}")
    return known[given]


def _resnet(shapes: Mapping[str, Shape], prefix: str, config: Mapping[str, Any]) -> Layout:
    _refuse(config, OTHER_RESNETS)
    table, model, channels = resnet.read(NAME, shapes, RESNET, prefix, f"{prefix}fc")
    usual = layouts.preprocessing((224, 224), "crop", 0.875, "bilinear", IMAGENET, channels)
    return complete(_layout(model, (0, 0), usual, config), shapes, table.entry, resnet.COUNTERS)


def _bit(shapes: Mapping[str, Shape], prefix: str, config: Mapping[str, Any]) -> Layout:
    table, model, channels = resnet.read_bit(NAME, shapes, BIT, prefix, f"{prefix}head.fc")

    def entry(ours: str, shape: Shape) -> Entry:
        made = table.entry(ours, shape)  # the head is a convolution of one pixel
        return replace(made, shape=(*made.shape, 1, 1)) if ours == "params/head/kernel" else made

    usual = layouts.preprocessing((448, 448), "crop", 1.0, "bilinear", HALF, channels)
    return complete(_layout(model, (0, 0), usual, config), shapes, entry)


def _preprocessing(model: Mapping[str, Any], channels: int, size: tuple[int, int]) -> Preprocessing:
    """timm's usual one for Vision Transformers, for files without a config.json."""
    statistics = IMAGENET if model["distillation_token"] or model["layer_scale"] else HALF
    return layouts.preprocessing(size, "crop", _crop_fraction(size, 0.9), "bicubic", statistics, channels)


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

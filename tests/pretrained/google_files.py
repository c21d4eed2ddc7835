"""Small files in the key layouts of Google's published .npz, with random weights."""

import numpy as np

from tests.pretrained.reference.google import LINEN, PRE_LINEN

Shapes = dict[str, tuple[int, ...]]


def random_arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    """Scales around 1, all else around 0; no array is constant, so that none can stand for another."""
    rng = np.random.default_rng(23)
    scales = ("scale", "gamma")
    return {key: rng.normal(key.endswith(scales), 0.3, shape).astype(np.float32) for key, shape in shapes.items()}


def norm(name: str, c: int, *, squeezed: bool = True) -> Shapes:
    shape = (c,) if squeezed else (1, 1, 1, c)
    return {f"{name}/scale": shape, f"{name}/bias": shape}


def dense(name: str, *kernel: int) -> Shapes:
    return {f"{name}/kernel": kernel, f"{name}/bias": kernel[-1:]}


def attention(name: str, d: int, a: int, e: int) -> Shapes:
    parts = [f"{name}/{part}" for part in ("query", "key", "value")]
    shapes: Shapes = {f"{part}/kernel": (d, a, e) for part in parts} | {f"{part}/bias": (a, e) for part in parts}
    return shapes | {f"{name}/out/kernel": (a, e, d), f"{name}/out/bias": (d,)}


def mlp(name: str, d: int, f: int) -> Shapes:
    return dense(f"{name}/Dense_0", d, f) | dense(f"{name}/Dense_1", f, d)


def block(parts: tuple[str, ...], d: int, a: int, e: int, f: int) -> Shapes:
    norm_0, attend, norm_1, mlp_name = parts
    return norm(norm_0, d) | attention(attend, d, a, e) | norm(norm_1, d) | mlp(mlp_name, d, f)


def encoder(parts: tuple[str, ...], depth: int, d: int, a: int, e: int, f: int, *, scanned: bool = False) -> Shapes:
    shapes = norm("Transformer/encoder_norm", d)
    for name, shape in block(parts, d, a, e, f).items():
        if scanned:
            shapes[f"Transformer/encoderblock/{name}"] = (depth, *shape)
        else:
            shapes |= {f"Transformer/encoderblock_{i}/{name}": shape for i in range(depth)}
    return shapes


def vision_transformer(
    parts: tuple[str, ...] = PRE_LINEN, *, token: bool = True, pre_logits: int = 0, classes: int = 11
) -> Shapes:
    """Patches of 5 pixels, images of 15: 9 patches. Width 14, 2 heads of size 7, MLP width 13, 3 layers."""
    shapes = dense("embedding", 5, 5, 3, 14) | encoder(parts, 3, 14, 2, 7, 13)
    shapes["Transformer/posembed_input/pos_embedding"] = (1, 9 + token, 14)
    shapes |= {"cls": (1, 1, 14)} if token else {}
    shapes |= dense("pre_logits", 14, pre_logits) if pre_logits else {}
    return shapes | (dense("head", pre_logits or 14, classes) if classes else {})


def big_vision(*, pooling: str, scanned: bool, pos_embed: str = "pos_embedding", classes: int = 11) -> Shapes:
    """Patches of 7 pixels, images of 14: 4 patches. Width 12, 3 heads of size 4, MLP width 17, 2 layers."""
    shapes = dense("embedding", 7, 7, 3, 12) | encoder(LINEN, 2, 12, 3, 4, 17, scanned=scanned)
    shapes |= {pos_embed: (1, 4, 12)} if pos_embed else {}
    if pooling == "map":
        head = "MAPHead_0/"
        shapes |= {f"{head}probe": (1, 1, 12)} | norm(f"{head}LayerNorm_0", 12) | mlp(f"{head}MlpBlock_0", 12, 17)
        shapes |= attention(f"{head}MultiHeadDotProductAttention_0", 12, 3, 4)
    if pooling == "tok":
        shapes["cls"] = (1, 1, 12)
    return shapes | (dense("head", 12, classes) if classes else {})


def hybrid(stages: tuple[int, ...], *, patch: int, tokens: int, squeezed: bool) -> Shapes:
    """ResNet of width 32 below a ViT of width 6, 2 heads of size 3, MLP width 5, 1 layer, 7 classes."""
    shapes: Shapes = {"conv_root/kernel": (7, 7, 3, 32)} | norm("gn_root", 32, squeezed=squeezed)
    channels = 32
    for i, units in enumerate(stages):
        c = 32 * 2**i
        for j in range(units):
            unit = f"block{i + 1}/unit{j + 1}/"
            convs = {"1": (1, 1, channels, c), "2": (3, 3, c, c), "3": (1, 1, c, 4 * c)}
            convs |= {} if j else {"_proj": (1, 1, channels, 4 * c)}
            for suffix, kernel in convs.items():
                shapes[f"{unit}conv{suffix}/kernel"] = kernel
                shapes |= norm(f"{unit}gn{suffix}", kernel[-1], squeezed=squeezed)
            channels = 4 * c
    shapes |= dense("embedding", patch, patch, channels, 6) | encoder(PRE_LINEN, 1, 6, 2, 3, 5)
    shapes |= {"cls": (1, 1, 6), "Transformer/posembed_input/pos_embedding": (1, tokens + 1, 6)}
    return shapes | dense("head", 6, 7)


def mixer(classes: int = 7) -> Shapes:
    """Patches of 5 pixels, images of 15: 9 patches. Width 14, 3 layers, MLP widths 11 and 13."""
    shapes = dense("stem", 5, 5, 3, 14) | norm("pre_head_layer_norm", 14)
    for i in range(3):
        name = f"MixerBlock_{i}"
        shapes |= norm(f"{name}/LayerNorm_0", 14) | mlp(f"{name}/token_mixing", 9, 11)
        shapes |= norm(f"{name}/LayerNorm_1", 14) | mlp(f"{name}/channel_mixing", 14, 13)
    return shapes | (dense("head", 14, classes) if classes else {})


BIT_UNITS = {"block1/unit01": False, "block2/unit01": True, "block2/unit02": False}  # whether it strides


def bit_convs() -> Shapes:
    """Each unit's kernels by letter and `proj`; width 32."""
    shapes: Shapes = {}
    for unit, channels, c in zip(BIT_UNITS, (32, 128, 256), (32, 64, 64), strict=True):
        shapes |= {f"{unit}/a": (1, 1, channels, c), f"{unit}/b": (3, 3, c, c), f"{unit}/c": (1, 1, c, 4 * c)}
        shapes |= {f"{unit}/a/proj": (1, 1, channels, 4 * c)} if unit.endswith("unit01") else {}
    return shapes


def big_transfer(conv: str = "standardized_conv2d") -> Shapes:
    """TensorFlow's names; units (1, 2), 7 classes."""
    shapes: Shapes = {f"resnet/root_block/{conv}/kernel": (7, 7, 3, 32)}
    for name, kernel in bit_convs().items():
        shapes[f"resnet/{name}/{conv}/kernel"] = kernel
        if not name.endswith("proj"):
            shapes |= {f"resnet/{name}/group_norm/{leaf}": (kernel[2],) for leaf in ("gamma", "beta")}
    shapes |= {"resnet/group_norm/gamma": (256,), "resnet/group_norm/beta": (256,)}
    return shapes | {"resnet/head/conv2d/kernel": (1, 1, 256, 7), "resnet/head/conv2d/bias": (7,)}


def big_vision_bit() -> Shapes:
    """big_vision's names, and its group norms of shape [1 1 1 c]; units (1, 2), 7 classes."""
    shapes: Shapes = {"root_block/conv_root/kernel": (7, 7, 3, 32)} | norm("norm-pre-head", 256, squeezed=False)
    for name, kernel in bit_convs().items():
        unit, letter = name[: len("block1/unit01")], name[len("block1/unit01/") :]
        if letter == "a/proj":
            shapes[f"{unit}/conv_proj/kernel"] = kernel
        else:
            number = "abc".index(letter) + 1
            shapes[f"{unit}/conv{number}/kernel"] = kernel
            shapes |= norm(f"{unit}/gn{number}", kernel[2], squeezed=False)
    return shapes | dense("head", 256, 7)

"""Google's published models in NumPy, computed from the arrays of their .npz files by the keys there.

Independent of `vit_jax`: after vit_jax/models_vit.py, models_resnet.py and models_mixer.py of vision_transformer,
models/vit.py of big_vision and bit_pytorch/models.py of big_transfer. Square images, patches and maps.
"""

from collections.abc import Callable, Mapping

import numpy as np

from tests.models.maps import convolve, max_pool, relu

Arrays = Mapping[str, np.ndarray]
PRE_LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def dense(w: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def layer_norm(w: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}/scale"] + w[f"{name}/bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """By tanh, flax's default."""
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(w: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return dense(w, f"{name}/Dense_1", gelu(dense(w, f"{name}/Dense_0", x)))


def attention(w: Arrays, name: str, queries: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    def project(part: str, x: np.ndarray) -> np.ndarray:
        return np.einsum("nld,dae->nale", x, w[f"{name}/{part}/kernel"]) + w[f"{name}/{part}/bias"][:, None]

    q, k, v = project("query", queries), project("key", tokens), project("value", tokens)
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    x = weights / weights.sum(-1, keepdims=True) @ v
    return np.einsum("nale,aed->nld", x, w[f"{name}/out/kernel"]) + w[f"{name}/out/bias"]


def encoder(w: Arrays, x: np.ndarray, depth: int, parts: tuple[str, ...], scanned: bool = False) -> np.ndarray:
    norm_0, attend, norm_1, mlp_name = parts
    for i in range(depth):
        place = f"Transformer/encoderblock{'' if scanned else f'_{i}'}/"
        block = {k.removeprefix(place): v[i] if scanned else v for k, v in w.items() if k.startswith(place)}
        y = layer_norm(block, norm_0, x)
        x = x + attention(block, attend, y, y)
        x = x + mlp(block, mlp_name, layer_norm(block, norm_1, x))
    return layer_norm(w, "Transformer/encoder_norm", x)


def embed(w: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    kernel = w[f"{name}/kernel"]
    x = convolve(x, kernel, len(kernel), (0, 0)) + w[f"{name}/bias"]
    return x.reshape(len(x), -1, x.shape[-1])


def prepend(token: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.repeat(token, len(x), axis=0), x], axis=1)


def vision_transformer(w: Arrays, images: np.ndarray, depth: int, parts: tuple[str, ...] = PRE_LINEN) -> np.ndarray:
    """models_vit.py: positions are added after the class token has been prepended; below may be a ResNet."""
    x = embed(w, "embedding", hybrid_resnet(w, images) if "conv_root/kernel" in w else images)
    x = prepend(w["cls"], x) if "cls" in w else x
    x = encoder(w, x + w["Transformer/posembed_input/pos_embedding"], depth, parts)
    x = x[:, 0] if "cls" in w else x.mean(axis=1)
    x = np.tanh(dense(w, "pre_logits", x)) if "pre_logits/kernel" in w else x
    return dense(w, "head", x) if "head/kernel" in w else x


def big_vision(w: Arrays, images: np.ndarray, depth: int, scanned: bool, positions: np.ndarray) -> np.ndarray:
    """models/vit.py: positions are added before the class token is prepended."""
    x = embed(w, "embedding", images) + positions
    x = prepend(w["cls"], x) if "cls" in w else x
    x = encoder(w, x, depth, LINEN, scanned)
    if "MAPHead_0/probe" in w:
        probe = np.repeat(w["MAPHead_0/probe"], len(x), axis=0)
        x = attention(w, "MAPHead_0/MultiHeadDotProductAttention_0", probe, x)
        x = x + mlp(w, "MAPHead_0/MlpBlock_0", layer_norm(w, "MAPHead_0/LayerNorm_0", x))
        x = x[:, 0]
    else:
        x = x[:, 0] if "cls" in w else x.mean(axis=1)
    x = np.tanh(dense(w, "pre_logits", x)) if "pre_logits/kernel" in w else x
    return dense(w, "head", x) if "head/kernel" in w else x


def sincos2d(h: int, w: int, d: int) -> np.ndarray:
    """PosEmbed of MoCo v3, [1 h*w d]."""
    table = np.zeros((1, h * w, d))
    quarter = d // 4
    for i, (y, x) in enumerate(np.ndindex(h, w)):
        for j in range(quarter):
            omega = 10_000.0 ** (-j / (quarter - 1))
            table[0, i, j::quarter] = np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)
    return table


def mixer(w: Arrays, images: np.ndarray, depth: int) -> np.ndarray:
    x = embed(w, "stem", images)
    for i in range(depth):
        block = f"MixerBlock_{i}"
        y = layer_norm(w, f"{block}/LayerNorm_0", x).swapaxes(1, 2)
        x = x + mlp(w, f"{block}/token_mixing", y).swapaxes(1, 2)
        x = x + mlp(w, f"{block}/channel_mixing", layer_norm(w, f"{block}/LayerNorm_1", x))
    return dense(w, "head", layer_norm(w, "pre_head_layer_norm", x).mean(axis=1))


def group_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    n, h, w, c = x.shape
    y = x.reshape(n, h, w, 32, c // 32)
    centred = y - y.mean((1, 2, 4), keepdims=True)
    y = centred / np.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + epsilon)
    return y.reshape(x.shape) * scale.reshape(c) + bias.reshape(c)


def same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding SAME of one axis."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def hybrid_resnet(w: Arrays, x: np.ndarray) -> np.ndarray:
    """models_resnet.py: 1e-5 is added to the kernel's deviation, group norm's epsilon is flax's 1e-6."""

    def conv_norm(x: np.ndarray, place: str, suffix: str, stride: int = 1) -> np.ndarray:
        kernel = w[f"{place}conv{suffix}/kernel"]
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
        x = convolve(x, kernel, stride, same(x.shape[1], len(kernel), stride))
        return group_norm(x, w[f"{place}gn{suffix}/scale"], w[f"{place}gn{suffix}/bias"], 1e-6)

    x = relu(conv_norm(x, "", "_root", 2))
    x = max_pool(x, same(x.shape[1], 3, 2), -np.inf)
    for place in sorted({k[: k.rindex("conv1")] for k in w if "/conv1/" in k}):
        stride = 2 if place.endswith("unit1/") and not place.startswith("block1") else 1
        y = relu(conv_norm(x, place, "1"))
        y = relu(conv_norm(y, place, "2", stride))
        y = conv_norm(y, place, "3")
        x = relu(y + (conv_norm(x, place, "_proj", stride) if f"{place}conv_proj/kernel" in w else x))
    return x


def bit(
    kernel: Callable[[str], np.ndarray],
    norm: Callable[[str], tuple[np.ndarray, np.ndarray]],
    x: np.ndarray,
    units: Mapping[str, bool],
    outside: float,
) -> np.ndarray:
    """Features before the head. `kernel` reads conv_root, <unit>/conv1 ...; `norm` reads scale and bias of <unit>/gn1.

    `units`: in order, `block2/unit01` and whether it strides. `outside` surrounds the map in the pooling: big_transfer
    pads with zeros, big_vision by max_pool's -infinity.
    """

    def conv(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        k = kernel(name)
        k = (k - k.mean((0, 1, 2))) / np.sqrt(k.var((0, 1, 2)) + 1e-10)
        return convolve(x, k, stride, (len(k) // 2, len(k) // 2))

    def norm_relu(x: np.ndarray, name: str) -> np.ndarray:
        return relu(group_norm(x, *norm(name), 1e-5))

    x = max_pool(conv(x, "conv_root", 2), (1, 1), outside)
    for unit, strides in units.items():
        stride = 2 if strides else 1
        y = norm_relu(x, f"{unit}/gn1")
        shortcut = conv(y, f"{unit}/conv_proj", stride) if unit.endswith("unit01") else x
        y = norm_relu(conv(y, f"{unit}/conv1"), f"{unit}/gn2")
        y = norm_relu(conv(y, f"{unit}/conv2", stride), f"{unit}/gn3")
        x = shortcut + conv(y, f"{unit}/conv3")
    return norm_relu(x, "norm-pre-head").mean(axis=(1, 2))

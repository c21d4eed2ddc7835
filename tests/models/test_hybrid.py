"""Hybrids: published sizes, the authors' names, the ResNet below the transformer by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tests import quick
from tests.models import maps
from tests.models.maps import convolve, relu
from tests.models.random_params import random_params
from vit_jax.models.hybrid import Hybrid
from vit_jax.models.vit import ViT

TINY = {"patch_size": (1, 3), "width": 8, "depth": 1, "mlp_dim": 11, "num_heads": 2, "resnet_width": 32}
IMAGES = np.random.default_rng(9).normal(size=(2, 14, 21, 3)).astype(np.float32)  # 7x11, 4x6, and a map of 2x3


def tiny(**fields) -> Hybrid:
    return Hybrid(**{**TINY, "stage_sizes": (1, 2), **fields})


def standardise(kernel: np.ndarray) -> np.ndarray:
    return (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)


def padding(size: int, kernel: int, stride: int) -> int:
    """How many zeros SAME adds to an axis; the larger half comes after."""
    return max((-(-size // stride) - 1) * stride + kernel - size, 0)


def conv_norm(x: np.ndarray, p: dict, conv: str, norm: str, stride: int = 1) -> np.ndarray:
    kernel = p[conv]["kernel"]
    rows, columns = (padding(side, len(kernel), stride) for side in x.shape[1:3])
    x = np.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in (rows, columns)), (0, 0)))
    return maps.group_norm(convolve(x, standardise(kernel), stride, (0, 0)), p[norm], 1e-6)


def resnet(p: dict, x: np.ndarray) -> np.ndarray:
    """Two stages of 1 and 2 units, on 14x21 pixels."""
    x = relu(conv_norm(x, p, "conv_root", "gn_root", 2))  # 7x11
    x = maps.max_pool(x, (1, 1), -np.inf)  # 4x6: SAME pads odd sides evenly
    for block, unit, stride in (("block1", "unit1", 1), ("block2", "unit1", 2), ("block2", "unit2", 1)):
        u = p[block][unit]
        y = relu(conv_norm(x, u, "conv1", "gn1"))
        y = relu(conv_norm(y, u, "conv2", "gn2", stride))
        y = conv_norm(y, u, "conv3", "gn3")
        x = relu(y + (conv_norm(x, u, "conv_proj", "gn_proj", stride) if "conv_proj" in u else x))
    return x


def test_it_is_a_vit_on_the_resnets_map():
    model = tiny(num_classes=5, zero_head=False)
    model.check(IMAGES.shape[1:])
    params = random_params(model, IMAGES, train=False)
    logits = quick.jit(partial(model.apply, train=False))({"params": params}, IMAGES)
    mapped = resnet(params, IMAGES).astype(np.float32)
    assert mapped.shape == (2, 2, 3, 256) and model.grid(IMAGES.shape) == (2, 1)
    vit_fields = {field: value for field, value in TINY.items() if field != "resnet_width"}
    vit = ViT(**vit_fields, num_classes=5)
    vit_params = {name: params[name] for name in ("embedding", "Transformer", "cls", "head")}
    expected = quick.jit(partial(vit.apply, train=False))({"params": vit_params}, mapped)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_without_stages_patches_are_cut_from_the_stem():
    model = tiny(stage_sizes=(), patch_size=(2,), dtype="bfloat16")
    assert model.grid((16, 24, 3)) == (2, 3)
    features, variables = jax.eval_shape(
        partial(model.init_with_output, train=False), jax.random.key(0), jnp.zeros((5, 16, 24, 3))
    )
    assert (features.shape, features.dtype) == ((5, 8), jnp.bfloat16)
    assert variables["params"]["embedding"]["kernel"].shape == (2, 2, 32, 8)

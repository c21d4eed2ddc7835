"""Decoders: VT-FPN against NumPy, parameters and multiply-adds of the pyramids, and which grid each one gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.models.random_params import random_params
from vit_jax import flops, models, step, trees
from vit_jax.models import decoders
from vit_jax.models.features import Features

RNG = np.random.default_rng(0)
K, WIDTH = 5, 6
RESNET = models.settings("resnet", stage_sizes=(1, 1, 1), bottleneck=False, width=4)
VIT = models.settings("vit", patch_size=(8,), width=8, depth=1, mlp_dim=12, num_heads=2)


def described(decoder, model=RESNET, shape=(26, 38, 3)):
    """The module, the shapes of its variables, and those of its logits."""
    module = decoders.Segmenter(models.create(model), decoder)
    variables = jax.eval_shape(lambda: step.init_variables(module, 0, shape))
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return variables, jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, images), module


@pytest.mark.parametrize(
    ("decoder", "model", "shape", "grid"),
    [
        (decoders.FeaturePyramid(K, WIDTH), RESNET, (26, 38, 3), (7, 10)),
        (decoders.TokenPyramid(K, WIDTH, 3, 0, 4), RESNET, (26, 38, 3), (7, 10)),
        (decoders.LinearDecoder(K), VIT, (24, 40, 3), (3, 5)),
        (decoders.MaskTransformer(K, 0, 1, 2), VIT, (24, 40, 3), (3, 5)),
        (decoders.SimplePyramid(K, WIDTH), VIT, (24, 40, 3), (12, 20)),
    ],
    ids=lambda x: type(x).__name__ if hasattr(x, "apply") else "",
)
def test_the_grid_of_logits_and_the_backbones_names(decoder, model, shape, grid):
    variables, logits, module = described(decoder, model, shape)
    assert logits.shape == (2, *grid, K) and logits.dtype == jnp.float32
    backbone = jax.eval_shape(lambda: step.init_variables(models.create(model), 0, shape))["params"]
    more = set(trees.names(variables["params"])) - set(trees.names(backbone))
    assert set(trees.names(backbone)) <= set(trees.names(variables["params"]))
    assert {name.split("/")[0] for name in more} == {"decoder"}
    assert models.naming_of(module) == models.naming_of(models.create(model))


def pyramid_counts(decoder) -> tuple[int, int]:
    """Parameters of the decoder, and multiply-adds of it, on the maps of ResNet-50 for a 512 x 512 image."""
    sides, channels = (128, 64, 32, 16), (256, 512, 1024, 2048)
    maps = tuple(jax.ShapeDtypeStruct((1, s, s, c), jnp.float32) for s, c in zip(sides, channels, strict=True))
    rng = jax.random.key(0)

    def apply(variables, maps):
        return decoder.apply(variables, features_of(maps), rng, train=False)

    variables = jax.eval_shape(lambda maps: decoder.init(rng, features_of(maps), rng, train=False), maps)
    return trees.count(variables["params"]), flops.count(apply, variables, maps) // 2


def features_of(maps) -> Features:
    n, h, w, d = maps[-1].shape
    return Features(jnp.zeros((n, 0, d)), maps[-1].reshape(n, h * w, d), (h, w), tuple(maps))


def fpn_by_hand(c: int, b: int, k: int) -> tuple[int, int]:
    """What s. 3.1 of Panoptic FPN says, convolution by convolution; and the products of the bilinear resizes."""
    channels, sides = (256, 512, 1024, 2048), (128, 64, 32, 16)
    parameters = sum(e * c + c + 9 * c * c + c for e in channels) + b * k + k
    work = sum(s * s * (e * c + 9 * c * c) for e, s in zip(channels, sides, strict=True)) + 128 * 128 * b * k
    for i in range(4):
        for j in range(max(i, 1)):
            side, inputs = sides[i - j], b if j else c
            parameters += 9 * inputs * b + 2 * b
            work += side * side * 9 * inputs * b
    return parameters, work


def test_fpn_has_the_papers_parameters_and_multiply_adds():
    parameters, work = pyramid_counts(decoders.FeaturePyramid(171, 256))
    expected_parameters, expected_work = fpn_by_hand(256, 128, 171)
    assert parameters == expected_parameters == 4_990_251
    assert expected_work < work < 1.08 * expected_work  # the rest: resizes, which are products here


def test_vt_fpn_needs_a_quarter_of_fpns_multiply_adds():
    """The paper prints 6.5 times fewer; it leaves open how the maps are summed, see `TokenPyramid`."""
    parameters, work = pyramid_counts(decoders.TokenPyramid(171, 256))
    lateral, at_finest = 256 * (256 + 512 + 1024 + 2048) + 4 * 256, (128**2, 64**2, 32**2, 16**2)
    tokens = 4 * (256 * 8 + 2 * 256 * 1024 + 2 * 256 * 256)  # tokenizers, widen and narrow, projectors
    transformer = 2 * 1024 * 256 + 2 * 1024 * 2048 + 3 * 2 * 1024
    semantic = 4 * (256 * 128 + 2 * 128) + 128 * 171 + 171
    assert parameters == lateral + tokens + transformer + semantic == 8_492_587
    of_place = 256 * 8 * 4 + 256 * 256 + 256 * 128  # tokenizer twice, query, projector's 32 tokens twice, 1x1
    least = sum(at_finest) * of_place + sum(s * c * 256 for s, c in zip(at_finest, (256, 512, 1024, 2048), strict=True))
    assert least < work < 1.3 * least
    assert 4 < pyramid_counts(decoders.FeaturePyramid(171, 256))[1] / work < 7


def softmax(x: np.ndarray, axis) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def layer_norm(x: np.ndarray, p) -> np.ndarray:
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def doubled(x: np.ndarray, times: int) -> np.ndarray:
    """Bilinear, pixel by pixel: the centres of the new pixels between those of the old ones."""
    h, w, _ = x.shape
    y = np.zeros((h * times, w * times, x.shape[2]))
    for i in range(h * times):
        for j in range(w * times):
            a, b = np.clip((i + 0.5) / times - 0.5, 0, h - 1), np.clip((j + 0.5) / times - 0.5, 0, w - 1)
            for u in range(h):
                for v in range(w):
                    y[i, j] += max(0, 1 - abs(a - u)) * max(0, 1 - abs(b - v)) * x[u, v]
    return y


def vt_fpn_by_numpy(p, maps: list[np.ndarray], key_width: int) -> np.ndarray:
    """One image's logits, by the equations of Wu et al. 2020, in loops over the maps."""
    xs, tokens = [], []
    for i, x in enumerate(maps, 1):
        x = x @ p[f"lateral{i}"]["kernel"][0, 0] + p[f"lateral{i}"]["bias"]
        xs.append(x)
        share = softmax(x @ p[f"tokenizer{i}"]["filter"]["kernel"], axis=(0, 1))
        tokens.append(np.tensordot(share, x, axes=((0, 1), (0, 1))) @ p[f"widen{i}"]["kernel"])
    t, q = np.concatenate(tokens), p["transformer"]
    y = layer_norm(t, q["norm1"])
    attention = softmax((y @ q["query"]["kernel"]) @ (y @ q["key"]["kernel"]).T / key_width**0.5, axis=-1)
    t = t + attention @ y
    t = t + np.maximum(layer_norm(t, q["norm2"]) @ q["mlp1"]["kernel"], 0) @ q["mlp2"]["kernel"]
    t, total = layer_norm(t, p["norm_tokens"]), 0.0
    for i, x in enumerate(xs, 1):
        narrow, s = t @ p[f"narrow{i}"]["kernel"], p["semantic"]
        keys = narrow @ p[f"projector{i}"]["key"]["kernel"]
        x = x + softmax(x @ p[f"projector{i}"]["query"]["kernel"] @ keys.T / key_width**0.5, axis=-1) @ narrow
        x = x @ s[f"conv{i}_1"]["kernel"][0, 0]
        groups = x.reshape(*x.shape[:2], 3, -1)  # gcd(32, 3 channels) is 1: one group of 3
        mean, variance = groups.mean(), groups.var()
        x = (x - mean) / np.sqrt(variance + 1e-6) * s[f"norm{i}_1"]["scale"] + s[f"norm{i}_1"]["bias"]
        total = total + doubled(np.maximum(x, 0), 2 ** (i - 1))
    return total @ s["head"]["kernel"] + s["head"]["bias"]


def test_vt_fpn_against_numpy():
    maps = [RNG.normal(size=(2, 4, 6, 3)), RNG.normal(size=(2, 2, 3, 7))]
    given = features_of([jnp.asarray(x, jnp.float32) for x in maps])
    decoder, rng = decoders.TokenPyramid(K, WIDTH, 3, 8, 4), jax.random.key(1)
    params = random_params(decoder, given, rng, train=False)
    found = quick.jit(lambda p, given: decoder.apply({"params": p}, given, rng, train=False))(params, given)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for i in range(2):
        expected = vt_fpn_by_numpy(params, [x[i] for x in maps], 4)
        assert np.std(expected) > 0.1
        np.testing.assert_allclose(found[i], expected, rtol=1e-3, atol=1e-4)


def test_the_mask_transformer_reads_its_own_class_tokens():
    """Logits of a class, before the norm over classes, are cosines: a class whose token turns round changes alone."""
    features = Features(jnp.zeros((1, 0, 8)), jnp.asarray(RNG.normal(size=(1, 6, 8)), jnp.float32), (2, 3))
    decoder, rng = decoders.MaskTransformer(K, 0, 0, 2), jax.random.key(0)
    variables = quick.jit(lambda: decoder.init(rng, features, rng, train=False))()
    apply = quick.jit(lambda v: decoder.apply(v, features, rng, train=False))
    logits = apply(variables)
    tokens = variables["params"]["class_tokens"]
    order = jnp.array([2, 0, 1, 4, 3])
    swapped = {"params": {**variables["params"], "class_tokens": tokens[:, order]}}
    np.testing.assert_allclose(apply(swapped), logits[..., order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits.mean(axis=-1), 0, atol=1e-5)

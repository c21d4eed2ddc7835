"""Convolutions and their gradients, as convolutions and products that are fast on CPUs."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests import quick
from tests.ops.lowered import lowered
from vit_jax import models, platforms
from vit_jax.ops.convolution import ORDER, as_products, conv_general_dilated

KEY = jax.random.key(3)
IMAGES = (2, 16, 32, 3)
MODELS = {
    "cnn": ("cnn/conv3", {"stages": ((5,), (7,))}),
    "compact": ("compact/CCT-7/3x1", {"width": 8, "depth": 1, "num_heads": 2}),
    "resnet": ("resnet/50", {"stage_sizes": (1, 1), "width": 8}),
    "resnetv2": ("resnetv2/keras101", {"stage_sizes": (1, 1), "width": 8, "head_widths": ()}),
    "bit": ("bit/50x1", {"stage_sizes": (1, 1), "width": 32}),
    "hybrid": ("hybrid/R+Ti16", {"stage_sizes": (1, 1), "patch_size": (1,), "width": 8, "depth": 1, "num_heads": 2}),
    "visual_transformer": ("visual_transformer/R18", {"stem": "small"}),
}


AXES = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"  # `ORDER` in a lowered program


def orders(text: str) -> list[bool]:
    """Whether the axes of each convolution of a program are in `ORDER`."""
    return [
        axes == AXES for axes in re.findall(r"stablehlo\.convolution.*dim_numbers = ([^,]*(?:, [^,]*)*?), window", text)
    ]


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [
        ((3, 3), (1, 1), "SAME"),
        ((3, 2), (2, 3), "SAME"),
        ((1, 1), (2, 2), ((0, 0), (0, 0))),  # strides over images that it never sees
        ((5, 4), (2, 1), ((2, 2), (1, 3))),
        ((7, 8), (3, 3), "VALID"),
    ],
)
def test_a_convolution_and_its_gradients(kernel, strides, padding):
    x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((2, 8, 9, 3), (*kernel, 3, 4))))

    def loss(convolve, x, w):
        return jnp.sum(jnp.sin(convolve(x, w, strides, padding, dimension_numbers=ORDER)))

    def gradients(convolve):
        return jax.value_and_grad(lambda *given: loss(convolve, *given), (0, 1))

    expected = quick.jit(gradients(lax.conv_general_dilated))(x, w)
    found = quick.jit(gradients(conv_general_dilated))(x, w)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert orders(lowered(gradients(conv_general_dilated), x, w, platform="cpu")) == [
        True,
        True,
    ]  # of the kernel: products
    for platform in ("cuda", "tpu"):
        ours, plain = (
            lowered(gradients(f), x, w, platform=platform) for f in (conv_general_dilated, lax.conv_general_dilated)
        )
        assert sorted(convolutions(ours)) == sorted(convolutions(plain))


@pytest.mark.parametrize(
    ("kernel", "strides", "pads"), [((3, 3), (1, 1), ((1, 1), (1, 1))), ((2, 3), (2, 3), ((0, 1), (2, 1)))]
)
def test_a_convolution_as_products(kernel, strides, pads):
    x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((4, 8, 9, 3), (*kernel, 3, 5))))
    narrow = [v.astype(jnp.bfloat16) for v in (x, w)]
    found = quick.jit(lambda x, w: as_products(strides, pads, x, w))(*narrow)
    exact = [v.astype(jnp.float32) for v in narrow]
    expected = quick.jit(lambda x, w: lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=ORDER))(*exact)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("units", "release", "left"),
    [
        ({"avx512_bf16"}, (0, 12, 0), 0),
        ({"amx_bf16"}, (0, 12, 0), 0),
        ({"avx2"}, (0, 12, 0), 2),
        ({"avx512_bf16"}, (0, 10, 2), 2),
    ],
)
def test_training_in_bfloat16(units, release, left, monkeypatch):
    """On CPUs with units for it no convolution is left of both gradients; their values are as before."""
    monkeypatch.setattr(platforms, "cpu_units", lambda: units)
    monkeypatch.setattr(jax, "__version_info__", release)
    args = [
        jax.random.normal(jax.random.key(i), s).astype(jnp.bfloat16) for i, s in enumerate(((4, 6, 7, 3), (3, 3, 3, 5)))
    ]

    def gradients(convolution, *args):
        def loss(x, w):
            y = convolution(x, w, (1, 1), ((1, 0), (2, 1)), dimension_numbers=ORDER)
            return jnp.square(y.astype(jnp.float32)).sum()

        return jax.grad(loss, (0, 1))(*args)

    tuned = partial(gradients, conv_general_dilated)
    assert len(convolutions(lowered(tuned, *args, platform="cpu"))) == left
    assert len(convolutions(lowered(tuned, *args, platform="cuda"))) == 3
    exact = gradients(lax.conv_general_dilated, *(v.astype(jnp.float32) for v in args))
    for a, b in zip(quick.jit(tuned)(*args), exact, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.02, atol=0.01 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("kernel", [1, 3])
def test_one_group_of_images_in_bfloat16(kernel, monkeypatch):
    """XLA folds a transpose into the only product, and then cannot compute it, unless it is kept from it."""
    monkeypatch.setattr(platforms, "multiplies_bfloat16", lambda: True)
    shapes = (8, 7, 7, 64), (kernel, kernel, 64, 256)
    x, w = (jnp.full(shape, 2.0**-4, jnp.bfloat16) for shape in shapes)

    def gradient(w):
        return jax.grad(lambda w: conv_general_dilated(x, w, (1, 1), "SAME").astype(jnp.float32).sum())(w)

    middle = quick.jit(gradient)(w)[kernel // 2, kernel // 2]
    np.testing.assert_allclose(middle.astype(jnp.float32), 8 * 7 * 7 * 2.0**-4, rtol=2**-8)


def convolutions(text: str) -> list[str]:
    """Those of a program, without the names of what they read."""
    return [line.partition("dim_numbers")[2] for line in text.splitlines() if "stablehlo.convolution" in line]


@pytest.mark.parametrize("special", [{"feature_group_count": 3}, {"rhs_dilation": (2, 1)}, {"lhs_dilation": (1, 2)}])
def test_groups_and_dilation_are_kept(special):
    groups = special.get("feature_group_count", 1)
    x, w = (jax.random.normal(KEY, s) for s in ((2, 8, 9, 3), (3, 3, 3 // groups, 6)))
    given = (x, w, (1, 1), ((0, 0), (1, 0)))
    found = conv_general_dilated(*given, dimension_numbers=ORDER, **special)
    np.testing.assert_array_equal(found, lax.conv_general_dilated(*given, dimension_numbers=ORDER, **special))


@pytest.mark.parametrize("family", MODELS)
def test_models_have_no_others(family):
    name, fields = MODELS[family]
    model = models.create(models.settings(name, **fields, num_classes=5))
    images = jnp.zeros(IMAGES)
    variables: Any = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    rest = {k: v for k, v in variables.items() if k != "params"}

    def loss(params, rest):
        logits, _ = model.apply(
            {"params": params, **rest}, images, train=True, mutable=list(rest), rngs={"dropout": jax.random.key(0)}
        )
        return logits.sum()

    found = orders(lowered(jax.grad(loss), variables["params"], rest, platform="cpu"))
    assert len(found) >= 1  # forwards; the gradient of the first one's images nobody asks for
    assert all(found)

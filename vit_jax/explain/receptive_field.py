"""How much of the image one place of a layer can see, and how much of that it uses."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax.explain.network import Network, at_places, layer_output, layers

# Pixels that a value depends on, and pixels from one of its places to the next, each by height and width.
Reach: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
POINT: Reach = ((1, 1), (1, 1))
EVERYTHING = 1 << 30
WITHIN = 1 - 0.9545  # of the largest gradient: two standard deviations of a Gaussian


def effective(
    network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"], *, layer: str = ""
) -> Float[Array, "n H W"]:
    """How strongly each pixel moves a layer's central place, by gradients (Luo et al. 2016, arXiv:1701.04128).

    `layer`: the path of a module; "": the last one. The channels are added with random signs: a layer norm's have a
    constant sum.
    """
    path = layer or list(layers(network, x))[-1]

    def centre(x: Array) -> Array:
        places = at_places(network, x, layer_output(network, x, path))
        _, h, w, d = places.shape
        signs = jax.random.rademacher(jax.random.key(0), (d,), places.dtype)
        return (places[:, h // 2, w // 2] * signs[None]).sum()

    return jnp.linalg.norm(jax.grad(centre)(x), axis=-1)


def effective_size(gradients: Float[np.ndarray, "n H W"]) -> float:
    """The side in pixels of a square as large as the field whose gradients exceed `WITHIN` of the largest one."""
    mean = gradients.mean(axis=0)
    return float(np.sqrt((mean > WITHIN * mean.max()).sum()))


def theoretical_size(network: Network, x: Any, layer: str = "") -> tuple[int, int]:
    """Height and width in pixels of what a place of a layer can depend on, at most the image.

    By the windows of convolutions and poolings on the way (Araujo et al. 2019, Computing Receptive Fields). Attention,
    and products over places, see everything. What a norm computes of the whole map is left out, as is usual.
    """
    path = layer or list(layers(network, x))[-1]
    traced = jax.make_jaxpr(layer_output, static_argnums=2)(network, jax.ShapeDtypeStruct(x.shape, jnp.float32), path)
    variables = [None] * (len(traced.jaxpr.invars) - 1)
    found = _reach(traced.jaxpr, [*variables, POINT])[0] or POINT
    return min(found[0][0], x.shape[1]), min(found[0][1], x.shape[2])


def _reach(jaxpr: Any, inputs: Sequence[Reach | None]) -> list[Reach | None]:
    """Of each output the reach into the image; None: it does not depend on it."""
    known: dict[Any, Reach | None] = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(value: Any) -> Reach | None:
        return None if hasattr(value, "val") else known.get(value)  # a literal is no variable

    for equation in jaxpr.eqns:
        given = [of(value) for value in equation.invars]
        inner = next((equation.params[key] for key in ("jaxpr", "call_jaxpr") if key in equation.params), None)
        if inner is not None and not equation.primitive.name.startswith("reduce"):
            results = _reach(getattr(inner, "jaxpr", inner), given)
        else:
            results = [_through(equation, given)] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [of(value) for value in jaxpr.outvars]


def _through(equation: Any, given: Sequence[Reach | None]) -> Reach | None:
    seen = [reach for reach in given if reach is not None]
    if not seen:
        return None
    sizes, steps = ((max(r[i][0] for r in seen), max(r[i][1] for r in seen)) for i in (0, 1))
    name, params = equation.primitive.name, equation.params
    if name == "dot_general" and _over_places(equation, given):
        return (EVERYTHING, EVERYTHING), steps
    if name == "conv_general_dilated":
        kernel = params["dimension_numbers"].rhs_spec[2:]
        window = [equation.invars[1].aval.shape[axis] for axis in kernel]
        window = [(size - 1) * rate + 1 for size, rate in zip(window, params["rhs_dilation"], strict=True)]
        return _windowed(sizes, steps, window, params["window_strides"])
    if name.startswith("reduce_window"):
        return _windowed(sizes, steps, params["window_dimensions"][1:3], params["window_strides"][1:3])
    return sizes, steps


def _windowed(sizes: tuple[int, int], steps: tuple[int, int], window: Sequence[int], strides: Sequence[int]) -> Reach:
    (height, width), (down, across) = sizes, steps
    grown = height + (window[0] - 1) * down, width + (window[1] - 1) * across
    return grown, (down * strides[0], across * strides[1])


def _over_places(equation: Any, given: Sequence[Reach | None]) -> bool:
    """Whether a product sums over places: over another axis than the last one of what depends on the image."""
    contracted, _ = equation.params["dimension_numbers"]
    return any(
        reach is not None and tuple(axes) != (value.aval.ndim - 1,)
        for reach, axes, value in zip(given, contracted, equation.invars, strict=True)
    )

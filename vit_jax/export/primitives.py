"""A function as its primitive operations alone: without nested calls, and without what its result does not need.

Converters know primitives. They replace library functions by operators of their own while they trace, though not in
every form that we call them, and stop at random keys that are split but never used. Traced here first, a function
shows them neither.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend import core

INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def as_primitives(function: Callable[[Any], Any], given: jax.ShapeDtypeStruct) -> Callable[[Any], Any]:
    """The function for an input of this shape, whose sizes may be symbolic; it gives one array."""
    traced = jax.make_jaxpr(function)(given)

    def evaluate(x: Any) -> Any:
        (found,) = _evaluate(traced.jaxpr, traced.consts, [x], [True])
        return found

    return evaluate


def _evaluate(jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    """The outputs of a jaxpr; None for those that are not wanted."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True))
    outputs = [var if keep else None for var, keep in zip(jaxpr.outvars, wanted, strict=True)]

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else values.get(var)

    for equation, needed in _needed(jaxpr.eqns, outputs):
        arguments = [read(var) for var in equation.invars]
        name = equation.primitive.name
        if name == "name":  # tells what to keep for gradients
            results = arguments
        elif name == "dot_general" and (k := _dense_axes(equation.params, *arguments)):
            results = [_dense(k, *arguments)]
        elif name == "pad" and _is_constant_pad(equation.params, arguments[1]):
            edges = [(low, high) for low, high, _ in equation.params["padding_config"]]
            results = [jnp.pad(arguments[0], edges, constant_values=float(arguments[1]))]
        elif name == "reduce_window_max":
            results = [_max_pool(equation.params, *arguments)]
        elif inner := INLINED.get(name):
            closed = equation.params[inner]
            results = _evaluate(closed.jaxpr, closed.consts, arguments, needed)
        else:
            with jax.ensure_compile_time_eval() if _is_constant(equation, arguments) else contextlib.nullcontext():
                found = equation.primitive.bind(*arguments, **equation.params)
            results = list(found) if equation.primitive.multiple_results else [found]
        values |= dict(zip(equation.outvars, results, strict=True))
    return [None if var is None else read(var) for var in outputs]


def _needed(equations: Sequence[Any], outputs: Sequence[Any]) -> list[tuple[Any, list[bool]]]:
    """The equations that the outputs need, in order, each with which of its results are needed."""
    wanted = {var for var in outputs if var is not None and not isinstance(var, core.Literal)}
    found = []
    for equation in reversed(equations):
        needed = [var in wanted for var in equation.outvars]
        if any(needed):
            found.append((equation, needed))
            wanted |= {var for var in equation.invars if not isinstance(var, core.Literal)}
    return found[::-1]


def _is_constant(equation: Any, arguments: Sequence[Any]) -> bool:
    """Whether the results are known already: they depend on no input, nor on the number of images."""
    sizes = [size for var in equation.outvars for size in var.aval.shape]
    return not any(isinstance(x, jax.core.Tracer) for x in arguments) and all(isinstance(x, int) for x in sizes)


def _dense_axes(parameters: Mapping[str, Any], x: Any, kernel: Any) -> int:
    """How many axes of a product of activations with a kernel [d ... e ...] are summed over; 0 of other products."""
    (ends, begins), (batch, _) = parameters["dimension_numbers"]
    k = len(ends)
    dense = not batch and tuple(ends) == tuple(range(x.ndim - k, x.ndim)) and tuple(begins) == tuple(range(k))
    return k if dense and not isinstance(kernel, jax.core.Tracer) else 0


def _dense(k: int, x: Any, kernel: Any) -> Any:
    """The product with a matrix: converters make an operator MatMul of it, which is fast and can be quantized."""
    rows = math.prod(kernel.shape[:k])
    flat = x if k == 1 else x.reshape(*x.shape[: x.ndim - k], rows)
    y = jnp.matmul(flat, np.asarray(kernel).reshape(rows, -1))
    return y if kernel.ndim == k + 1 else y.reshape(*x.shape[: x.ndim - k], *kernel.shape[k:])


def _is_constant_pad(parameters: Mapping[str, Any], value: Any) -> bool:
    """Whether edges alone are added; the primitive is one that jax2onnx cannot lower for a symbolic batch."""
    plain = all(low >= 0 and high >= 0 and not inner for low, high, inner in parameters["padding_config"])
    return plain and not isinstance(value, jax.core.Tracer)


def _max_pool(parameters: Mapping[str, Any], x: Any) -> Any:
    """The same by a function that converters know; one of all axes they take for a pool of four dimensions."""
    pads, window = parameters["padding"], tuple(parameters["window_dimensions"][1:-1])
    if any(map(any, pads)):
        x = jnp.pad(x, pads, constant_values=-jnp.inf)
    return nn.max_pool(x, window_shape=window, strides=tuple(parameters["window_strides"][1:-1]), padding="VALID")

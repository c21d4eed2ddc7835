"""Counts the floating-point operations of a function from its jaxpr: 2 per multiply-add, nothing is computed.

Counted: matrix products (`dot_general`) and convolutions, nearly all of a Vision Transformer's work, and fused
attention kernels (forward). Not counted: elementwise work, reductions, normalisation, softmax, gathers.

A count of a forward pass does not depend on rematerialisation or scan. In a gradient through `jax.checkpoint`, the
part that is computed again is counted again: to compare models, count the forward pass.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

UNITS = ("", "k", "M", "G", "T", "P", "E")


def count(fn: Callable[..., Any], *abstract_args: Any) -> int:
    """The operations of `fn(*abstract_args)`; the arguments are pytrees of arrays or `jax.ShapeDtypeStruct`.

    A scan counts `length` times its body and a `cond` its most expensive branch. The body of a `while` counts once,
    because its number of rounds is unknown. A `shard_map` counts once for each shard of its arguments.
    """
    return _jaxpr(jax.make_jaxpr(fn)(*abstract_args).jaxpr)


def human(n: int | float) -> str:
    """`n` with an SI prefix and two decimals: 1_582_000_000 -> `1.58 G`; below 1,000 as it is."""
    power = 0
    while abs(n) >= 999.995 and power < len(UNITS) - 1:  # 999.995 would print as 1000.00
        n, power = n / 1000, power + 1
    return f"{n:.2f} {UNITS[power]}" if power else f"{n:.4g}"


def _jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: JaxprEqn) -> int:
    match eqn.primitive.name:
        case "dot_general":
            return _dot(eqn)
        case "conv_general_dilated":
            return _convolution(eqn)
        case "dot_product_attention_fwd_wrapper":
            return _cudnn_attention(eqn)
        case "jit" if eqn.params["name"] == "depthwise_convolution":  # `ops.depthwise`: products of numbers
            return 2 * math.prod(_shape(eqn.outvars[0])) * math.prod(_shape(eqn.invars[1])[:2])
        case "cond":
            return max(_jaxpr(branch.jaxpr) for branch in eqn.params["branches"])
        case "scan":
            times = eqn.params["length"]
        case "shard_map":
            times = _shards(eqn)
        case "pallas_call":
            times = math.prod(eqn.params["grid_mapping"].grid)
        case _:  # jit, remat, custom_jvp, custom_vjp, while ... and the primitives that hold no jaxpr
            times = 1
    return times * sum(map(_jaxpr, jaxprs_in_params(eqn.params)))


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _dot(eqn: JaxprEqn) -> int:
    (lhs_contracting, _), _ = eqn.params["dimension_numbers"]
    lhs = _shape(eqn.invars[0])
    return 2 * math.prod(_shape(eqn.outvars[0])) * math.prod(lhs[axis] for axis in lhs_contracting)


def _convolution(eqn: JaxprEqn) -> int:
    """Windows that reach into the padding count whole, as in the literature; the holes of a dilated input do not count.

    With groups nothing changes: the kernel's input channels are those of one group, for feature and batch groups alike.
    """
    kernel, out = _shape(eqn.invars[1]), _shape(eqn.outvars[0])
    dims = eqn.params["dimension_numbers"]
    taps = 1  # pairs of an output position and a kernel position
    for i, (out_axis, kernel_axis) in enumerate(zip(dims.out_spec[2:], dims.rhs_spec[2:], strict=True)):
        starts = np.arange(out[out_axis]) * eqn.params["window_strides"][i] - eqn.params["padding"][i][0]
        reads = starts[:, None] + np.arange(kernel[kernel_axis]) * eqn.params["rhs_dilation"][i]
        taps *= int(np.count_nonzero(reads % eqn.params["lhs_dilation"][i] == 0))
    images, features = (out[axis] for axis in dims.out_spec[:2])
    return 2 * images * features * kernel[dims.rhs_spec[1]] * taps


def _cudnn_attention(eqn: JaxprEqn) -> int:
    """The two products of `jax.nn.dot_product_attention(implementation='cudnn')`: q [n l a e] or [n a l e], k alike."""
    query, key = (_shape(eqn.invars[i]) for i in range(2))
    tokens_axis = 2 if eqn.params["layout"] == 1 else 1
    return 4 * math.prod(query) * key[tokens_axis]


def _shards(eqn: JaxprEqn) -> int:
    """Into how many different blocks the arguments of a `shard_map` are cut: its body sees the shapes of one block."""
    entries = {entry for spec in eqn.params["in_specs"] for entry in spec if entry is not None}
    axes = {axis for entry in entries for axis in (entry if isinstance(entry, tuple) else (entry,))}
    return math.prod(eqn.params["mesh"].shape[axis] for axis in axes)

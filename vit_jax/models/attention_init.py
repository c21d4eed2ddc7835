"""Attention that starts as trained attention looks (Trockman & Kolter 2023, arXiv:2305.09828, s. 3).

Of a trained ViT the products of queries and keys are like the identity, those of values and outputs like its negative.
"""

import re

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key

from vit_jax.command import UserError
from vit_jax.trees import PyTree

NOISE_QK = SELF_QK = 0.7  # the paper's, for q k^T = NOISE_QK z + SELF_QK I, the deviation of z being width^-1/2
NOISE_VO = SELF_VO = 0.4  # for v out = NOISE_VO z - SELF_VO I
ATTENTION = r"Transformer/encoderblock_\d+/\w+Attention_\d+"


def mimetic(params: PyTree, rng: Key[Array, ""]) -> PyTree:
    """The parameters with new kernels of attention; layers are not stacked. All others, and biases, stay.

    Raises `UserError` for a model without attention, or with heads that are wider together than the tokens.
    """
    flat = flatten_dict(params, sep="/")
    modules = sorted({m[0] for name in flat if (m := re.match(ATTENTION, name))})
    if not modules:
        raise UserError("init.mimetic=True, but the model has no encoder blocks with attention; set it to False")
    for i, module in enumerate(modules):
        kernels = {part: flat[f"{module}/{part}/kernel"] for part in ("query", "out")}
        new = _kernels(jax.random.fold_in(rng, i), *kernels["query"].shape)
        flat |= {f"{module}/{part}/kernel": kernel for part, kernel in new.items()}
    return unflatten_dict(flat, sep="/")


def _kernels(rng: Key[Array, ""], d: int, a: int, e: int) -> dict[str, Float[Array, "..."]]:
    """The four kernels of an attention with `a` heads of size `e`."""
    if a * e > d:
        raise UserError(f"init.mimetic=True: {a} heads of {e} are wider than the {d} channels; set model.head_dim=0")
    qk_rng, vo_rng = jax.random.split(rng)
    noise = jax.random.normal(qk_rng, (a, d, d)) * d**-0.5
    query, key = jax.vmap(lambda z: _factors(NOISE_QK * z + SELF_QK * jnp.eye(d), e))(noise)  # [a d e]
    noise = jax.random.normal(vo_rng, (d, d)) * d**-0.5
    value, out = _factors(NOISE_VO * noise - SELF_VO * jnp.eye(d), a * e)
    return {
        "query": query.transpose(1, 0, 2),
        "key": key.transpose(1, 0, 2),
        "value": value.reshape(d, a, e),
        "out": out.T.reshape(a, e, d),
    }


def _factors(product: Float[Array, "d d"], rank: int) -> tuple[Float[Array, "d r"], Float[Array, "d r"]]:
    """u and v of this rank, equally large, for which u v^T is nearest to the product."""
    left, size, right = jnp.linalg.svd(product)
    root = jnp.sqrt(size[:rank])[None]
    return left[:, :rank] * root, right[:rank].T * root

"""Attention that starts with some structure, instead of random kernels.

`mimetic`: as trained attention looks (Trockman & Kolter 2023, arXiv:2305.09828, s. 3). Of a trained ViT the products of
queries and keys are like the identity, those of values and outputs like its negative.

`impulse`: as the small kernels of a convolution (Zheng et al. 2024, arXiv:2404.01139, s. 4): each head looks at one of
the nine places around a token. The paper fits queries and keys to that by gradients; here they are the least squares
solution, for positions that start as large as the patches.
"""

import re

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, Key

from vit_jax.command import UserError
from vit_jax.trees import PyTree

NOISE_QK = SELF_QK = 0.7  # the paper's, for q k^T = NOISE_QK z + SELF_QK I, the deviation of z being width^-1/2
NOISE_VO = SELF_VO = 0.4  # for v out = NOISE_VO z - SELF_VO I
SHARPNESS = 20.0  # of an impulse: the logit of the place that a head looks at, if tokens were positions alone
POSITIONS = "Transformer/posembed_input/pos_embedding"
ATTENTION = r"Transformer/encoderblock_\d+/\w+Attention_\d+"


def new_attention(kind: str, params: PyTree, rng: Key[Array, ""], grid: tuple[int, int]) -> PyTree:
    """The parameters of a model, of whose patches `grid` has the rows and columns, with the attention of this kind."""
    return mimetic(params, rng) if kind == "mimetic" else impulse(params, rng, grid)


def mimetic(params: PyTree, rng: Key[Array, ""]) -> PyTree:
    """The parameters with new kernels of attention; layers are not stacked. All others, and biases, stay.

    Raises `UserError` for a model without attention, or with heads that are wider together than the tokens.
    """
    flat = flatten_dict(params, sep="/")
    modules = _modules(flat, "mimetic")
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


def _modules(flat: dict[str, Array], kind: str) -> list[str]:
    """The attention modules of flat parameters, in the order of their names."""
    if not (modules := sorted({m[0] for name in flat if (m := re.match(ATTENTION, name))})):
        raise UserError(f"init.{kind}=True, but the model has no encoder blocks with attention; set it to False")
    return modules


def impulse(params: PyTree, rng: Key[Array, ""], grid: tuple[int, int]) -> PyTree:
    """The parameters with new positions, queries and keys; layers are not stacked. All others, and biases, stay.

    Raises `UserError` for a model without attention, or whose positions are not learned.
    """
    flat = flatten_dict(params, sep="/")
    modules = _modules(flat, "impulse")
    if POSITIONS not in flat:
        raise UserError("init.impulse=True, but the model has no learned positions; set model.pos_embed='learned'")
    flat[POSITIONS] = jax.random.normal(jax.random.fold_in(rng, len(modules)), flat[POSITIONS].shape)
    h, w = grid
    places = flat[POSITIONS][0, -h * w :]
    places = (places - places.mean(axis=1, keepdims=True)) / places.std(axis=1, keepdims=True)  # as the norm sees them
    seen = jnp.linalg.pinv(places)  # [d l]
    for i, module in enumerate(modules):
        d, a, e = flat[f"{module}/query/kernel"].shape
        shifts = jax.random.randint(jax.random.fold_in(rng, i), (a, 2), -1, 2)
        wanted = jax.vmap(lambda shift: _look(grid, shift))(shifts) * SHARPNESS * e**0.5  # the logits are over sqrt(e)
        query, key = jax.vmap(lambda logits, e=e: _factors(seen @ logits @ seen.T, e))(wanted)  # [a d e]
        flat |= {f"{module}/query/kernel": query.transpose(1, 0, 2), f"{module}/key/kernel": key.transpose(1, 0, 2)}
    return unflatten_dict(flat, sep="/")


def _look(grid: tuple[int, int], shift: Int[Array, "2"]) -> Float[Array, "l l"]:
    """1 where a token looks, at the place so many rows and columns away, the nearest one inside; 0 elsewhere."""
    h, w = grid
    y, x = jnp.divmod(jnp.arange(h * w), w)
    target = jnp.clip(y + shift[0], 0, h - 1) * w + jnp.clip(x + shift[1], 0, w - 1)
    return jax.nn.one_hot(target, h * w)

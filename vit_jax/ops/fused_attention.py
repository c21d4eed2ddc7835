"""Attention by kernels that never store the probabilities: cuDNN's on NVIDIA GPUs, JAX's Pallas one on TPUs.

softmax(q k^T / sqrt(e)) v for queries [n l a e], keys and values [n m a e] (Dao et al. 2022, arXiv:2205.14135).
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax import sharding
from vit_jax.command import UserError

# auto: what a run's own devices do fastest (`run.attention`); plain where nobody times it, as after training.
Kernel = Literal["auto", "plain", "cudnn", "pallas"]
KERNELS = ("cudnn", "pallas")
NEEDS = {
    "cudnn": "an NVIDIA GPU, dtype 'bfloat16' or 'float16', heads of a multiple of 8 up to 128",
    "pallas": "a TPU v4 or newer, heads up to 128 or a multiple of it",
}
LANES = 128  # Pallas works on blocks of so many tokens


def check(kernel: str, *, dtype: str, pos_embed: str, dropout: float, head_dim: int) -> None:
    """Raises `UserError` if the kernel cannot do what is asked; `dropout` of the probabilities, 0 outside training."""
    obstacles = {
        f"pos_embed={pos_embed!r}": pos_embed in ("relative", "relative_bias"),
        f"attention_dropout={dropout}": dropout > 0,
    }
    if kernel == "cudnn":
        obstacles |= {
            f"dtype={dtype!r}": dtype not in ("bfloat16", "float16"),
            f"heads of {head_dim} channels": head_dim % 8 != 0 or head_dim > 128,
        }
    else:
        obstacles[f"heads of {head_dim} channels"] = head_dim > LANES and head_dim % LANES != 0
    if found := [obstacle for obstacle, there in obstacles.items() if there]:
        raise UserError(_refusal(kernel, ", ".join(found)))


def check_device(kernel: str, platform: str, kind: str) -> None:
    """Raises `UserError` if devices of this platform and kind, as JAX calls them, have no kernel of that name."""
    if kernel in KERNELS and not runs_on(kernel, platform, kind):
        raise UserError(_refusal(kernel, f"the device {kind!r}"))


def _refusal(kernel: str, obstacles: str) -> str:
    return (
        f"model.attention={kernel!r} cannot do {obstacles}; it needs {NEEDS[kernel]}, no attention dropout, "
        "no positions in the logits; choose 'auto'"
    )


def runs_on(name: str, platform: str, kind: str) -> bool:
    """Whether devices of this platform and kind, as JAX calls them, have the kernel of that name."""
    if name == "cudnn":
        return platform == "gpu"
    return platform == "tpu" and not kind.startswith(("TPU v2", "TPU v3"))


def fused_attention(
    name: str, q: Float[Array, "n l a e"], k: Float[Array, "n m a e"], v: Float[Array, "n m a e"]
) -> Float[Array, "n l a e"]:
    """By the kernel of that name; tokens are padded to what it wants."""
    return {"cudnn": cudnn, "pallas": pallas}[name](q, k, v)


def cudnn(
    q: Float[Array, "n l a e"], k: Float[Array, "n m a e"], v: Float[Array, "n m a e"]
) -> Float[Array, "n l a e"]:
    """By cuDNN, whose backward pass wants even numbers of tokens."""
    n, l, m = q.shape[0], q.shape[1], k.shape[1]
    lengths: dict[str, Any] = {}
    if l % 2 or m % 2:
        q, k, v = (_padded(x, 2) for x in (q, k, v))
        sizes = {"query_seq_lengths": l, "key_value_seq_lengths": m}
        lengths = {name: jnp.full(n, size, jnp.int32) for name, size in sizes.items()}
    try:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **lengths)[:, :l]
    except RuntimeError as error:  # JAX finds no cuDNN, or none that is new enough
        raise UserError(_refusal("cudnn", f"this machine ({error})")) from error


def pallas(
    q: Float[Array, "n l a e"], k: Float[Array, "n m a e"], v: Float[Array, "n m a e"]
) -> Float[Array, "n l a e"]:
    """By `jax.experimental.pallas.ops.tpu.flash_attention`, on each device for the images that it has."""
    return sharding.on_each_device(partial(_pallas, l=q.shape[1], m=k.shape[1]))(
        *(_padded(x, LANES) for x in (q, k, v))
    )


def _pallas(q: Array, k: Array, v: Array, *, l: int, m: int) -> Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash  # half a second, for TPUs alone

    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    n, a, rows, e = q.shape
    # Tokens see those of their own segment; padding is one of its own.
    segments = [
        jnp.broadcast_to((jnp.arange(x.shape[2]) >= size).astype(jnp.int32), (n, x.shape[2]))
        for x, size in ((q, l), (k, m))
    ]
    x = flash.flash_attention(
        q,
        k,
        v,
        segment_ids=flash.SegmentIds(*segments),
        sm_scale=e**-0.5,
        block_sizes=flash.BlockSizes.get_default(n, a, rows, k.shape[2], e),
    )
    return x.swapaxes(1, 2)[:, :l]


def _padded(x: Float[Array, "n l a e"], multiple: int) -> Float[Array, "n L a e"]:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0)))

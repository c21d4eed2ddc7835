"""The contender `flax`: the plain Vision Transformer that a textbook would write in Flax Linen, and its training step.

Structured as Google's code bases do it: a convolution cuts the patches, `nn.MultiHeadDotProductAttention` attends, one
module for each block, no scan. It computes what our ViT computes with the same sizes, and has as many parameters.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from benchmarks import machine
from benchmarks.step import images
from benchmarks.workloads import Case
from vit_jax import trees
from vit_jax.command import UserError


class EncoderBlock(nn.Module):
    """A pre-norm transformer block with exact GELU."""

    mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"], *, train: bool) -> Float[Array, "n l d"]:
        xavier, drop = nn.initializers.xavier_uniform(), partial(nn.Dropout, self.dropout, deterministic=not train)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=xavier, bias_init=nn.initializers.normal(1e-6))
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = nn.MultiHeadDotProductAttention(
            num_heads=self.num_heads, dtype=self.dtype, kernel_init=xavier, deterministic=not train
        )(y, y)
        x = x + drop()(y)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = drop()(nn.gelu(dense(self.mlp_dim)(y), approximate=False))
        return x + drop()(dense(x.shape[-1])(y))


class ViT(nn.Module):
    """Images [n H W c] to logits [n k], float32: class token, learned positions, `depth` blocks, norm, linear head.

    `dropout` acts on the embedded tokens, after each attention's output and after both layers of each MLP; in training
    it takes the RNG `dropout`.
    """

    patch_size: int
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_classes: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n H W c"], *, train: bool) -> Float[Array, "n k"]:
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(self.width, patch, strides=patch, padding="VALID", dtype=self.dtype, name="embedding")(images)
        n, h, w, d = x.shape
        x = x.reshape(n, h * w, d)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, d))
        x = jnp.concatenate([jnp.broadcast_to(cls, (n, 1, d)).astype(x.dtype), x], axis=1)
        pos_embed = self.param("pos_embedding", nn.initializers.normal(stddev=0.02), (1, h * w + 1, d))
        x = x + pos_embed.astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for i in range(self.depth):
            block = EncoderBlock(self.mlp_dim, self.num_heads, self.dropout, self.dtype, name=f"encoderblock_{i}")
            x = block(x, train=train)
        x = nn.LayerNorm(dtype=self.dtype, name="encoder_norm")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x[:, 0]).astype(jnp.float32)


def fields(model: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The sizes of a plain ViT that a `model` group describes; `UserError` where it is more than that."""
    rates = {model.get(name) for name in ("dropout", "projection_dropout", "embedding_dropout")}
    name = model["name"]
    plain = name.partition("/")[0] == "vit" and len(rates) == 1 and model["class_token"] and not model["head_dim"]
    if not plain:
        raise UserError(f"model {name!r} has no twin in the textbook: it writes plain ViTs with one dropout rate only")
    sizes = {field: model[field] for field in ("width", "depth", "mlp_dim", "num_heads", "dropout")}
    return {"patch_size": model["patch_size"][0], "num_classes": num_classes, **sizes}


def normalised(images: Array) -> Array:
    """Pixels from 0 to 255 as floats from -1 to 1."""
    return images.astype(jnp.float32) / 127.5 - 1


def init_state(model: ViT, tx: optax.GradientTransformation, size: Sequence[int]) -> tuple[Any, Any, Array]:
    """Parameters, the optimizer's state, and the number of steps: 0."""
    params: Any = model.init(jax.random.key(0), jnp.zeros((1, *size)), train=False)["params"]
    return params, tx.init(params), jnp.zeros((), jnp.int32)


def train_step(model: ViT, tx: Any, state: Any, images: Array, labels: Array) -> tuple[Any, Array]:
    """The step that a tutorial would write: cross-entropy, its gradient, an update."""
    params, opt_state, step = state

    def loss_fn(params: Any) -> Array:
        rngs = {"dropout": jax.random.fold_in(jax.random.key(1), step)}
        logits = model.apply({"params": params}, normalised(images), train=True, rngs=rngs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state, step + 1), loss


class Flax:
    """A textbook's state and jitted step. The images are on the device. `overrides` change how ours computes."""

    def __init__(self, case: Case, overrides: Sequence[str] = ()) -> None:
        given, (batch, labels, classes) = case.config(), images(case)
        model = ViT(dtype=jnp.dtype(case.dtype), **fields(given.model, classes))
        tx = optax.adamw(given.optim.lr, weight_decay=given.optim.weight_decay)
        self.data = jnp.asarray(batch), jnp.asarray(labels)
        self.state: Any = jax.jit(lambda: init_state(model, tx, batch.shape[1:]))()
        self.parameters = trees.count(self.state[0])

        def forward(state: Any, images: Array, labels: Array) -> tuple[Any, Any]:
            return state, model.apply({"params": state[0]}, normalised(images), train=False)

        step = partial(train_step, model, tx) if case.mode == "train" else forward
        began = time.perf_counter()
        self.step = jax.jit(step, donate_argnums=0).lower(self.state, *self.data).compile()
        self.compile_seconds = time.perf_counter() - began

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.state, out = self.step(self.state, *self.data)
            if not machine.is_gpu():
                jax.block_until_ready(out)
        jax.block_until_ready((self.state, out))

    def peak_bytes(self) -> int | None:
        return machine.peak_bytes(self.step)

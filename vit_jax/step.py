"""One training step and one evaluation step, as pure functions of arrays.

A batch holds either uint8 images and labels, or indices into `frozen`, the whole split on the device. Randomness is a
function of (seed, step, purpose): nothing random is kept in the state.
"""

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, UInt8

from vit_jax import augment, losses, trees
from vit_jax.trees import PyTree

Batch = Mapping[str, Array]
Metrics = dict[str, Array]
TrainStep = Callable[["TrainState", Batch, Batch], tuple["TrainState", Metrics]]


class Purpose(IntEnum):
    """What randomness is for. Append only: a new purpose then leaves the draws of the others alone."""

    PARAMS = 0
    AUGMENT = 1
    DROPOUT = 2


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes; or, in the same places, the shapes or shardings of it."""

    step: PyTree  # updates done
    params: PyTree
    batch_stats: PyTree  # running statistics of batch norms; {} without any
    opt_state: PyTree
    ema: PyTree  # averages of params and batch_stats, under these names; {} if off
    guard: dict[str, PyTree]  # updates skipped because not finite: `skipped` in all, `in_a_row` just now


def rng_for(seed: int, purpose: Purpose, step: Int[Array, ""] | int = 0) -> Key[Array, ""]:
    """The key of a purpose at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def init_variables(model: nn.Module, seed: int, image_shape: tuple[int, int, int]) -> dict[str, PyTree]:
    """`params` and `batch_stats` of a new model; a scanned model's are those of its looped twin, stacked."""
    looped = model.clone(scan=False) if getattr(model, "scan", False) else model
    images = jnp.zeros((1, *image_shape))
    rng = rng_for(seed, Purpose.PARAMS)
    variables = looped.init(rng, images, train=False, mutable=["params", "batch_stats"])
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    return trees.stack_layers(variables) if looped is not model else variables


def init_state(
    model: nn.Module, tx: optax.GradientTransformation, seed: int, image_shape: tuple[int, int, int], *, ema: bool
) -> TrainState:
    """The state before the first step."""
    variables = init_variables(model, seed, image_shape)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        opt_state=tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, variables) if ema else {},
        guard={"skipped": zero, "in_a_row": zero},
        **variables,
    )


def fetch(batch: Batch, frozen: Batch) -> tuple[Array, Array]:
    """Images uint8 [n h w c] and labels [n] of a batch."""
    if "index" in batch:
        return frozen["image"][batch["index"]], frozen["label"][batch["index"]]
    return batch["image"], batch["label"]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    view: augment.Settings,
    *,
    seed: int,
    num_classes: int,
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> TrainStep:
    """`(state, batch, frozen) -> (state, metrics)`: one update from one batch.

    With `accumulate` m the batch is processed in m parts, one after another, and their gradients averaged. An update
    that is not finite is skipped and counted; the step number advances all the same.
    """
    per_example = losses.softmax_cross_entropy if loss == "softmax" else losses.sigmoid_cross_entropy

    def loss_fn(params, batch_stats, part, frozen, step, number):
        images, labels = fetch(part, frozen)
        augment_rng = rng_for(seed, Purpose.AUGMENT, step)
        images = augment.train_view(view, images, jax.vmap(lambda i: jax.random.fold_in(augment_rng, i))(part["row"]))
        rng = jax.random.fold_in(rng_for(seed, Purpose.DROPOUT, step), number)
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = model.apply(variables, images, train=True, rngs={"dropout": rng}, mutable=["batch_stats"])
        loss = per_example(logits, losses.one_hot(labels, num_classes, label_smoothing)).mean()
        accuracy = (logits.argmax(axis=-1) == labels).mean()
        return loss, (changed.get("batch_stats", {}), {"loss": loss, "accuracy": accuracy})

    grad_fn = jax.grad(loss_fn, has_aux=True)

    def gradients(state, batch, frozen):
        n = len(jax.tree.leaves(batch)[0])
        batch = {**batch, "row": jnp.arange(n)}
        if accumulate == 1:
            grads, (batch_stats, metrics) = grad_fn(state.params, state.batch_stats, batch, frozen, state.step, 0)
            return grads, batch_stats, metrics
        # Part j takes rows j, j + m, ...: each device then keeps the rows that it has.
        parts = {k: jnp.moveaxis(x.reshape(n // accumulate, accumulate, *x.shape[1:]), 1, 0) for k, x in batch.items()}

        def body(carry, inputs):
            total, batch_stats = carry
            part, number = inputs
            grads, (batch_stats, metrics) = grad_fn(state.params, batch_stats, part, frozen, state.step, number)
            return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        inputs = (parts, jnp.arange(accumulate))
        (total, batch_stats), metrics = jax.lax.scan(body, (zeros, state.batch_stats), inputs)
        return jax.tree.map(lambda x: x / accumulate, total), batch_stats, jax.tree.map(jnp.mean, metrics)

    def train_step(state: TrainState, batch: Batch, frozen: Batch) -> tuple[TrainState, Metrics]:
        grads, batch_stats, metrics = gradients(state, batch, frozen)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        grad_norm = optax.tree.norm(grads)
        new = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
        if ema_decay:
            new = new.replace(ema=_average(state.ema, {"params": params, "batch_stats": batch_stats}, ema_decay))
        param_norm = optax.tree.norm(params)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(param_norm)
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        bad = 1 - finite.astype(jnp.int32)
        guard = {"skipped": state.guard["skipped"] + bad, "in_a_row": (state.guard["in_a_row"] + 1) * bad}
        metrics |= {"lr": rate(state.step - state.guard["skipped"]), "grad_norm": grad_norm, "param_norm": param_norm}
        metrics |= {"skipped_updates": guard["skipped"], "skipped_in_a_row": guard["in_a_row"]}
        return new.replace(step=state.step + 1, guard=guard), metrics

    return train_step


def _average(old: PyTree, new: PyTree, decay: float) -> PyTree:
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def evaluation_variables(state: TrainState) -> dict[str, PyTree]:
    """What evaluation and every user of the model reads: the averages where there are any."""
    return state.ema or {"params": state.params, "batch_stats": state.batch_stats}


def make_eval_step(model: nn.Module, view: augment.Settings) -> Callable[[PyTree, Batch, Batch], dict[str, Array]]:
    """`(variables, batch, frozen) -> {"logits" [n k], "label" [n], "weight" [n]}`; weight 0 is padding."""

    forward = make_forward(model, view)

    def eval_step(variables: PyTree, batch: Batch, frozen: Batch) -> dict[str, Array]:
        images, labels = fetch(batch, frozen)
        return {"logits": forward(variables, images), "label": labels, "weight": batch["weight"]}

    return eval_step


def make_forward(model: nn.Module, view: augment.Settings) -> Callable[[PyTree, Any], Array]:
    """`(variables, images uint8 [n h w c]) -> logits [n k]`."""

    def forward(variables: PyTree, images: UInt8[Array, "n h w c"]) -> Float[Array, "n k"]:
        logits = model.apply(variables, augment.eval_view(view, images), train=False)
        assert isinstance(logits, Array)
        return logits

    return forward

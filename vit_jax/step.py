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
Gradients = Callable[..., tuple[PyTree, PyTree, Metrics]]
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

    def loss_of(logits: Float[Array, "n k"], labels: Int[Array, " n"]) -> Float[Array, ""]:
        return per_example(logits, losses.one_hot(labels, num_classes, label_smoothing)).mean()

    gradients = _accumulated(_make_gradients(model, view, loss_of, seed), accumulate)

    def train_step(state: TrainState, batch: Batch, frozen: Batch) -> tuple[TrainState, Metrics]:
        grads, batch_stats, metrics = gradients(state, {**batch, "row": _rows(batch)}, frozen)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
        if ema_decay:
            new = new.replace(ema=_average(state.ema, {"params": params, "batch_stats": batch_stats}, ema_decay))
        # The schedule counts the updates that were done.
        metrics["lr"] = rate(state.step - state.guard["skipped"])
        metrics |= {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        new = _guarded(state, new, [metrics[k] for k in ("loss", "grad_norm", "param_norm")])
        metrics |= {"skipped_updates": new.guard["skipped"], "skipped_in_a_row": new.guard["in_a_row"]}
        return new.replace(step=state.step + 1), metrics

    return train_step


def _make_gradients(model: nn.Module, view: augment.Settings, loss_of: Callable[..., Array], seed: int) -> Gradients:
    """`(state, part of a batch, frozen, number of the part) -> (gradients, batch statistics, metrics)`."""

    def loss_fn(params: PyTree, state: TrainState, part: Batch, frozen: Batch, number: Any) -> tuple[Array, Any]:
        images, labels = fetch(part, frozen)
        augment_rng = rng_for(seed, Purpose.AUGMENT, state.step)
        images = augment.train_view(view, images, jax.vmap(lambda i: jax.random.fold_in(augment_rng, i))(part["row"]))
        rng = jax.random.fold_in(rng_for(seed, Purpose.DROPOUT, state.step), number)
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = model.apply(variables, images, train=True, rngs={"dropout": rng}, mutable=["batch_stats"])
        loss, accuracy = loss_of(logits, labels), (logits.argmax(axis=-1) == labels).mean()
        return loss, (changed.get("batch_stats", {}), {"loss": loss, "accuracy": accuracy})

    def gradients(state: TrainState, part: Batch, frozen: Batch, number: Any = 0) -> tuple[PyTree, PyTree, Metrics]:
        grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params, state, part, frozen, number)
        return grads, batch_stats, metrics

    return gradients


def _accumulated(gradients: Gradients, m: int) -> Gradients:
    """The same for the whole batch in m parts, one after another: the mean of their gradients and metrics.

    Part j takes the rows j, j + m, ...: each device then keeps the rows that it has.
    """
    if m == 1:
        return gradients

    def accumulated(state: TrainState, batch: Batch, frozen: Batch) -> tuple[PyTree, PyTree, Metrics]:
        parts = {k: jnp.moveaxis(x.reshape(len(x) // m, m, *x.shape[1:]), 1, 0) for k, x in batch.items()}

        def body(carry: tuple[PyTree, PyTree], inputs: tuple[Batch, Array]) -> tuple[tuple[PyTree, PyTree], Metrics]:
            total, batch_stats = carry
            grads, batch_stats, metrics = gradients(
                state.replace(batch_stats=batch_stats), inputs[0], frozen, inputs[1]
            )
            return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

        start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
        (total, batch_stats), metrics = jax.lax.scan(body, start, (parts, jnp.arange(m)))
        return jax.tree.map(lambda x: x / m, total), batch_stats, jax.tree.map(jnp.mean, metrics)

    return accumulated


def _guarded(old: TrainState, new: TrainState, values: list[Array]) -> TrainState:
    """The new state, or the old one if a value is not finite; the guard counts which."""
    finite = jnp.isfinite(jnp.stack(values)).all()
    kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)
    bad = 1 - finite.astype(jnp.int32)
    guard = {"skipped": old.guard["skipped"] + bad, "in_a_row": (old.guard["in_a_row"] + 1) * bad}
    return kept.replace(guard=guard)


def _rows(batch: Batch) -> Int[Array, " n"]:
    """The place of each image in the whole batch, which its randomness depends on."""
    return jnp.arange(len(jax.tree.leaves(batch)[0]))


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

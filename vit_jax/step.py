"""One training step and one evaluation step, as pure functions of arrays.

A batch holds either uint8 images and labels, or indices into `frozen`, the whole split on the device. Randomness is a
function of (seed, step, purpose): nothing random is kept in the state.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, UInt8

from vit_jax import augment, losses, optim, trees
from vit_jax.trees import PyTree

Batch = Mapping[str, Array]
Frozen = Mapping[str, PyTree]  # what a step reads but never changes: a split on the device, a teacher's variables
Metrics = dict[str, Array]
Gradients = Callable[..., tuple[PyTree, PyTree, Metrics]]
TrainStep = Callable[["TrainState", Batch, Frozen], tuple["TrainState", Metrics]]
EvalStep = Callable[[PyTree, Batch, Frozen], dict[str, Array]]

LOSSES = {  # `train.loss`
    "softmax": losses.softmax_cross_entropy,
    "sigmoid": losses.sigmoid_cross_entropy,
    "multi_hot": losses.multi_hot_cross_entropy,
}


class Purpose(IntEnum):
    """What randomness is for. Append only: a new purpose then leaves the draws of the others alone."""

    PARAMS = 0
    AUGMENT = 1
    DROPOUT = 2
    MIX = 3


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


def fetch(batch: Batch, frozen: Frozen) -> tuple[Array, Array]:
    """Images uint8 [n h w c] and labels [n] of a batch."""
    if "index" in batch:
        return frozen["image"][batch["index"]], frozen["label"][batch["index"]]
    return batch["image"], batch["label"]


@dataclass(frozen=True)
class Objective:
    """What a training step minimises."""

    num_classes: int
    loss: Literal["softmax", "sigmoid", "multi_hot"] = "softmax"
    label_smoothing: float = 0.0
    # `(its variables, the student's images) -> logits`; the variables are `frozen["teacher"]`.
    teacher: Callable[[PyTree, Float[Array, "n h w c"]], Float[Array, "n k"]] | None = None
    distillation: Literal["hard", "soft"] = "hard"
    distillation_weight: float = 0.5
    temperature: float = 1.0

    def targets(self, labels: Int[Array, " n"]) -> Float[Array, "n k"]:
        """The labels as probabilities, smoothed."""
        return losses.one_hot(labels, self.num_classes, self.label_smoothing)

    def __call__(
        self, logits: Float[Array, "n k"], targets: Float[Array, "n k"], taught: tuple[Array, Array] | None
    ) -> Float[Array, ""]:
        """The mean loss; `taught`: the student's logits that learn from the teacher, and the teacher's."""
        loss = LOSSES[self.loss](logits, targets)
        if taught is not None:
            soft = self.distillation == "soft"
            of_teacher = (
                losses.soft_distillation(*taught, self.temperature) if soft else losses.hard_distillation(*taught)
            )
            loss = (1 - self.distillation_weight) * loss + self.distillation_weight * of_teacher
        return loss.mean()


def everything(params: PyTree) -> PyTree:
    """True for each parameter."""
    return jax.tree.map(lambda _: True, params)


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    rate: optim.Rate,
    view: augment.Settings,
    objective: Objective,
    *,
    seed: int,
    total_steps: int,
    trained: Callable[[PyTree], PyTree] = everything,
    accumulate: int = 1,
    independent: bool = True,
    sam_rho: float = 0.0,
    ema_decay: float = 0.0,
    ema_warmup: bool = False,
) -> TrainStep:
    """`(state, batch, frozen) -> (state, metrics)`: one update from one batch.

    `tx` gives the direction, `rate` how far. `total_steps` 0: `frozen["total_steps"]` tells it at each step.
    `trained`, of the parameters, is a tree of booleans: which of them have a gradient at all.
    With `accumulate` m the batch is processed in m parts, one after another, and their gradients averaged; where its
    images are `independent`, none repeated, their noise is measured, too. An update that is not finite is skipped and
    counted; the step number advances all the same.
    """
    gradients = _accumulated(_make_gradients(model, view, objective, seed, trained), accumulate, independent)
    if sam_rho:
        gradients = _sharpness_aware(gradients, sam_rho)

    def train_step(state: TrainState, batch: Batch, frozen: Frozen) -> tuple[TrainState, Metrics]:
        grads, batch_stats, metrics = gradients(state, {**batch, "row": _rows(batch)}, frozen)
        done = state.step - state.guard["skipped"]  # the schedules count the updates that were done
        lr = rate(done, total_steps or frozen["total_steps"])
        directions, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, jax.tree.map(lambda x: -lr * x, directions))
        new = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
        if ema_decay:
            decay = jnp.minimum(ema_decay, (1 + done) / (10 + done)) if ema_warmup else ema_decay
            new = new.replace(ema=_average(state.ema, {"params": params, "batch_stats": batch_stats}, decay))
        metrics |= {"lr": lr, "grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        new = _guarded(state, new, [metrics[k] for k in ("loss", "grad_norm", "param_norm")])
        metrics |= {"skipped_updates": new.guard["skipped"], "skipped_in_a_row": new.guard["in_a_row"]}
        return new.replace(step=state.step + 1), metrics

    return train_step


def augmented(
    view: augment.Settings,
    images: UInt8[Array, "n h w c"],
    targets: Float[Array, "n k"],
    *,
    seed: int,
    step: Int[Array, ""] | int,
    rows: Int[Array, " n"],
    number: Int[Array, ""] | int = 0,
) -> tuple[Float[Array, "n H W c"], Float[Array, "n k"]]:
    """What the model sees at a step of the images in these rows of its batch, part `number` of it, and the targets."""
    rng, mix_rng = (rng_for(seed, purpose, step) for purpose in (Purpose.AUGMENT, Purpose.MIX))
    seen = augment.train_view(view, images, jax.vmap(lambda row: jax.random.fold_in(rng, row))(rows))
    return augment.mix(view, jax.random.fold_in(mix_rng, number), seen, targets)


def _make_gradients(
    model: nn.Module, view: augment.Settings, objective: Objective, seed: int, trained: Callable[[PyTree], PyTree]
) -> Gradients:
    """`(state, part of a batch, frozen, number of the part) -> (gradients, batch statistics, metrics)`."""

    def loss_fn(params: PyTree, state: TrainState, part: Batch, frozen: Frozen, number: Any) -> tuple[Array, Any]:
        params = jax.tree.map(
            lambda leaf, trains: leaf if trains else jax.lax.stop_gradient(leaf), params, trained(params)
        )
        images, labels = fetch(part, frozen)
        images, targets = augmented(
            view, images, objective.targets(labels), seed=seed, step=state.step, rows=part["row"], number=number
        )
        dropout_rng = jax.random.fold_in(rng_for(seed, Purpose.DROPOUT, state.step), number)
        logits, changed = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            rngs={"dropout": dropout_rng},
            mutable=["batch_stats", "distillation"],
        )
        taught = None
        if objective.teacher is not None:
            student = changed["distillation"]["logits"][0] if "distillation" in changed else logits
            taught = (student, objective.teacher(frozen["teacher"], images))
        loss = objective(logits, targets, taught)
        # Of mixed images, the share that is taken for what they show most of.
        accuracy = (logits.argmax(axis=-1) == targets.argmax(axis=-1)).mean()
        return loss, (changed.get("batch_stats", {}), {"loss": loss, "accuracy": accuracy})

    def gradients(state: TrainState, part: Batch, frozen: Frozen, number: Any = 0) -> tuple[PyTree, PyTree, Metrics]:
        grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params, state, part, frozen, number)
        return grads, batch_stats, metrics

    return gradients


def _accumulated(gradients: Gradients, m: int, independent: bool) -> Gradients:
    """The same for the whole batch in m parts, one after another: the mean of their gradients and metrics.

    Part j takes the rows j, j + m, ...: each device then keeps the rows that it has.

    From the gradients of two batch sizes, where the images are independent, come unbiased estimates of the squared
    norm of the true gradient, and of the trace of the covariance of one image's (McCandlish et al. 2018,
    arXiv:1812.06162, appendix A.1): `grad_signal` and `grad_variance`. Averages of many steps, divided, are the
    gradient noise scale, in images.
    """
    if m == 1:
        return gradients

    def accumulated(state: TrainState, batch: Batch, frozen: Frozen) -> tuple[PyTree, PyTree, Metrics]:
        parts = {k: jnp.moveaxis(x.reshape(len(x) // m, m, *x.shape[1:]), 1, 0) for k, x in batch.items()}

        def body(carry: tuple[PyTree, PyTree], inputs: tuple[Batch, Array]) -> tuple[tuple[PyTree, PyTree], Metrics]:
            total, batch_stats = carry
            grads, batch_stats, metrics = gradients(
                state.replace(batch_stats=batch_stats), inputs[0], frozen, inputs[1]
            )
            metrics = {**metrics, "of_part": optax.tree.norm(grads, squared=True)}
            return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

        start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
        (total, batch_stats), metrics = jax.lax.scan(body, start, (parts, jnp.arange(m)))
        grads, metrics = jax.tree.map(lambda x: x / m, total), jax.tree.map(jnp.mean, metrics)
        of_part, of_whole = metrics.pop("of_part"), optax.tree.norm(grads, squared=True)
        if independent:
            metrics["grad_signal"] = (m * of_whole - of_part) / (m - 1)
            metrics["grad_variance"] = (of_part - of_whole) * len(batch["row"]) / (m - 1)
        return grads, batch_stats, metrics

    return accumulated


def _sharpness_aware(gradients: Gradients, rho: float) -> Gradients:
    """The gradients at the worst point of a ball of radius `rho` around the parameters, to first order.

    Sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412, alg. 1), over the whole batch, with the same
    randomness twice. Metrics and batch statistics are those of the parameters themselves; `grad_norm` is of what
    the update takes, the gradients from up the slope.
    """

    def sharpness_aware(state: TrainState, batch: Batch, frozen: Frozen) -> tuple[PyTree, PyTree, Metrics]:
        grads, batch_stats, metrics = gradients(state, batch, frozen)
        scale = rho / (optax.tree.norm(grads) + 1e-12)
        worst = jax.tree.map(lambda p, g: p + scale * g, state.params, grads)
        grads, _, _ = gradients(state.replace(params=worst), batch, frozen)
        return grads, batch_stats, metrics

    return sharpness_aware


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


def _average(old: PyTree, new: PyTree, decay: Array | float) -> PyTree:
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def evaluation_variables(state: TrainState) -> dict[str, PyTree]:
    """What evaluation and every user of the model reads: the averages where there are any."""
    return state.ema or {"params": state.params, "batch_stats": state.batch_stats}


def make_eval_step(
    model: nn.Module, view: augment.Settings, perturbation: augment.Perturbation | None = None
) -> EvalStep:
    """`(variables, batch, frozen) -> {"logits" [n k], "label" [n], "weight" [n]}`; weight 0 is padding."""

    forward = make_forward(model, view)

    def eval_step(variables: PyTree, batch: Batch, frozen: Frozen) -> dict[str, Array]:
        images, labels = fetch(batch, frozen)
        if perturbation is not None:
            images = augment.perturb(perturbation, images, batch["number"])
        return {"logits": forward(variables, images), "label": labels, "weight": batch["weight"]}

    return eval_step


def make_forward(model: nn.Module, view: augment.Settings) -> Callable[[PyTree, Any], Array]:
    """`(variables, images uint8 [n h w c]) -> logits [n k]`."""

    def forward(variables: PyTree, images: UInt8[Array, "n h w c"]) -> Float[Array, "n k"]:
        logits = model.apply(variables, augment.eval_view(view, images), train=False)
        assert isinstance(logits, Array)
        return logits

    return forward

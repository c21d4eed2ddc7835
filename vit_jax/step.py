"""One training step and one evaluation step of any task, as pure functions of arrays.

A batch holds examples, or indices into `constants["examples"]`, a whole split on the device. Randomness is a function
of (seed, step, purpose): nothing random is kept in the state.
"""

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from vit_jax import augment, models, optim, trees
from vit_jax.tasks import Aux, Rngs, Task, gathered
from vit_jax.trees import PyTree

Batch = Mapping[str, Array]
Constants = Mapping[str, PyTree]  # arrays that a step reads and never changes: a split on the device, a teacher's ...
Metrics = dict[str, Array]
PLAIN = {"scan": False, "remat": "none", "attention": "plain"}
RECENT = 128  # steps that a spike is compared with
Gradients = Callable[..., tuple[PyTree, Aux]]
TrainStep = Callable[["TrainState", Batch, Constants], tuple["TrainState", Metrics]]
EvalStep = Callable[[PyTree, Batch, Constants], dict[str, Array]]


class Purpose(IntEnum):
    """What randomness is for. Append only: a new purpose then leaves the draws of the others alone."""

    PARAMS = 0
    AUGMENT = 1
    DROPOUT = 2
    MIX = 3
    TASK = 4
    MIMETIC = 5


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes; or, in the same places, the shapes or shardings of it."""

    step: PyTree  # updates done
    params: PyTree
    batch_stats: PyTree  # running statistics of batch norms; {} without any
    opt_state: PyTree
    ema: PyTree  # an average of params, and batch_stats for it, under these names; {} if off
    # Updates skipped because not finite, or spiking: `skipped` in all, `in_a_row` just now; with a spike guard the last
    # losses and gradient norms, `recent` [2 RECENT], and how many there were, `seen`.
    guard: dict[str, PyTree]
    task: PyTree = flax.struct.field(default_factory=dict)  # the task's own, see `Task.init_state`


def rng_for(seed: int, purpose: Purpose, step: Int[Array, ""] | int = 0) -> Key[Array, ""]:
    """The key of a purpose at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def rngs_for(seed: int, step: Int[Array, ""] | int, rows: Int[Array, " n"], number: Int[Array, ""] | int = 0) -> Rngs:
    """Keys for part `number` of a step's batch; `rows` are the places of its examples in the whole batch."""
    augment_rng, mix_rng, dropout_rng, task_rng = (
        rng_for(seed, purpose, step) for purpose in (Purpose.AUGMENT, Purpose.MIX, Purpose.DROPOUT, Purpose.TASK)
    )
    of_rows = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return Rngs(
        augment=of_rows(augment_rng, rows),
        mix=jax.random.fold_in(mix_rng, number),
        dropout=jax.random.fold_in(dropout_rng, number),
        task=of_rows(task_rng, rows),
    )


def with_field(module: nn.Module, field: str, value: Any) -> nn.Module:
    """The module with this field set, also in its inner modules that have it; itself if nothing changes."""
    inner = {name: part for name, part in vars(module).items() if isinstance(part, nn.Module) and name != "parent"}
    changes: dict[str, Any] = {
        name: new for name, old in inner.items() if (new := with_field(old, field, value)) is not old
    }
    if getattr(module, field, value) != value:
        changes[field] = value
    return module.clone(**changes) if changes else module


def plain(module: nn.Module) -> nn.Module:
    """The module as a loop over layers with plain attention: it runs anywhere, and all that happens can be seen.

    Scanned layers, recomputation and fused kernels change no result.
    """
    for field, value in PLAIN.items():
        module = with_field(module, field, value)
    return module


def init_variables(module: nn.Module, seed: int, image_shape: tuple[int, int, int]) -> dict[str, PyTree]:
    """`params` and `batch_stats` of a new module; a scanned one's are those of its looped twin, stacked."""
    twin, images = with_field(module, "scan", False), jnp.zeros((1, *image_shape))
    rng = rng_for(seed, Purpose.PARAMS)
    variables = twin.init(rng, images, train=False, mutable=["params", "batch_stats"])
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    return trees.stack_layers(variables) if twin is not module else variables


def init_state(
    task: Task,
    tx: optax.GradientTransformation,
    seed: int,
    *,
    ema: bool,
    attention: str = "",
    spike_guard: bool = False,
) -> TrainState:
    """The state before the first step; `attention`: "mimetic", "impulse", or random, see `models.attention_init`."""
    variables = init_variables(task.module, seed, task.parts.image_shape)
    if attention:
        stacked = any(map(trees.is_stacked, trees.names(variables["params"])))
        grid = getattr(task.parts.model, "grid", lambda shape: (0, 0))(task.parts.image_shape)
        unstacked = trees.unstack_layers(variables["params"])
        params = models.new_attention(attention, unstacked, rng_for(seed, Purpose.MIMETIC), grid)
        variables["params"] = trees.stack_layers(params) if stacked else params
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        opt_state=tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, variables) if ema else {},
        guard={"skipped": zero, "in_a_row": zero} | (_no_spikes() if spike_guard else {}),
        task=task.init_state(variables["params"]),
        **variables,
    )


def all_trainable(params: PyTree) -> PyTree:
    """True for each parameter."""
    return jax.tree.map(lambda _: True, params)


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    rate: optim.Rate,
    *,
    seed: int,
    total_steps: int,
    trainable: Callable[[PyTree], PyTree] = all_trainable,
    accumulate: int = 1,
    independent: bool = True,
    sam_rho: float = 0.0,
    average: optim.Average | None = None,
    spike_sigmas: float = 0.0,
) -> TrainStep:
    """`(state, batch, constants) -> (state, metrics)`: one update from one batch.

    `tx` gives the direction, `rate` how far. `total_steps` 0: `constants["total_steps"]` tells it at each step.
    `trainable(params)` is a tree of booleans: where it is False, the gradient is zero.
    With `accumulate` m the batch is processed in m parts, one after another, and their gradients averaged; where its
    images are `independent`, none repeated, their noise is measured, too. An update is skipped and counted if it is
    not finite, or if its loss or gradient norm is more than `spike_sigmas` (0: off) standard deviations above the mean
    of the last `RECENT` steps; the step number still advances. An `average` needs a state with `ema`.
    """
    optimizer = optax.with_extra_args_support(tx)
    gradients = _accumulated(_make_gradients(task, seed, trainable), accumulate, independent)
    if sam_rho:
        gradients = _sharpness_aware(gradients, sam_rho)

    def train_step(state: TrainState, batch: Batch, constants: Constants) -> tuple[TrainState, Metrics]:
        done = state.step - state.guard["skipped"]  # the schedules count the updates that were done
        steps = total_steps or constants["total_steps"]
        # Schedule-free training (arXiv:2405.15682) takes gradients between the parameters and their mean, `state.ema`.
        at = state.replace(params=_between(state, average.share)) if average and average.share else state
        rows = _rows(batch)
        progress = jnp.full(rows.shape, done / steps, jnp.float32)
        grads, aux = gradients(at, {**batch, "row": rows, "progress": progress}, constants)
        lr = rate(done, steps)
        directions, opt_state = optimizer.update(grads, state.opt_state, at.params, progress=done / steps)
        params = optax.apply_updates(state.params, jax.tree.map(lambda x: -lr * x, directions))
        new = state.replace(params=params, batch_stats=aux.batch_stats, opt_state=opt_state)
        if average:
            newest = {"params": params, "batch_stats": aux.batch_stats}
            ema = _average(state.ema, newest, average.decay(done, steps))
            # A mean over all steps would hold batch statistics of parameters that are long gone.
            new = new.replace(ema=ema | {"batch_stats": aux.batch_stats} if average.share else ema)
        if jax.tree.leaves(state.task):
            new = new.replace(task=task.update(state.task, params, aux, done / steps))
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        metrics = aux.metrics | {"lr": lr} | norms
        new = _guarded(state, new, [metrics[k] for k in ("loss", "grad_norm", "param_norm")], spike_sigmas)
        metrics |= {"skipped_updates": new.guard["skipped"], "skipped_in_a_row": new.guard["in_a_row"]}
        return new.replace(step=state.step + 1), metrics

    return train_step


def _make_gradients(task: Task, seed: int, trainable: Callable[[PyTree], PyTree]) -> Gradients:
    """`(state, part of a batch, constants, number of the part) -> (gradients, what the loss gave beside its value)`."""

    def loss_fn(params: PyTree, state: TrainState, part: Batch, constants: Constants, number: Any) -> tuple[Array, Aux]:
        params = jax.tree.map(
            lambda leaf, trains: leaf if trains else jax.lax.stop_gradient(leaf), params, trainable(params)
        )
        rngs = rngs_for(seed, state.step, part["row"], number)
        return task.loss(params, state.batch_stats, state.task, gathered(part, constants), rngs, constants)

    def gradients(state: TrainState, part: Batch, constants: Constants, number: Any = 0) -> tuple[PyTree, Aux]:
        return jax.grad(loss_fn, has_aux=True)(state.params, state, part, constants, number)

    return gradients


def _accumulated(gradients: Gradients, m: int, independent: bool) -> Gradients:
    """The same for the whole batch in m parts, one after another: the mean of their gradients and metrics.

    Part j takes the rows j, j + m, ...: each device then keeps the rows that it has.

    From the gradients of two batch sizes, where the images are independent, come unbiased estimates of the squared
    norm of the true gradient, and of the trace of the covariance of one image's gradient (McCandlish et al. 2018,
    arXiv:1812.06162, appendix A.1): `grad_signal` and `grad_variance`. Averages of many steps, divided, are the
    gradient noise scale, in images.
    """
    if m == 1:
        return gradients

    def accumulated(state: TrainState, batch: Batch, constants: Constants) -> tuple[PyTree, Aux]:
        parts = {k: jnp.moveaxis(x.reshape(len(x) // m, m, *x.shape[1:]), 1, 0) for k, x in batch.items()}

        def body(carry: tuple[PyTree, PyTree], inputs: tuple[Batch, Array]) -> tuple[tuple[PyTree, PyTree], Any]:
            total, batch_stats = carry
            grads, aux = gradients(state.replace(batch_stats=batch_stats), inputs[0], constants, inputs[1])
            means = aux.metrics, aux.extra, optax.tree.norm(grads, squared=True)
            return (jax.tree.map(jnp.add, total, grads), aux.batch_stats), means

        start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
        (total, batch_stats), means = jax.lax.scan(body, start, (parts, jnp.arange(m)))
        grads = jax.tree.map(lambda x: x / m, total)
        metrics, extra, of_part = jax.tree.map(lambda x: jnp.mean(x, axis=0), means)
        if independent:
            of_whole = optax.tree.norm(grads, squared=True)
            metrics["grad_signal"] = (m * of_whole - of_part) / (m - 1)
            metrics["grad_variance"] = (of_part - of_whole) * len(batch["row"]) / (m - 1)
        return grads, Aux(batch_stats, metrics, extra)

    return accumulated


def _sharpness_aware(gradients: Gradients, rho: float) -> Gradients:
    """The gradients at the worst point of a ball of radius `rho` around the parameters, to first order.

    Sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412, alg. 1), over the whole batch, with the same
    randomness twice. Metrics and batch statistics are those of the parameters themselves; `grad_norm` is of what
    the update takes, the gradients from up the slope.
    """

    def sharpness_aware(state: TrainState, batch: Batch, constants: Constants) -> tuple[PyTree, Aux]:
        grads, aux = gradients(state, batch, constants)
        scale = rho / (optax.tree.norm(grads) + 1e-12)
        worst = jax.tree.map(lambda p, g: p + scale * g, state.params, grads)
        grads, _ = gradients(state.replace(params=worst), batch, constants)
        return grads, aux

    return sharpness_aware


def _guarded(old: TrainState, new: TrainState, values: list[Array], spike_sigmas: float) -> TrainState:
    """The new state, or the old one if a value is not finite or, of the first two, spikes; the guard counts these."""
    good = jnp.isfinite(jnp.stack(values)).all()
    recent: dict[str, Array] = {}
    if spike_sigmas:
        calm, recent = _calm(old.guard, jnp.stack(values[:2]), spike_sigmas)
        good &= calm
    kept = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, old)
    bad = 1 - good.astype(jnp.int32)
    guard = {"skipped": old.guard["skipped"] + bad, "in_a_row": (old.guard["in_a_row"] + 1) * bad}
    return kept.replace(guard=guard | recent)


def _no_spikes() -> dict[str, Array]:
    return {"recent": jnp.zeros((2, RECENT)), "seen": jnp.zeros((), jnp.int32)}


def _calm(guard: dict[str, PyTree], values: Float[Array, "2"], sigmas: float) -> tuple[Array, dict[str, Array]]:
    """Whether no value is far above its last `RECENT` ones, and these with the values, cut off at the limit.

    So values that stay at a new level count as normal after a few steps. What is not finite is left out.
    """
    recent, seen = guard["recent"], guard["seen"]
    mean, deviation = recent.mean(axis=1), jnp.maximum(recent.std(axis=1), 1e-2 * jnp.abs(recent.mean(axis=1)))
    limit = jnp.where(seen >= RECENT, mean + sigmas * deviation, jnp.inf)
    finite = jnp.isfinite(values).all()
    added = recent.at[:, seen % RECENT].set(jnp.minimum(values, limit))
    found = {"recent": jnp.where(finite, added, recent), "seen": seen + finite.astype(jnp.int32)}
    return (values <= limit).all(), found


def _rows(batch: Batch) -> Int[Array, " n"]:
    """The place of each image in the whole batch, which its randomness depends on."""
    return jnp.arange(len(jax.tree.leaves(batch)[0]))


def _between(state: TrainState, share: float) -> PyTree:
    """The point between the parameters and their average that has this share of the average."""
    return jax.tree.map(lambda p, mean: (1 - share) * p + share * mean, state.params, state.ema["params"])


def _average(old: PyTree, new: PyTree, decay: Array | float) -> PyTree:
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def evaluation_variables(state: TrainState, evaluated: str = "") -> dict[str, PyTree]:
    """What evaluation and every user of the model reads: the averages where there are any; or as `Task.evaluated`."""
    if evaluated:
        found: dict[str, PyTree] = state.task[evaluated]
        return found
    return state.ema or {"params": state.params, "batch_stats": state.batch_stats}


def make_eval_step(task: Task, corruption: augment.Corruption | None = None) -> EvalStep:
    """`(variables, batch, constants) -> targets, outputs and "weight"`, a row for each example; weight 0 is padding."""

    def eval_step(variables: PyTree, batch: Batch, constants: Constants) -> dict[str, Array]:
        examples = gathered(batch, constants)
        if corruption is not None:
            examples["image"] = augment.corrupt(corruption, examples["image"], batch["number"])
        kept = {name: examples[name] for name in (*task.targets, "weight")}
        return kept | task.outputs(variables, examples, constants)

    return eval_step

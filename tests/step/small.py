"""A small step and its batches, and how two of its results are compared."""

import jax
import jax.numpy as jnp
import numpy as np

from tests import quick
from vit_jax import augment, models, optim, step, tasks, trees
from vit_jax.step import Purpose, TrainState

N, SHAPE, K = 12, (6, 4, 3), 7  # 12 images: for 4 devices, and in 3 parts
SEED = 5
VIEW = augment.Settings(crop_padding=1, flip=0.5, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
CALM = {
    "patch_size": (2,),
    "width": 8,
    "depth": 2,
    "mlp_dim": 10,
    "num_heads": 2,
    "num_classes": K,
    "pooling": "gap",
    "qkv_bias": False,  # a key's bias has gradient 0 but for rounding, which Adam and Lion blow up to a whole step
    "zero_head": False,
}
NOISY = CALM | {"dropout": 0.2, "attention_dropout": 0.1, "stochastic_depth": 0.3}
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (29, *SHAPE), np.uint8)
LABELS = RNG.integers(0, K, 29, np.int32)
INDICES = [RNG.permutation(29)[:N].astype(np.int32) for _ in range(5)]


def batch(number: int) -> dict[str, jax.Array]:
    return {"image": jnp.asarray(IMAGES[INDICES[number]]), "label": jnp.asarray(LABELS[INDICES[number]])}


def create(fields: dict):
    return models.create(models.settings("vit", **fields))


def rate(count: jax.Array, total_steps: int) -> jax.Array:
    """Infinite at step 3."""
    return jnp.where(count == 3, jnp.inf, 0.01)


ADAMW = optim.create(optim.Settings(weight_decay=0.1))  # unless a test says otherwise
SGD = optim.create(optim.Settings(name="sgd"))


SMOOTHED = tasks.settings("classification", label_smoothing=0.1)


def task_of(model, settings=SMOOTHED, view=VIEW, **parts) -> tasks.Task:
    names = tuple(f"class {label}" for label in range(K))
    return tasks.create(settings, tasks.Parts(model, SHAPE, names, augment=view, train_augment=view, **parts))


def compiled(model, tx=ADAMW, settings=SMOOTHED, view=VIEW, parts=None, **options):
    task = task_of(model, settings, view, **(parts or {}))
    return quick.jit(step.make_train_step(task, tx, rate, seed=SEED, total_steps=5, **options))


def start(params, tx=ADAMW, batch_stats=()) -> TrainState:
    """The state before the first step, with these parameters."""
    zero, variables = jnp.int32(0), {"params": params, "batch_stats": dict(batch_stats)}
    guard = {"skipped": zero, "in_a_row": zero}
    state = TrainState(step=zero, opt_state=tx.init(params), ema=variables, guard=guard, **variables)
    return jax.tree.map(jnp.copy, state)  # no two of a donated state's arrays may be one


def train(train_step, state: TrainState, steps: int = 3) -> tuple[TrainState, list[dict]]:
    """The state after some steps, and the metrics of each."""
    seen = []
    for number in range(steps):
        state, metrics = train_step(state, batch(number), {})
        seen.append(jax.device_get(metrics))
    return state, seen


def assert_same_bits(found, expected) -> None:
    assert trees.names(found) == trees.names(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(found, expected, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    assert trees.names(found) == trees.names(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def augmented(images: np.ndarray, at: int) -> jax.Array:
    key = step.rng_for(SEED, Purpose.AUGMENT, at)
    return augment.train_view(VIEW, jnp.asarray(images), jnp.stack([jax.random.fold_in(key, i) for i in range(N)]))

"""What frozen features tell of classes: nearest neighbours, a linear probe, a few examples of each class.

`d` numbers for each image, `k` classes. All of it runs on the devices of a mesh, over which the images are divided.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vit_jax import sharding
from vit_jax.human import human_percent
from vit_jax.metrics.registry import Metric, register
from vit_jax.trees import PyTree

SHOTS = (1, 5, 10)  # images of each class
PROBES = {  # the metrics of each
    "knn": ("knn_accuracy",),
    "linear": ("linear_accuracy",),
    "fewshot": tuple(f"shot{shots}_accuracy" for shots in SHOTS),
}
SPREAD = "feature_spread"  # of every probe
SIMILARITIES = 2**26  # of queries with training images at a time, on each device: 256 MiB
STRENGTHS = tuple(10.0**e for e in range(0, -7, -1))  # of the linear probe's penalty
HELD_OUT = 10  # a linear probe's strength is chosen on one in so many training images
ITERATIONS = 200  # of L-BFGS at most
DRAWS = 5  # choices of the few images; the accuracy is their mean
RIDGE = 2.0**10  # penalty of the few-shot least squares, and its bias's input, as big_vision has them
BIAS = 100.0
COLLAPSED = 0.02  # a spread below it is none

register("knn_accuracy", Metric("kNN accuracy", "kNN", brief=True))
register("linear_accuracy", Metric("linear probe", "linear", brief=True))
for _shots in SHOTS:
    register(f"shot{_shots}_accuracy", Metric(f"{_shots}-shot accuracy", f"{_shots}-shot"))
register(SPREAD, Metric("feature spread", "spread", percent=False))


class Labelled(NamedTuple):
    """The features of images, and their classes."""

    features: Float[np.ndarray, "n d"]  # float32
    labels: Int[np.ndarray, " n"]


def measure(
    names: Sequence[str],
    train: Labelled,
    test: Labelled,
    mesh: Mesh,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> dict[str, float]:
    """The metrics of these probes, keys of `PROBES`, and the spread of the features, by their names in `METRICS`."""
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    found = {}
    if "knn" in names:
        predicted = knn(train, test.features, num_classes, mesh, neighbours=neighbours, temperature=temperature)
        found["knn_accuracy"] = _share(predicted, test.labels)
    if "linear" in names:
        found["linear_accuracy"] = _share(linear_probe(train, test.features, num_classes, mesh)[0], test.labels)
    if "fewshot" in names:
        found |= {f"shot{shots}_accuracy": few_shot(train, test, num_classes, shots) for shots in SHOTS}
    return found | {SPREAD: spread(test.features)}


def knn(
    train: Labelled,
    features: Float[np.ndarray, "n d"],
    num_classes: int,
    mesh: Mesh,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Int[np.ndarray, " n"]:
    """The class with most of the votes of the nearest training images, by cosine similarity, none left out.

    Each neighbour's vote weighs exp(similarity / temperature) (Wu et al. 2018, arXiv:1805.01978, s. 3.4; DINO,
    arXiv:2104.14294, appendix F.2, whose defaults these are).
    """
    n, total = len(features), len(train.labels)
    batch = min(max(1, min(1024, SIMILARITIES // total)) * sharding.batch_shards(mesh), _padded(n, mesh))
    everywhere = sharding.replicated(mesh)
    bank, labels = (sharding.put(x, everywhere) for x in (_directions(train.features), train.labels.astype(np.int32)))
    of_queries = partial(_vote, k=min(neighbours, total), temperature=temperature, num_classes=num_classes)
    vote = jax.jit(
        of_queries, in_shardings=(everywhere, everywhere, sharding.batch_sharding(mesh)), out_shardings=everywhere
    )
    found = [
        np.asarray(vote(bank, labels, _on_mesh(_directions(features[begin : begin + batch]), batch, mesh)))
        for begin in range(0, n, batch)
    ]
    return np.concatenate(found)[:n]


def _vote(
    bank: Float[Array, "m d"],
    labels: Int[Array, " m"],
    queries: Float[Array, "n d"],
    *,
    k: int,
    temperature: float,
    num_classes: int,
) -> Int[Array, " n"]:
    nearest, places = jax.lax.top_k(jnp.einsum("nd,md->nm", queries, bank, precision="highest"), k)
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)  # the nearest one's is 1: none overflows
    return jnp.einsum("nj,njk->nk", weights, jax.nn.one_hot(labels[places], num_classes)).argmax(axis=1)


def linear_probe(
    train: Labelled, features: Float[np.ndarray, "n d"], num_classes: int, mesh: Mesh
) -> tuple[Int[np.ndarray, " n"], float]:
    """The classes by logistic regression on standardised features, and the strength of its penalty.

    Of `STRENGTHS` that is taken which is best on a tenth of the training images, chosen by chance and held out; of
    equals the strongest. All of them then train anew with it.
    """
    mean, std = train.features.mean(axis=0), train.features.std(axis=0)
    std = np.where(std > 1e-6 * (np.abs(mean) + 1), std, 1)  # of a feature that never changes
    n = len(train.labels)
    held_out = np.zeros(n, bool)
    held_out[np.random.default_rng(0).permutation(n)[: n // HELD_OUT]] = True
    size = _padded(n, mesh)
    x, y = (_on_mesh(v, size, mesh) for v in ((train.features - mean) / std, train.labels.astype(np.int32)))
    everywhere = sharding.replicated(mesh)
    fit = jax.jit(_fit, out_shardings=everywhere)
    predict = jax.jit(lambda params, x: _logits(params, x).argmax(axis=1), out_shardings=everywhere)

    params = {"kernel": jnp.zeros((x.shape[1], num_classes)), "bias": jnp.zeros(num_classes)}
    params = jax.tree.map(lambda leaf: sharding.put(np.asarray(leaf), everywhere), params)
    kept, whole = (_on_mesh(v.astype(np.float32), size, mesh) for v in (~held_out, np.ones(n)))
    best = (-1.0, STRENGTHS[0], params)
    for strength in STRENGTHS if held_out.any() else ():
        params = fit(params, x, y, kept, np.float32(strength))
        right = _share(np.asarray(predict(params, x))[:n][held_out], train.labels[held_out])
        best = max(best, (right, strength, params), key=lambda trial: trial[0])
    params = fit(best[2], x, y, whole, np.float32(best[1]))
    asked = _on_mesh((features - mean) / std, _padded(len(features), mesh), mesh)
    return np.asarray(predict(params, asked))[: len(features)], best[1]


def _logits(params: Mapping[str, Array], x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    return jnp.einsum("nd,dk->nk", x, params["kernel"], precision="highest") + params["bias"][None]


def _fit(
    params: PyTree, x: Float[Array, "n d"], y: Int[Array, " n"], weight: Float[Array, " n"], strength: Float[Array, ""]
) -> PyTree:
    """The minimum of the weighted mean cross-entropy plus strength / 2 times the squared kernel, by L-BFGS."""

    def loss(params: PyTree) -> Float[Array, ""]:
        of_each = optax.softmax_cross_entropy_with_integer_labels(_logits(params, x), y)
        return (of_each * weight).sum() / weight.sum() + strength / 2 * jnp.square(params["kernel"]).sum()

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), state

    def goes_on(carry: tuple[PyTree, PyTree]) -> Array:
        count, grad = (optax.tree.get(carry[1], name) for name in ("count", "grad"))
        return (count == 0) | ((count < ITERATIONS) & (optax.tree.norm(grad) > 1e-5))

    return jax.lax.while_loop(goes_on, step, (params, solver.init(params)))[0]


def few_shot(train: Labelled, test: Labelled, num_classes: int, shots: int) -> float:
    """The accuracy of least squares to -1 and 1 on `shots` images of each class: the mean of `DRAWS` choices of them.

    Features are standardised by these images; a class with fewer gives all it has (the evaluator of big_vision).
    """
    shares = []
    for seed in range(DRAWS):
        chosen = _choose(train.labels, num_classes, shots, np.random.default_rng(seed))
        x, y = train.features[chosen].astype(np.float64), train.labels[chosen]
        mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
        kernel = _ridge(_with_bias((x - mean) / std), 2 * np.eye(num_classes)[y] - 1)
        scores = _with_bias((test.features - mean) / std) @ kernel
        shares.append(_share(scores.argmax(axis=1), test.labels))
    return math.fsum(shares) / DRAWS


def _choose(labels: Int[np.ndarray, " n"], k: int, shots: int, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
    order = rng.permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:shots] for label in range(k)])


def _with_bias(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e"]:
    """A large input, so that the penalty hardly touches its weight."""
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)


def _ridge(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "d k"]:
    """The kernel of least squares with the penalty `RIDGE`, from the smaller of both systems of equations."""
    n, d = x.shape
    if n < d:
        return x.T @ np.linalg.solve(x @ x.T + RIDGE * np.eye(n), y)
    return np.linalg.solve(x.T @ x + RIDGE * np.eye(d), x.T @ y)


def spread(features: Float[np.ndarray, "n d"]) -> float:
    """How far images lie apart: 0 where all have the same direction, about 1 where directions are even in space.

    The standard deviation of the features' directions, times the root of their number (SimSiam, arXiv:2011.10566,
    s. 4.1).
    """
    directions = _directions(features)
    return float(directions.std(axis=0).mean() * math.sqrt(directions.shape[1]))


def warnings(scalars: Mapping[str, float], labels: Int[np.ndarray, " n"]) -> list[str]:
    """Of features that have collapsed: that are all alike, or whose neighbours know no more than chance."""
    likely = "Likely: they have collapsed (learning rate too high, no centring), or nothing was learned yet."
    if scalars[SPREAD] < COLLAPSED:
        return [f"the features of all images are alike: their spread is {scalars[SPREAD]:.2g}. {likely}"]
    chance = np.bincount(labels).max() / len(labels)
    found = scalars.get("knn_accuracy", 1.0)
    if found > chance + 2 * math.sqrt(chance * (1 - chance) / len(labels)):
        return []
    return [
        f"kNN accuracy {human_percent(found)} is no better than chance, {human_percent(float(chance))}, the share of "
        f"the largest class. {likely}"
    ]


def _share(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predicted == labels))


def _directions(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _padded(n: int, mesh: Mesh) -> int:
    """The next number that the devices divide."""
    shards = sharding.batch_shards(mesh)
    return -(-n // shards) * shards


def _on_mesh(rows: np.ndarray, size: int, mesh: Mesh) -> jax.Array:
    """The rows, with zeros up to `size`, divided over the devices."""
    padding = ((0, size - len(rows)), *((0, 0),) * (rows.ndim - 1))
    return sharding.put(np.pad(rows, padding), sharding.batch_sharding(mesh))

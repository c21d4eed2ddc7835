"""A trained model, open to look at: what its layers compute for images, and the gradients with respect to that.

Shapes: `n` images, `h w` grid of places, `l` tokens, `p` of them prefix, `a` heads, `d` width, `k` classes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct, traverse_util
from jaxtyping import Array, Float, Int, UInt8

from vit_jax import augment, trees
from vit_jax.models.features import Features
from vit_jax.step import plain
from vit_jax.trees import PyTree


class Network(struct.PyTreeNode):
    """A model with its variables: a loop over layers, with plain attention. An argument of jitted functions."""

    variables: PyTree
    model: nn.Module = struct.field(pytree_node=False)
    settings: augment.Settings = struct.field(pytree_node=False)
    sigmoid: bool = struct.field(pytree_node=False, default=False)  # each class has its own probability

    def view(self, images: UInt8[Array, "n h w c"]) -> Float[Array, "n H W c"]:
        """The images as the model sees them: normalised, so that zeros are the mean colour."""
        return augment.eval_view(self.settings, images)

    def logits(self, x: Float[Array, "n H W c"]) -> Float[Array, "n k"]:
        return self.model.apply(self.variables, x, train=False)  # type: ignore[return-value]

    def probabilities(self, x: Float[Array, "n H W c"]) -> Float[Array, "n k"]:
        return nn.sigmoid(self.logits(x)) if self.sigmoid else nn.softmax(self.logits(x))

    def features(self, x: Float[Array, "n H W c"]) -> Features:
        """The last layer's tokens, or the last map."""
        return self.model.apply(self.variables, x, train=False, method="features")  # type: ignore[return-value]

    def pooled(self, x: Float[Array, "n H W c"]) -> Float[Array, "n d"]:
        """What the head reads."""
        return self.model.clone(num_classes=0).apply(self.variables, x, train=False)  # type: ignore[return-value]

    def sown(self, x: Float[Array, "n H W c"], name: str) -> dict[str, Array]:
        """What layers sow under this name, by their paths, in the order of the numbers in these."""
        _, seen = self.model.apply(self.variables, x, train=False, mutable="intermediates")
        return _named(seen.get("intermediates", {}), name)


def open_network(model: nn.Module, variables: PyTree, settings: augment.Settings, *, sigmoid: bool = False) -> Network:
    """The model as a loop over plain layers. `settings`: with mean, deviation and size filled in."""
    return Network(trees.unstack_layers(dict(variables)), plain(model), settings, sigmoid)


def _named(tree: PyTree, name: str) -> dict[str, Array]:
    flat = traverse_util.flatten_dict(dict(tree))
    found = {"/".join(path[:-1]): leaf for path, leaf in flat.items() if path[-1] == name}
    numbers = {path: [int(number) for number in re.findall(r"\d+", path)] for path in found}
    return {path: _first(found[path]) for path in sorted(found, key=lambda path: numbers[path])}


def _first(leaf: Any) -> Array:
    return leaf[0] if isinstance(leaf, tuple) else leaf  # `sow` gathers calls in a tuple


def picked(logits: Float[Array, "n k"], targets: Int[Array, " n"]) -> Float[Array, " n"]:
    """Of each image the number of its class."""
    return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]


def evidence(network: Network, logits: Float[Array, "n k"], targets: Int[Array, " n"]) -> Float[Array, " n"]:
    """The logit of each image's class; under a softmax over the mean of all, for what all logits share means nothing.

    The raw logit would call a patch negative if it lowers this class a little and all others more.
    """
    return picked(logits, targets) - (0.0 if network.sigmoid else logits.mean(axis=1))


def class_score(network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"]) -> Float[Array, ""]:
    """The evidence of all images: as they do not meet, its gradients are those of each image."""
    return evidence(network, network.logits(x), targets).sum()


def attentions(network: Network, x: Float[Array, "n H W c"]) -> list[Float[Array, "n a l l"]]:
    """The probabilities of each encoder block, in order."""
    return list(_of_blocks(network.sown(x, "attention")).values())


def attentions_and_gradients(
    network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"]
) -> tuple[list[Float[Array, "n a l l"]], list[Float[Array, "n a l l"]]]:
    """The probabilities of each encoder block, and the gradients of the classes' `evidence` with respect to them."""
    apply, variables = network.model.apply, network.variables
    kinds = ["intermediates", "perturbations"]
    shapes = jax.eval_shape(lambda: apply(variables, x, train=False, mutable=kinds)[1]["perturbations"])

    def score(changes: PyTree) -> tuple[Array, PyTree]:
        opened = {**variables, "perturbations": changes}
        logits, seen = apply(opened, x, train=False, mutable="intermediates")
        return evidence(network, logits, targets).sum(), seen["intermediates"]

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    gradients, seen = jax.grad(score, has_aux=True)(zeros)
    pairs = [_of_blocks(_named(tree, "attention")) for tree in (seen, gradients)]
    return list(pairs[0].values()), list(pairs[1].values())


def _of_blocks(found: dict[str, Array]) -> dict[str, Array]:
    return {path: array for path, array in found.items() if "encoderblock_" in path}  # not the pooling's


@contextmanager
def _tap(path: str, change: Any, found: list[Array]) -> Iterator[None]:
    """Adds `change` to what the module at `path` returns, and appends the sum to `found`."""

    def tap(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        result = call(*args, **kwargs)
        if context.method_name != "__call__" or "/".join(context.module.path) != path:
            return result
        found.append(result + change)
        return found[-1]

    with nn.intercept_methods(tap):
        yield


def layer_output(network: Network, x: Float[Array, "n H W c"], path: str) -> Array:
    """What the module at this path returns."""
    return _tapped(network, x, path, 0.0)[1]


def _tapped(network: Network, x: Float[Array, "n H W c"], path: str, change: Any) -> tuple[Array, Array]:
    found: list[Array] = []
    with _tap(path, change, found):  # with `mutable`, the last block computes all of its tokens
        logits, _ = network.model.apply(network.variables, x, train=False, mutable="intermediates")
    return logits, found[0]


def layer_and_gradient(
    network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"], path: str
) -> tuple[Float[Array, "n h w d"], Float[Array, "n h w d"]]:
    """A layer's value at each place, and the gradient of the class's `evidence` with respect to it."""
    shape = jax.eval_shape(lambda: layer_output(network, x, path))

    def score(change: Array) -> tuple[Array, Array]:
        logits, y = _tapped(network, x, path, change)
        return evidence(network, logits, targets).sum(), y

    gradient, y = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    return at_places(network, x, y), at_places(network, x, gradient)


def grid(network: Network, x: Any) -> tuple[int, int]:
    """Rows and columns of the places that the model has features of."""
    if hasattr(network.model, "features"):
        return jax.eval_shape(Network.features, network, x).grid
    _, h, w, _ = list(layers(network, x).values())[-1]
    return h, w


def prefix_tokens(network: Network, x: Any) -> int:
    """How many tokens stand before the patches: class, distillation, registers."""
    has_features = hasattr(network.model, "features")
    return jax.eval_shape(Network.features, network, x).prefix.shape[1] if has_features else 0


def at_places(network: Network, x: Any, y: Array) -> Float[Array, "n h w d"]:
    """A layer's output without prefix tokens, on the grid."""
    if y.ndim == 4:
        return y
    return y[:, prefix_tokens(network, x) :].reshape(len(y), *grid(network, x), y.shape[-1])


def layers(network: Network, x: Any) -> dict[str, tuple[int, ...]]:
    """The paths of all modules that return a vector for each of several places, in order, and their shapes."""
    found: dict[str, tuple[int, ...]] = {}
    tokens = 0
    if hasattr(network.model, "features"):
        h, w = grid(network, x)
        tokens = prefix_tokens(network, x) + h * w

    def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        result = call(*args, **kwargs)
        shape: tuple[int, ...] = getattr(result, "shape", ())
        is_map = len(shape) == 4 and shape[1] * shape[2] > 1 and "Attention" not in "/".join(context.module.path)
        if context.method_name == "__call__" and (is_map or (len(shape) == 3 and shape[1] == tokens > 0)):
            found["/".join(context.module.path)] = shape
        return result

    def forward(variables: PyTree, x: Array) -> Any:
        with nn.intercept_methods(note):
            return network.model.apply(variables, x, train=False, mutable="intermediates")

    jax.eval_shape(forward, network.variables, x)
    return found

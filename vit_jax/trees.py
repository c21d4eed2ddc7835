"""Parameter trees: paths, masks by regular expression, counts; layers in order, and stacked for a scanned model."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
SCANNED = "encoderblock"  # the repeated module that `scan` stacks


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as text: `Transformer/encoderblock_0/LayerNorm_0/scale`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_with_name(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` whose function also receives each leaf's path, as its first argument."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest)


def names(tree: PyTree) -> list[str]:
    """The path of each leaf, in tree order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def named(tree: PyTree) -> list[tuple[str, Any]]:
    """Each leaf with its path, in tree order."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def mask(tree: PyTree, pattern: str) -> PyTree:
    """A tree of booleans: whether `pattern` is found in a leaf's path; of a stacked leaf, its first layer's path."""
    regex = re.compile(pattern)
    return map_with_name(lambda name, _: regex.search(_in_layer(name, 0)) is not None, tree)


def count(tree: PyTree) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """The bytes of a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def is_stacked(name: str) -> bool:
    """Whether the leaf at this path carries a leading layer axis, as a scanned model's do."""
    return f"/{SCANNED}/" in f"/{name}/"


def canonical_names(name: str, leaf: Any) -> list[str]:
    """The leaf's paths where layers are not stacked: its own, or of a stacked leaf one for each layer."""
    if not is_stacked(name):
        return [name]
    return [_in_layer(name, i) for i in range(leaf.shape[0])]


def _in_layer(name: str, i: int) -> str:
    """The path of a stacked leaf in layer i of a model whose layers are not stacked; other paths as they are."""
    return f"/{name}".replace(f"/{SCANNED}/", f"/{SCANNED}_{i}/", 1).removeprefix("/")


def layers(tree: PyTree, order: Sequence[str]) -> PyTree:
    """The layer of each parameter, counted from 0 in the order of the forward pass; of a stacked one those of its axis.

    `order`: the model's `Naming.layers`, regular expressions of how paths begin, in that order; what none of them
    matches comes last. Layers of one expression follow each other by the numbers in its groups; those with the same
    numbers, and without any, are one layer.

    Of a ViT: patch embedding, class token and positions 0, `encoderblock_i` i + 1, all behind it depth + 1, as in
    BEiT (Bao et al. 2022, arXiv:2106.08254) and MAE. A ResNet's blocks and a plain CNN's stages are such layers, too.
    """
    places = [
        [_place(own, order) for own in canonical_names(name, leaf)]
        for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True)
    ]
    number = {place: i for i, place in enumerate(sorted({place for found in places for place in found}))}
    numbers = [np.array([number[place] for place in found]) for found in places]
    flat = [n if is_stacked(name) else n[0] for name, n in zip(names(tree), numbers, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(tree), flat)


def _place(name: str, order: Sequence[str]) -> tuple[int, ...]:
    """The place in the forward pass: of the expression that matches, and the numbers in its groups."""
    for place, pattern in enumerate(order):
        if found := re.match(pattern, name):
            return place, *(int(number) for number in found.groups() if number)
    return (len(order),)


def stack_layers(tree: PyTree) -> PyTree:
    """Nested dicts with the siblings `encoderblock_0`, `encoderblock_1`, ... replaced by one `encoderblock`.

    The leaves of the new entry are the layers' leaves stacked on a leading axis. The canonical tree, which
    checkpoints and published weights use, is the unstacked one; a scanned model computes with the stacked one.
    """
    if not isinstance(tree, Mapping):
        return tree
    layers = sorted((k for k in tree if re.fullmatch(rf"{SCANNED}_\d+", k)), key=lambda k: int(k.rsplit("_", 1)[1]))
    rest = {k: stack_layers(v) for k, v in tree.items() if k not in layers}
    if layers:
        rest[SCANNED] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tree[k] for k in layers))
    return rest


def unstack_layers(tree: PyTree) -> PyTree:
    """The inverse of `stack_layers`."""
    if not isinstance(tree, Mapping):
        return tree
    rest = {k: unstack_layers(v) for k, v in tree.items() if k != SCANNED}
    if SCANNED in tree:
        leaves, treedef = jax.tree.flatten(tree[SCANNED])
        for i in range(leaves[0].shape[0] if leaves else 0):
            rest[f"{SCANNED}_{i}"] = jax.tree.unflatten(treedef, [leaf[i] for leaf in leaves])
    return rest

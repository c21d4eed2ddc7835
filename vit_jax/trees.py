"""Parameter trees: paths, masks by regular expression, counts, and stacking the layers of a scanned model."""

import re
from collections.abc import Callable, Mapping
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


def mask(tree: PyTree, pattern: str) -> PyTree:
    """A tree of booleans: whether `pattern` is found in a leaf's path."""
    regex = re.compile(pattern)
    return map_with_name(lambda name, _: regex.search(name) is not None, tree)


def count(tree: PyTree) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """The bytes of a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def is_stacked(name: str) -> bool:
    """Whether the leaf at this path carries a leading layer axis, as a scanned model's do."""
    return f"/{SCANNED}/" in f"/{name}/"


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

"""Parameter trees: names, masks, counts, and stacking layers there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import trees


def layers(depth: int) -> dict:
    """A model's tree: layer i holds i everywhere."""
    blocks = {
        f"encoderblock_{i}": {"kernel": np.full((2, 3), i), "norm": {"scale": np.full(5, i)}} for i in range(depth)
    }
    return {"cls": np.zeros((1, 1, 7)), "Transformer": {**blocks, "encoder_norm": {"scale": np.ones(5)}}}


def test_names_are_paths_through_dicts_tuples_and_fields():
    state = optax.adam(1e-3).init({"a": {"b": jnp.zeros(2)}})
    assert trees.names(state) == ["0/count", "0/mu/a/b", "0/nu/a/b"]
    assert trees.names({"b": {"c": 1}, "a": [2, 3]}) == ["a/0", "a/1", "b/c"]
    assert trees.names({}) == []


def test_map_with_name_passes_the_path_first():
    mapped = trees.map_with_name(lambda name, x, y: f"{name}:{x}{y}", {"a": {"b": 1}}, {"a": {"b": 2}})
    assert mapped == {"a": {"b": "a/b:12"}}


def test_mask_finds_its_pattern_anywhere_in_the_path():
    tree = {"dense": {"kernel": 1, "bias": 2}, "kernel_norm": {"scale": 3}}
    assert trees.mask(tree, "kernel$") == {"dense": {"kernel": True, "bias": False}, "kernel_norm": {"scale": False}}
    assert trees.mask(tree, "kernel") == {"dense": {"kernel": True, "bias": False}, "kernel_norm": {"scale": True}}
    assert all(jax.tree.leaves(trees.mask(tree, ".*")))


def test_count_and_bytes_of_arrays_and_of_shapes():
    tree = {"a": np.zeros((3, 5), np.float32), "b": jax.ShapeDtypeStruct((7,), jnp.bfloat16), "c": np.int8(1)}
    assert trees.count(tree) == 15 + 7 + 1
    assert trees.num_bytes(tree) == 60 + 14 + 1
    assert trees.count({}) == trees.num_bytes({}) == 0


def test_is_stacked_means_a_whole_part_of_the_path():
    assert trees.is_stacked("Transformer/encoderblock/norm/scale")
    assert trees.is_stacked("opt_state/0/mu/encoderblock/kernel")
    assert not trees.is_stacked("Transformer/encoderblock_0/norm/scale")
    assert not trees.is_stacked("Transformer/my_encoderblock/kernel")


def test_canonical_names_are_those_of_the_unstacked_tree():
    stacked = jax.eval_shape(trees.stack_layers, {"a": layers(3)})
    found = [
        own
        for name, leaf in zip(trees.names(stacked), jax.tree.leaves(stacked), strict=True)
        for own in trees.canonical_names(name, leaf)
    ]
    assert sorted(found) == sorted(trees.names({"a": layers(3)}))
    assert trees.canonical_names("encoderblock/kernel", np.zeros((2, 5))) == [
        "encoderblock_0/kernel",
        "encoderblock_1/kernel",
    ]


def test_layers_follow_the_order_and_the_numbers_that_it_captures():
    tree = {"stem": 1, "block_2": {"a": 1, "b": 1}, "block_10": 1, "encoderblock_1": 1, "block_x": 1, "head": 1}
    order = ("stem", r"block_(\d+)/|encoderblock_(\d+)")
    tree = {name: value if isinstance(value, dict) else {"a": value} for name, value in tree.items()}
    found = dict(zip(trees.names(tree), jax.tree.leaves(trees.layers(tree, order)), strict=True))
    assert found == {
        "stem/a": 0,
        "encoderblock_1/a": 1,
        **{"block_2/a": 2, "block_2/b": 2, "block_10/a": 3},
        **{"block_x/a": 4, "head/a": 4},
    }
    assert set(jax.tree.leaves(trees.layers(tree, ()))) == {0}


def test_stacked_layers_have_the_numbers_of_separate_ones():
    tree, order = {"a": layers(3)}, (r"a/cls", r"a/Transformer/encoderblock_(\d+)/")
    stacked = jax.eval_shape(trees.stack_layers, tree)
    numbers = jax.tree.map(jnp.asarray, trees.layers(stacked, order))
    jax.tree.map(np.testing.assert_array_equal, trees.unstack_layers(numbers), trees.layers(tree, order))
    assert numbers["a"]["Transformer"]["encoderblock"]["norm"]["scale"].tolist() == [1, 2, 3]


def test_stacking_puts_the_layers_in_numerical_order():
    stacked = trees.stack_layers(layers(11))  # `encoderblock_10` comes before `encoderblock_2` in the alphabet
    assert set(stacked["Transformer"]) == {"encoderblock", "encoder_norm"}
    block = stacked["Transformer"]["encoderblock"]
    assert block["kernel"].shape == (11, 2, 3)
    np.testing.assert_array_equal(block["norm"]["scale"][:, 0], np.arange(11))
    np.testing.assert_array_equal(stacked["cls"], np.zeros((1, 1, 7)))


@pytest.mark.parametrize("depth", [1, 2, 11])
def test_unstacking_is_the_inverse(depth):
    tree = layers(depth)
    back = trees.unstack_layers(trees.stack_layers(tree))
    assert trees.names(back) == trees.names(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_a_tree_without_layers_stays_as_it_is():
    tree = {"stem": {"kernel": np.ones(3)}, "encoderblocks": {"bias": np.ones(2)}}
    for same in (trees.stack_layers(tree), trees.unstack_layers(tree)):
        jax.tree.map(np.testing.assert_array_equal, same, tree)
        assert trees.names(same) == trees.names(tree)


def test_stacking_reaches_every_depth():
    stacked = jax.eval_shape(trees.stack_layers, {"ema": {"params": layers(3)}, "params": layers(3)})
    assert stacked["ema"]["params"]["Transformer"]["encoderblock"]["kernel"].shape == (3, 2, 3)
    assert trees.names(jax.eval_shape(trees.unstack_layers, stacked)) == trees.names(
        {"ema": {"params": layers(3)}, "params": layers(3)}
    )

"""Parameter trees: names, masks, counts, and stacking layers there and back."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import models, trees


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


def parameters(name: str, size: int, **fields) -> dict:
    model = models.create(models.settings(name, num_classes=5, **fields))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]


ENCODER = [f"Transformer/encoderblock_{i}" for i in range(3)]
VIT = {"depth": 3, "registers": 2, "pooling": "map", "pre_logits": 7}
FORWARD = {  # model -> the layers in order: which parameters' paths begin so
    "vit/mu16": (
        VIT,
        [("embedding", "cls", "Transformer/posembed_input", "Transformer/registers"), *ENCODER],
        ("Transformer/encoder_norm", "MAPHead_0", "pre_logits", "head"),
    ),
    "deit/Ti16": (
        {"depth": 3},
        [("embedding", "cls", "dist", "Transformer/posembed_input"), *ENCODER],
        ("Transformer/encoder_norm", "head", "head_dist"),
    ),
    "hybrid/R50+B16": (
        {"depth": 3, "stage_sizes": (1, 2)},
        [
            ("conv_root", "gn_root"),
            *("block1/unit1", "block2/unit1", "block2/unit2"),
            ("embedding", "cls", "Transformer/posembed_input"),
            *ENCODER,
        ],
        ("Transformer/encoder_norm", "head"),
    ),
    "compact/CCT-7/3x1": (
        {"depth": 3},
        [("tokenizer/conv_0", "Transformer/posembed_input"), *ENCODER],
        ("Transformer/encoder_norm", "pool", "head"),
    ),
    "mixer/S16": (
        {"depth": 11},
        ["stem", *(f"MixerBlock_{i}" for i in range(11))],
        ("pre_head_layer_norm", "head"),
    ),
    "resnet/18": (
        {"stage_sizes": (2, 1)},
        [("conv_root", "norm_root"), "stage1_block1", "stage1_block2", "stage2_block1"],
        ("head",),
    ),
    "resnetv2/keras101": (
        {"stage_sizes": (2, 1)},
        ["conv_root", "stage1_block1", "stage1_block2", "stage2_block1"],
        ("norm_head", "head_hidden_0", "head_hidden_1", "head"),
    ),
    "bit/50x1": (
        {"stage_sizes": (1, 2)},
        ["root_block", "block1/unit01", "block2/unit01", "block2/unit02"],
        ("norm-pre-head", "head"),
    ),
    "visual_transformer/R18": (
        {"stage_sizes": (2, 1, 1)},
        [
            ("conv_root", "norm_root"),
            *("stage1_block1", "stage1_block2", "stage2_block1", "stage3_block1"),
            ("tokenizer1", "transformer1", "projector1"),
            ("tokenizer2", "transformer2"),
        ],
        ("norm_tokens", "head"),
    ),
    "cnn/conv6": (
        {},
        [("stage0_conv0", "stage0_conv1", "stage0_norm"), "stage1", "stage2"],
        ("dense0", "dense1", "head"),
    ),
}


@pytest.mark.parametrize("name", FORWARD)
def test_layers_follow_the_forward_pass(name):
    fields, order, rest = FORWARD[name]
    tree = parameters(name, 64 if "compact" not in name and "cnn" not in name else 32, **fields)
    found = dict(zip(trees.names(tree), jax.tree.leaves(trees.layers(tree)), strict=True))
    starts = [*((start,) if isinstance(start, str) else start for start in order), rest]
    expected = {}
    for layer, group in enumerate(starts):
        for start in group:
            matching = [
                path
                for path in found
                if f"{path}/".startswith(f"{start}/")
                or (start in ("stage1", "stage2") and path.startswith(start + "_"))
            ]
            assert matching, start
            expected |= dict.fromkeys(matching, layer)
    assert found == expected


def test_stacked_layers_have_the_numbers_of_separate_ones():
    tree = parameters("vit/mu16", 32, **VIT)
    stacked = jax.eval_shape(trees.stack_layers, tree)
    numbers = jax.tree.map(jnp.asarray, trees.layers(stacked))
    jax.tree.map(np.testing.assert_array_equal, trees.unstack_layers(numbers), trees.layers(tree))
    assert numbers["Transformer"]["encoderblock"]["LayerNorm_0"]["scale"].tolist() == [1, 2, 3]


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

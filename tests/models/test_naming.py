"""How each family's parameters are called: layers, places on a mesh, heads; and what a model need not say."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from vit_jax import models, sharding, trees
from vit_jax.models import Naming, naming_of

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
    "mixer/S16": ({"depth": 11}, ["stem", *(f"MixerBlock_{i}" for i in range(11))], ("pre_head_layer_norm", "head")),
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
    "small_vit/9-192": (
        {"depth": 3},
        [("embedding", "cls", "Transformer/posembed_input"), *ENCODER],
        ("Transformer/encoder_norm", "head"),
    ),
    "conv_stem/4-128": (
        {"depth": 3},
        ["whitening", "stage0", "stage1", ("embedding", "Transformer/posembed_input"), *ENCODER],
        ("Transformer/encoder_norm", "head"),
    ),
    "whitened_cnn/airbench94": ({}, ["whitening", "stage0", "stage1", "stage2"], ("head",)),
    "cnn/conv6": (
        {},
        [("stage0_conv0", "stage0_conv1", "stage0_norm"), "stage1", "stage2"],
        ("dense0", "dense1", "head"),
    ),
}


@cache
def parameters(name: str) -> dict:
    """The shapes of the parameters of a small model of the family."""
    model = models.create(models.settings(name, num_classes=16, **FORWARD[name][0]))
    size = 32 if name.startswith(("compact", "cnn", "conv_stem", "whitened")) else 64
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]


def naming(name: str) -> Naming:
    return naming_of(models.module_class(name))


def test_there_is_a_model_of_every_family():
    assert {name.partition("/")[0] for name in FORWARD} == set(models.FAMILIES)


@pytest.mark.parametrize("name", FORWARD)
def test_layers_follow_the_forward_pass(name):
    _, order, rest = FORWARD[name]
    tree = parameters(name)
    found = dict(zip(trees.names(tree), jax.tree.leaves(trees.layers(tree, naming(name).layers)), strict=True))
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


# One table for all families; which rules a family needs it says itself, and all leaves lie as by this table.
EVERY_RULE = (
    (r"(query|key|value)/kernel$", P("fsdp", "tensor", None)),
    (r"(query|key|value)/bias$", P("tensor", None)),
    (r"out/kernel$", P("tensor", None, "fsdp")),
    (r"MlpBlock_\d+/(Dense_0|gate)/kernel$", P("fsdp", "tensor")),
    (r"MlpBlock_\d+/(Dense_0|gate)/bias$", P("tensor")),
    (r"MlpBlock_\d+/Dense_1/kernel$", P("tensor", "fsdp")),
    (r"pos_embedding$", P(None, None, "fsdp")),
    (r"kernel$", P("fsdp", None)),
    (r"kernel$", P(None, None, None, "fsdp")),
)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("stacked", [False, True], ids=["looped", "scanned"])
def test_every_parameter_has_its_place_on_a_mesh(name, stacked):
    tree = jax.eval_shape(trees.stack_layers, parameters(name)) if stacked else parameters(name)
    for axes in ({"fsdp": 2, "tensor": 2}, {"tensor": 4}, {"fsdp": 4}):
        mesh = sharding.make_mesh(sharding.Settings(**axes))
        found = sharding.tree_shardings({"params": tree, "mu": tree}, mesh, naming(name).rules)
        expected = sharding.tree_shardings({"params": tree, "mu": tree}, mesh, EVERY_RULE)
        assert found == expected


@pytest.mark.parametrize("name", FORWARD)
def test_the_head_is_what_follows_the_features(name):
    mask = trees.mask(parameters(name), naming(name).whole_head)
    found = {
        path.split("/")[0] for path, whether in zip(trees.names(mask), jax.tree.leaves(mask), strict=True) if whether
    }
    expected = {"head", "head_dist", "pre_logits", "head_hidden_0", "head_hidden_1"} & parameters(name).keys()
    assert found == expected and "head" in found


def test_a_vits_head_is_found_by_one_expression():
    assert models.ViT.NAMING.whole_head == r"^(head|head_dist|head_hidden_\d+|pre_logits)/"


def test_tokens_and_modules_exist_as_the_fields_say():
    vit = models.ViT.NAMING
    assert vit.leading_tokens({"class_token": True, "distillation_token": True}) == ["cls", "dist"]
    assert vit.leading_tokens({"class_token": False, "distillation_token": False}) == []
    assert vit.optional_part("head_dist/kernel") == "distillation_token"
    assert vit.optional_part("dist") == "distillation_token"
    assert vit.optional_part("distance/kernel") is vit.optional_part("head/kernel") is None
    compact = models.Compact.NAMING
    assert [compact.leading_tokens({"pooling": pooling}) for pooling in ("token", "sequence")] == [["cls"], []]


def test_a_model_that_says_nothing_has_a_head_and_kernels():
    class Silent(nn.Module):
        pass

    found = naming_of(Silent)
    assert (found.layers, found.rules, found.whole_head) == ((), sharding.RULES, "^(head)/")
    assert found.leading_tokens({}) == [] and found.optional_part("head/kernel") is None

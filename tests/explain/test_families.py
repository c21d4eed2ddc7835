"""Every method on every kind of model: what applies gives arrays of the right shape, by tracing alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import rest_is_slow
from vit_jax import config, models, step, trees
from vit_jax.command import UserError
from vit_jax.data import Preprocessing
from vit_jax.explain import METHODS, explain
from vit_jax.explain.gradients import grad_cam_layer
from vit_jax.explain.methods import network_of, obstacle
from vit_jax.explain.network import grid, layers, open_network
from vit_jax.inference import Predictor

SIZE = (32, 64)
VIT = {"patch_size": (16,), "width": 6, "depth": 3, "mlp_dim": 7, "num_heads": 2}
STAGES = {"stage_sizes": (1, 1), "bottleneck": False, "width": 8}
KINDS = {
    "class_token": ("vit", VIT),
    "one_block": ("vit", {**VIT, "depth": 1}),
    "distillation": ("vit", {**VIT, "distillation_token": True, "registers": 5}),
    "registers": ("vit", {**VIT, "registers": 3, "pos_embed": "sincos2d", "width": 8}),
    "gap": ("vit", {**VIT, "class_token": False, "pooling": "gap", "pos_embed": "learned_2d"}),
    "map": ("vit", {**VIT, "class_token": False, "pooling": "map", "registers": 2}),
    "token_gap": ("vit", {**VIT, "pooling": "token_gap", "pos_embed": "none"}),
    "flatten": ("vit", {**VIT, "pooling": "flatten", "norm_after_pooling": True}),
    "relative": ("vit", {**VIT, "pos_embed": "relative_bias"}),
    "scan": ("vit", {**VIT, "scan": True, "remat": "full"}),
    "cct": ("compact", {"width": 8, "depth": 2, "mlp_dim": 7, "num_heads": 2, "convolutions": 2, "channels": 5}),
    "vit_lite": (
        "compact",
        {"width": 8, "depth": 2, "mlp_dim": 7, "num_heads": 2, "patch_size": (16,), "pooling": "token"},
    ),
    "hybrid": ("hybrid", {**VIT, "patch_size": (2,), "stage_sizes": (1, 1), "resnet_width": 32}),
    "mixer": ("mixer", {"patch_size": (16,), "width": 6, "depth": 2, "token_mlp_dim": 4, "channel_mlp_dim": 5}),
    "resnet": ("resnet", STAGES),
    "resnetv2": ("resnetv2", {"stage_sizes": (1, 2), "width": 4, "head_widths": (5,)}),
    "bit": ("bit", {"stage_sizes": (1, 1), "width": 32}),
    "cnn": ("cnn", {"stages": ((5,), (6, 7)), "dense_widths": (11,)}),
    "visual_transformer": ("visual_transformer", {**STAGES, "tokens": 3, "key_width": 4, "mlp_dim": 5}),
}
ATTENDS = ("attention", "rollout", "gradient_rollout", "distance")
LACKING = {
    **dict.fromkeys(("mixer", "resnet", "resnetv2", "bit", "cnn", "visual_transformer"), (*ATTENDS, "positions")),
    **dict.fromkeys(("token_gap", "relative"), ("positions",)),
}
# Each kind has one method for each way in which it differs: which tokens are read, where the map is.
TRACED = {
    "class_token": ("attention", "rollout", "gradient_rollout", "grad_cam", "integrated_gradients", "occlusion"),
    "map": ("rollout", "gradient_rollout", "distance", "norms"),
    "cct": ("rollout", "gradient_rollout", "receptive_field", "positions"),
    "visual_transformer": ("token_maps", "grad_cam"),
}
PLACES = {
    "visual_transformer": (4, 8),
    "cct": (8, 16),
    "hybrid": (2, 4),
    "resnet": (4, 8),
    "resnetv2": (4, 8),
    "bit": (4, 8),
    "cnn": (8, 16),
}


@functools.cache
def untrained(kind: str) -> Predictor:
    """A model whose variables are shapes alone."""
    name, fields = KINDS[kind]
    settings = models.settings(name, num_classes=4, **fields)
    prepared = config.from_dict({"model": settings, "augment": {"mean": (0.4,) * 3, "std": (0.3,) * 3}})
    model = models.create(settings)
    shapes = jax.eval_shape(lambda: step.init_variables(model, 0, (*SIZE, 3)))
    return Predictor(prepared, model, shapes, tuple("abcd"), Preprocessing(SIZE, "crop", 3), 0)


def traced(kind: str, method: str) -> tuple[int, ...]:
    """The shape of what a method computes of two images."""
    predictor, compute = untrained(kind), METHODS[method].compute
    with_shapes = network_of_shapes(predictor)
    x, targets = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    arguments = (with_shapes, x, targets) if METHODS[method].images else (with_shapes, x)
    return jax.eval_shape(compute, *arguments).shape


def network_of_shapes(predictor: Predictor):
    unstacked = jax.eval_shape(trees.unstack_layers, dict(predictor.variables))
    return open_network(predictor.model, unstacked, predictor.config.augment)


FIRST = ("class_token", "map", "cct", "hybrid", "visual_transformer")  # of the others `make test-slow` tells more


@pytest.mark.parametrize("kind", rest_is_slow([*FIRST, *(kind for kind in KINDS if kind not in FIRST)], len(FIRST)))
def test_shapes(kind):
    h, w = PLACES.get(kind, (2, 4))
    sizes = {"n": 2, "h": h, "w": w, "H": 32, "W": 64, "b": KINDS[kind][1].get("depth", 2), "a": 2, "l": 3}
    predictor = untrained(kind)
    applies = [name for name, method in METHODS.items() if not obstacle(method, predictor)]
    absent = {*LACKING.get(kind, ()), *([] if kind == "visual_transformer" else ["token_maps"])}
    assert set(applies) == set(METHODS) - absent
    traced_here = TRACED.get(kind, ("gradient_rollout", "grad_cam") if "rollout" in applies else ("grad_cam", "norms"))
    for name in traced_here:
        expected = tuple(sizes[axis] for axis in METHODS[name].result.split())
        assert traced(kind, name) == expected, name


@pytest.mark.parametrize("kind", ["class_token", "scan", "distillation", "one_block", "vit_lite", "hybrid"])
def test_a_class_token_reads_patches_in_the_last_block(kind):
    network = network_of_shapes(untrained(kind))
    last = KINDS[kind][1]["depth"] - 1
    assert grad_cam_layer(network, jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)) == (
        f"Transformer/encoderblock_{last}/LayerNorm_0"
    )


@pytest.mark.parametrize(
    "kind, layer",
    [
        ("gap", "Transformer"),
        ("map", "Transformer"),
        ("cct", "Transformer"),
        ("mixer", "pre_head_layer_norm"),
        ("resnet", "stage2_block1"),
        ("resnetv2", "norm_head"),
        ("bit", "norm-pre-head"),
        ("cnn", "stage1_norm"),
        ("visual_transformer", "projector1"),
    ],
)
def test_other_models_have_their_last_map_weighted(kind, layer):
    network = network_of_shapes(untrained(kind))
    assert grad_cam_layer(network, jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)) == layer


def test_a_scanned_model_is_opened_as_its_looped_twin():
    name, fields = KINDS["scan"]
    looped = models.create(models.settings(name, num_classes=4, **{**fields, "scan": False, "remat": "none"}))
    shapes, rng = jax.eval_shape(lambda: step.init_variables(looped, 0, (*SIZE, 3))), np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    predictor = untrained("scan")
    opened = open_network(predictor.model, trees.stack_layers(values), predictor.config.augment)
    assert opened.model == looped
    jax.tree.map(np.testing.assert_array_equal, opened.variables, values)


def test_layers_are_named_in_order():
    network = network_of_shapes(untrained("cnn"))
    x = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    assert list(layers(network, x)) == ["stage0_conv0", "stage0_norm", "stage1_conv0", "stage1_conv1", "stage1_norm"]
    assert grid(network, x) == (8, 16)


@pytest.mark.parametrize(
    "kind, method, said",
    [
        (
            "resnet",
            "rollout",
            "'resnet' has no attention between patches; choose from grad_cam, integrated_gradients, ",
        ),
        ("gap", "token_maps", "'vit' is no Visual Transformer; choose from attention, rollout"),
        ("relative", "positions", r"pos_embed='relative_bias'"),
    ],
)
def test_a_method_that_does_not_apply_names_those_that_do(kind, method, said):
    with pytest.raises(UserError, match=said):
        explain(untrained(kind), np.zeros((1, *SIZE, 3), np.uint8), method)


def test_without_a_head_there_is_no_class():
    headless = dataclasses.replace(untrained("gap"), class_names=())
    with pytest.raises(UserError, match="has no head, thus no class; choose from attention, rollout, distance"):
        explain(headless, np.zeros((1, *SIZE, 3), np.uint8), "grad_cam")
    assert not obstacle(METHODS["rollout"], headless)


def test_network_of_a_predictor_knows_what_its_loss_means():
    predictor = untrained("cnn")
    assert not network_of(predictor).sigmoid
    independent = dataclasses.replace(predictor.config, task={**predictor.config.task, "loss": "sigmoid"})
    assert network_of(dataclasses.replace(predictor, config=independent)).sigmoid

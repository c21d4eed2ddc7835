"""The mesh's errors, and the PartitionSpec that each parameter gets."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from vit_jax import models, optim, sharding, trees
from vit_jax.command import UserError
from vit_jax.sharding import Settings

P = PartitionSpec
RULES = models.ViT.NAMING.rules


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return sharding.make_mesh(Settings(fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def parameters():
    """The shapes of ViT-B/16's parameters."""
    model = models.create(models.settings("vit/B16", num_classes=1000))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (4, 1, 1)),
        ({"fsdp": 2}, (2, 2, 1)),
        ({"fsdp": 2, "tensor": 2}, (1, 2, 2)),
        ({"data": 2, "tensor": 2, "devices": 4}, (2, 1, 2)),
    ],
)
def test_the_data_axis_takes_what_the_others_leave(settings, shape):
    mesh = sharding.make_mesh(Settings(**settings))
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sharding.batch_shards(mesh) == shape[0] * shape[1]


def test_a_mesh_over_given_devices():
    assert sharding.make_mesh(Settings(), jax.devices()[1:3]).devices.ravel().tolist() == jax.devices()[1:3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 8}, "found 4 devices, expected mesh.devices=8; start the run on that many"),
        ({"data": 3}, "data=3 x fsdp=1 x tensor=1 needs 3 devices, found 4; make the product 4"),
        ({"fsdp": 3}, "data=1 x fsdp=3 x tensor=1 needs 3 devices, found 4"),
        ({"fsdp": 8}, "data=1 x fsdp=8 x tensor=1 needs 8 devices, found 4"),
        ({"fsdp": 0, "tensor": -1}, "^mesh.fsdp=0, mesh.tensor=-1: sizes are positive; mesh.data=0 means all"),
        ({"data": -1}, "^mesh.data=-1: sizes are positive"),
        ({"devices": -1}, "^mesh.devices=-1: sizes are positive"),
    ],
)
def test_a_mesh_that_does_not_fit_explains(settings, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(Settings(**settings))


def test_a_batch_is_split_over_data_and_fsdp_and_copied_over_tensor(mesh):
    assert sharding.batch_sharding(mesh).shard_shape((12, 5, 7, 3)) == (6, 5, 7, 3)
    assert sharding.replicated(mesh).shard_shape((12, 5)) == (12, 5)
    without_tensor = sharding.make_mesh(Settings(data=2, fsdp=2))
    assert sharding.batch_sharding(without_tensor).shard_shape((12,)) == (3,)


def test_an_axis_that_does_not_divide_is_left_out(mesh):
    name = "MlpBlock_0/Dense_0/kernel"
    assert sharding.spec_for(name, (10, 12), mesh, RULES) == P("fsdp", "tensor")
    assert sharding.spec_for(name, (10, 13), mesh, RULES) == P("fsdp", None)
    assert sharding.spec_for(name, (11, 12), mesh, RULES) == P(None, "tensor")
    scanned = f"encoderblock/{name}"  # the layer axis comes first, and is not split
    assert sharding.spec_for(scanned, (2, 10, 12), mesh, RULES) == P(None, "fsdp", "tensor")
    assert sharding.spec_for(scanned, (2, 11, 13), mesh, RULES) == P(None, None, None)


def test_the_first_rule_of_the_leafs_rank_decides(mesh):
    rules = ((r"kernel$", P("tensor")), (r"a/kernel$", P("fsdp", None)), (r"kernel$", P(None, "fsdp")))
    assert sharding.spec_for("a/kernel", (4, 6), mesh, rules) == P("fsdp", None)
    assert sharding.spec_for("b/kernel", (4, 6), mesh, rules) == P(None, "fsdp")
    assert sharding.spec_for("b/kernel", (4,), mesh, rules) == P("tensor")
    assert sharding.spec_for("b/bias", (4,), mesh, rules) == P()


@pytest.mark.parametrize("stacked", [False, True], ids=["looped", "scanned"])
def test_vit_b16_is_split_over_four_devices_but_for_small_leaves(mesh, parameters, stacked):
    tree = jax.eval_shape(trees.stack_layers, parameters) if stacked else parameters
    places = sharding.tree_shardings(tree, mesh, RULES)
    shapes = dict(zip(trees.names(tree), jax.tree.leaves(tree), strict=True))
    on_one_device = 0
    for name, place in zip(trees.names(tree), jax.tree.leaves(places), strict=True):
        assert len(place.spec) in (0, len(shapes[name].shape)), name
        assert place.spec or not name.endswith("kernel"), name
        part = jax.ShapeDtypeStruct(place.shard_shape(shapes[name].shape), jnp.float32)  # raises unless it divides
        on_one_device += trees.count(part)
    assert 0.25 < on_one_device / trees.count(tree) < 0.26


def test_an_optimizers_state_is_split_like_the_parameters(mesh, parameters):
    tx = optim.create(optim.Settings())
    state = jax.eval_shape(tx.init, parameters)
    places = sharding.tree_shardings(state, mesh, RULES)
    assert places[0].mu == places[0].nu == sharding.tree_shardings(parameters, mesh, RULES)


@pytest.mark.parametrize("axes", [{}, {"fsdp": 2}, {"tensor": 2}, {"fsdp": 2, "tensor": 2}, {"tensor": 4}])
def test_one_process_loads_every_row_once(axes):
    mesh = sharding.make_mesh(sharding.Settings(**axes), jax.devices()[:4])
    np.testing.assert_array_equal(sharding.local_rows(mesh, 12), np.arange(12))

"""What changes nothing of a training step: devices, scan, remat, parts of a batch, the data set on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import quick
from tests.conftest import rest_is_slow
from tests.step.small import (
    ADAMW,
    CALM,
    IMAGES,
    INDICES,
    LABELS,
    NOISY,
    SEED,
    SGD,
    SHAPE,
    VIEW,
    K,
    N,
    assert_close,
    assert_same_bits,
    augmented,
    batch,
    compiled,
    create,
    start,
    task_of,
    train,
)
from vit_jax import config, losses, models, optim, sharding, step, tasks, trees
from vit_jax.models.cnn import CNN
from vit_jax.optim.averages import exponential
from vit_jax.step import TrainState
from vit_jax.train import experiment


def test_a_batch_by_index_is_the_batch_by_images_to_the_bit(calm_state, calm_step, eval_step):
    constants = {"examples": {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}}
    index = {"index": jnp.asarray(INDICES[0])}
    assert_same_bits(calm_step(calm_state, index, constants), calm_step(calm_state, batch(0), {}))
    weight = {"weight": jnp.ones(N)}
    variables = step.evaluation_variables(calm_state)
    assert_same_bits(eval_step(variables, index | weight, constants), eval_step(variables, batch(0) | weight, {}))


def mesh_losses(params, **axes: int) -> tuple[list[float], TrainState]:
    """The losses of 5 steps on the first devices, with dropout, augmentation, clipping and averages on."""
    given = config.from_dict(
        {
            "seed": SEED,
            "model": models.settings("vit", **NOISY),
            "augment": {"crop_padding": 1, "flip": 0.5, "mean": VIEW.mean, "std": VIEW.std},
            "optim": {"lr": 0.01, "ema_decay": 0.9, "clip_norm": 1.0},
            "train": {"batch_size": N, "steps": 5, "label_smoothing": 0.1},
        }
    )
    settings = sharding.Settings(**axes)
    devices = jax.devices()[: settings.data * settings.fsdp * settings.tensor]
    mesh, task = sharding.make_mesh(settings, devices), task_of(create(NOISY))
    parts = experiment.compiled_parts(given, task, mesh, per_epoch=2, total=9, by_size={})
    places = sharding.tree_shardings(parts["abstract_state"], mesh, models.naming_of(task.module).rules)
    state = jax.device_put(start(params, optim.create(given.optim)), places)
    train_step = parts["train_step"].lower(state, batch(0), {}).compile(quick.OPTIONS)
    found, batch_place = [], sharding.batch_sharding(mesh)
    for number in range(5):
        state, metrics = train_step(state, jax.device_put(batch(number), batch_place), {})
        found.append(float(metrics["loss"]))
    return found, state


@pytest.fixture(scope="module")
def one_device(state):
    return mesh_losses(state.params, data=1)


@pytest.mark.parametrize(
    ("mesh", "split"),
    [
        ({"data": 4}, (8, 10)),
        ({"data": 1, "fsdp": 2, "tensor": 2}, (4, 5)),
        pytest.param({"data": 2}, (8, 10), marks=pytest.mark.slow),
        pytest.param({"data": 1, "fsdp": 4}, (2, 10), marks=pytest.mark.slow),
        pytest.param({"data": 1, "tensor": 2}, (8, 5), marks=pytest.mark.slow),
    ],
    ids=["4", "fsdp2-tensor2", "2", "fsdp4", "tensor2"],
)
def test_the_devices_do_not_change_the_losses(state, one_device, mesh, split):
    expected, _ = one_device
    found, after = mesh_losses(state.params, **mesh)
    assert np.std(expected) > 1e-2
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    kernel = after.params["Transformer"]["encoderblock_1"]["MlpBlock_3"]["Dense_0"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {split}
    assert len(kernel.addressable_shards) == np.prod(list(mesh.values()))


EVERY = tuple(optim.OPTIMIZERS)


def all_in_one() -> optax.GradientTransformation:
    """All optimizers in one, chosen by the state's `which`: one compilation serves them all."""
    every = [optim.create(optim.Settings(name=name, weight_decay=0.1)) for name in EVERY]

    def init(params):
        return {"which": jnp.int32(0), "states": [tx.init(params) for tx in every]}

    def update(gradients, state, params):
        def of(i):
            def branch(states):
                updates, new = every[i].update(gradients, states[i], params)
                return updates, [*states[:i], new, *states[i + 1 :]]

            return branch

        updates, states = jax.lax.switch(state["which"], [of(i) for i in range(len(every))], state["states"])
        return updates, {"which": state["which"], "states": states}

    return optax.GradientTransformation(init, update)


@pytest.mark.slow
def test_scan_changes_nothing_for_any_optimizer(state):
    tx = all_in_one()
    looped_step, scanned_step = (
        compiled(create(NOISY | {"scan": scan}), tx, average=exponential(0.9)) for scan in (False, True)
    )
    looped, scanned = start(state.params, tx), start(trees.stack_layers(state.params), tx)
    for i in range(len(EVERY)):
        assert_same_run(train(scanned_step, with_optimizer(scanned, i)), train(looped_step, with_optimizer(looped, i)))


def with_optimizer(state: TrainState, i: int) -> TrainState:
    return state.replace(opt_state=state.opt_state | {"which": jnp.int32(i)})


@pytest.mark.parametrize(
    "fields", rest_is_slow([{"remat": "full", "scan": True}, {"remat": "dots"}]), ids=["full-scan", "dots"]
)
def test_remat_changes_nothing(state, noisy_step, fields):
    params = trees.stack_layers(state.params) if "scan" in fields else state.params
    assert_same_run(train(compiled(create(NOISY | fields), ADAMW), start(params, ADAMW)), train(noisy_step, state))


def assert_same_run(found: tuple[TrainState, list[dict]], expected: tuple[TrainState, list[dict]]) -> None:
    (found_state, found_metrics), (expected_state, expected_metrics) = found, expected
    for a, b in zip(found_metrics, expected_metrics, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    assert_close(trees.unstack_layers(found_state.params), expected_state.params, 1e-4, 1e-5)


def test_parts_of_a_batch_average_to_the_whole(calm_state, calm_step):
    """Augmentation included, whose draws belong to the rows of the batch."""
    expected, whole_metrics = train(calm_step, calm_state)
    found, metrics = train(compiled(create(CALM), SGD, accumulate=3), calm_state)
    assert_close(found.params, expected.params)
    for name in ("loss", "accuracy", "grad_norm"):
        np.testing.assert_allclose([m[name] for m in metrics], [m[name] for m in whole_metrics], rtol=1e-5)


def test_batch_norm_sees_the_parts_one_after_another():
    """Rows 0, 2, 4 ... are the first part; also the sigmoid loss, and averages of the statistics."""
    model = CNN(stages=((5,),), dense_widths=(), num_classes=K)
    variables = quick.jit(lambda: step.init_variables(model, SEED, SHAPE))()
    state = start(**variables, tx=SGD)
    train_step = compiled(
        model, SGD, tasks.settings("classification", loss="sigmoid"), accumulate=2, average=exponential(0.9)
    )
    after, metrics = train_step(state, batch(0), {})

    @quick.jit
    def forward(variables, images):
        return model.apply(variables, images, train=True, mutable="batch_stats", rngs={"dropout": jax.random.key(0)})

    images, targets, values = augmented(IMAGES[INDICES[0]], 0), losses.one_hot(batch(0)["label"], K), []
    for part in (slice(0, N, 2), slice(1, N, 2)):
        logits, changed = forward(variables, images[part])
        variables = variables | changed
        values.append(losses.sigmoid_cross_entropy(logits, targets[part]).mean())
    np.testing.assert_allclose(metrics["loss"], np.mean(values), rtol=1e-5)
    assert_close(after.batch_stats, variables["batch_stats"])
    averages = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, state.batch_stats, after.batch_stats)
    assert_close(after.ema["batch_stats"], averages)

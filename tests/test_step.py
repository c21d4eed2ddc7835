"""The training step's laws: devices, scan, remat, parts and caching change nothing; a bad update is skipped."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import quick
from vit_jax import augment, config, losses, models, optim, run, sharding, step, trees
from vit_jax.models.cnn import CNN
from vit_jax.step import Purpose, TrainState

N, SHAPE, K = 12, (6, 4, 3), 7  # 12 images: for 4 devices, and in 3 parts
SEED = 5
VIEW = augment.Settings(crop_padding=1, flip=0.5, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
CALM = {
    "patch_size": (2,),
    "width": 8,
    "depth": 2,
    "mlp_width": 10,
    "heads": 2,
    "num_classes": K,
    "pooling": "gap",
    "qkv_bias": False,  # a key's bias has gradient 0 but for rounding, which Adam and Lion blow up to a whole step
    "zero_head": False,
}
NOISY = CALM | {"dropout": 0.2, "attention_dropout": 0.1, "stochastic_depth": 0.3}
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (29, *SHAPE), np.uint8)
LABELS = RNG.integers(0, K, 29, np.int32)
INDICES = [RNG.permutation(29)[:N].astype(np.int32) for _ in range(5)]


def batch(number: int) -> dict[str, jax.Array]:
    return {"image": jnp.asarray(IMAGES[INDICES[number]]), "label": jnp.asarray(LABELS[INDICES[number]])}


def create(fields: dict):
    return models.create(models.settings("vit", **fields))


def rate(count: jax.Array, total_steps: int) -> jax.Array:
    """Infinite at step 3."""
    return jnp.where(count == 3, jnp.inf, 0.01)


EVERY = get_args(optim.Optimizer)


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


TX = all_in_one()  # AdamW unless a test says otherwise
ADAMW = optim.create(optim.Settings(weight_decay=0.1))
SGD = optim.create(optim.Settings(name="sgd"))


OBJECTIVE = step.Objective(K, label_smoothing=0.1)


def compiled(model, tx=TX, objective=OBJECTIVE, **options):
    return quick.jit(step.make_train_step(model, tx, rate, VIEW, objective, seed=SEED, total_steps=5, **options))


def start(params, tx=TX, batch_stats=()) -> TrainState:
    """The state before the first step, with these parameters."""
    zero, variables = jnp.int32(0), {"params": params, "batch_stats": dict(batch_stats)}
    guard = {"skipped": zero, "in_a_row": zero}
    state = TrainState(step=zero, opt_state=tx.init(params), ema=variables, guard=guard, **variables)
    return jax.tree.map(jnp.copy, state)  # no two of a donated state's arrays may be one


def train(train_step, state: TrainState, steps: int = 3) -> tuple[TrainState, list[dict]]:
    """The state after some steps, and the metrics of each."""
    seen = []
    for number in range(steps):
        state, metrics = train_step(state, batch(number), {})
        seen.append(jax.device_get(metrics))
    return state, seen


def assert_same_bits(found, expected) -> None:
    assert trees.names(found) == trees.names(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(found, expected, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    assert trees.names(found) == trees.names(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def state() -> TrainState:
    """Before the first step. Dropout has no parameters: calm and noisy models share it."""
    return quick.jit(lambda: step.init_state(create(NOISY), TX, SEED, SHAPE, ema=True))()


@pytest.fixture(scope="module")
def noisy_step():
    return compiled(create(NOISY), ema_decay=0.9)


@pytest.fixture(scope="module")
def calm_step():
    return compiled(create(CALM), SGD)


@pytest.fixture(scope="module")
def calm_state(state) -> TrainState:
    return start(state.params, SGD)


@pytest.fixture(scope="module")
def eval_step():
    return quick.jit(step.make_eval_step(create(NOISY), VIEW))


def test_keys_differ_by_purpose_step_and_seed():
    keys = [step.rng_for(seed, purpose, at) for seed in (0, 1) for purpose in Purpose for at in (0, 1, 2)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 2 * len(Purpose) * 3
    at = quick.jit(lambda at: step.rng_for(1, Purpose.AUGMENT, at))(jnp.int32(2))
    np.testing.assert_array_equal(jax.random.key_data(at), jax.random.key_data(step.rng_for(1, Purpose.AUGMENT, 2)))


def test_purposes_are_numbered_for_good():
    assert [(purpose.name, purpose.value) for purpose in Purpose][:3] == [("PARAMS", 0), ("AUGMENT", 1), ("DROPOUT", 2)]


def test_the_same_step_repeats_to_the_bit(state, noisy_step):
    assert_same_bits(noisy_step(state, batch(0), {}), noisy_step(state, batch(0), {}))


def test_another_step_draws_another_augmentation(calm_state, calm_step):
    _, now = calm_step(calm_state, batch(0), {})
    _, then = calm_step(calm_state.replace(step=jnp.int32(1)), batch(0), {})
    assert abs(now["loss"] - then["loss"]) > 1e-4


def test_another_step_draws_another_dropout(state, noisy_step, calm_state, calm_step):
    black = batch(0) | {"image": jnp.zeros((N, *SHAPE), jnp.uint8)}  # which no crop or flip changes

    def loss(train_step, state: TrainState, at: int) -> float:
        return float(train_step(state.replace(step=jnp.int32(at)), black, {})[1]["loss"])

    assert loss(calm_step, calm_state, 0) == loss(calm_step, calm_state, 1)
    assert abs(loss(noisy_step, state, 0) - loss(noisy_step, state, 1)) > 1e-3


def test_a_scanned_model_starts_as_its_looped_twin(state):
    model = create(NOISY | {"scan": True})
    scanned = jax.eval_shape(lambda: step.init_variables(model, SEED, SHAPE))
    own = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False)["params"])
    assert trees.names(scanned["params"]) == trees.names(own)
    assert jax.tree.leaves(scanned["params"]) == jax.tree.leaves(own)
    assert trees.names(jax.eval_shape(trees.unstack_layers, scanned)["params"]) == trees.names(state.params)


def test_the_first_state_counts_from_0_and_averages_from_the_parameters(state):
    assert (state.step, state.guard["skipped"], state.guard["in_a_row"]) == (0, 0, 0)
    assert_same_bits(state.ema, {"params": state.params, "batch_stats": {}})
    without = jax.eval_shape(lambda: step.init_state(create(NOISY), TX, SEED, SHAPE, ema=False))
    assert without.ema == {}
    assert step.evaluation_variables(without) == {"params": without.params, "batch_stats": {}}
    assert step.evaluation_variables(state) is state.ema


def test_averages_follow_the_parameters(state, noisy_step):
    expected = state.params
    for number in range(2):
        state, _ = noisy_step(state, batch(number), {})
        expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, expected, state.params)
    assert_close(state.ema["params"], expected)
    assert state.step == 2


def augmented(images: np.ndarray, at: int) -> jax.Array:
    key = step.rng_for(SEED, Purpose.AUGMENT, at)
    return augment.train_view(VIEW, jnp.asarray(images), jnp.stack([jax.random.fold_in(key, i) for i in range(N)]))


def cross_entropy(logits, labels, smoothing: float) -> float:
    logits = np.asarray(logits, np.float64)
    targets = np.full((N, K), smoothing / K)
    targets[np.arange(N), labels] += 1 - smoothing
    return -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()


def test_the_loss_is_the_smoothed_cross_entropy_of_the_augmented_images(calm_state, calm_step):
    model, given = create(CALM), batch(1)
    forward = quick.jit(lambda x: model.apply({"params": calm_state.params}, x, train=False))
    logits = forward(augmented(IMAGES[INDICES[1]], 4))
    _, metrics = calm_step(calm_state.replace(step=jnp.int32(4)), given, {})
    np.testing.assert_allclose(metrics["loss"], cross_entropy(logits, given["label"], 0.1), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(logits.argmax(1) == given["label"]), rtol=1e-6)


def test_metrics_say_what_the_update_was(calm_state, calm_step):
    after, metrics = calm_step(calm_state, batch(0), {})
    np.testing.assert_allclose(metrics["lr"], 0.01)
    np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(after.params), rtol=1e-6)
    gradient = jax.tree.map(lambda before, after: (before - after) / 0.01, calm_state.params, after.params)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-4)
    assert (metrics["skipped_updates"], metrics["skipped_in_a_row"]) == (0, 0)


def test_evaluation_normalises_and_passes_labels_and_weights_on(state, eval_step):
    weight = np.ones(N, np.float32)
    weight[-2:] = 0  # padding
    given = batch(0) | {"weight": jnp.asarray(weight)}
    variables = step.evaluation_variables(state)
    output = eval_step(variables, given, {})
    np.testing.assert_array_equal(output["label"], LABELS[INDICES[0]])
    np.testing.assert_array_equal(output["weight"], weight)
    normal = (IMAGES[INDICES[0]] / 255 - VIEW.mean) / VIEW.std
    forward = quick.jit(lambda x: create(CALM).apply(variables, x, train=False))
    np.testing.assert_allclose(output["logits"], forward(jnp.asarray(normal, jnp.float32)), rtol=1e-4, atol=1e-5)
    # What stands in the padding does not reach the other rows.
    other = given | {"image": given["image"].at[-2:].set(0)}
    np.testing.assert_array_equal(eval_step(variables, other, {})["logits"][:-2], output["logits"][:-2])


def test_a_batch_by_index_is_the_batch_by_images_to_the_bit(calm_state, calm_step, eval_step):
    frozen = {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}
    index = {"index": jnp.asarray(INDICES[0])}
    assert_same_bits(calm_step(calm_state, index, frozen), calm_step(calm_state, batch(0), {}))
    weight = {"weight": jnp.ones(N)}
    variables = step.evaluation_variables(calm_state)
    assert_same_bits(eval_step(variables, index | weight, frozen), eval_step(variables, batch(0) | weight, {}))


def mesh_losses(params, **mesh: int) -> tuple[list[float], TrainState]:
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
    settings = sharding.Settings(**mesh)
    devices = jax.devices()[: settings.data * settings.fsdp * settings.tensor]
    built = run.build(given, sharding.make_mesh(settings, devices), image_shape=SHAPE, train_images=29)
    places = sharding.tree_shardings(built.abstract_state, built.mesh)
    state = jax.device_put(start(params, optim.create(given.optim)), places)
    train_step = built.train_step.lower(state, batch(0), {}).compile(quick.OPTIONS)
    found, batch_place = [], sharding.batch_sharding(built.mesh)
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
        ({"data": 2}, (8, 10)),
        ({"data": 4}, (8, 10)),
        ({"data": 1, "fsdp": 4}, (2, 10)),
        ({"data": 1, "tensor": 2}, (8, 5)),
        ({"data": 1, "fsdp": 2, "tensor": 2}, (4, 5)),
    ],
    ids=["2", "4", "fsdp4", "tensor2", "fsdp2-tensor2"],
)
def test_the_devices_do_not_change_the_losses(state, one_device, mesh, split):
    expected, _ = one_device
    found, after = mesh_losses(state.params, **mesh)
    assert np.std(expected) > 1e-2
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    kernel = after.params["Transformer"]["encoderblock_1"]["MlpBlock_3"]["Dense_0"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {split}
    assert len(kernel.addressable_shards) == np.prod(list(mesh.values()))


def test_scan_changes_nothing_for_any_optimizer(state, noisy_step):
    scanned_step = compiled(create(NOISY | {"scan": True}), ema_decay=0.9)
    scanned = start(trees.stack_layers(state.params))
    for i in range(len(EVERY)):
        assert_same_run(train(scanned_step, with_optimizer(scanned, i)), train(noisy_step, with_optimizer(state, i)))


def with_optimizer(state: TrainState, i: int) -> TrainState:
    return state.replace(opt_state=state.opt_state | {"which": jnp.int32(i)})


@pytest.mark.parametrize("fields", [{"remat": "dots"}, {"remat": "full", "scan": True}], ids=["dots", "full-scan"])
def test_remat_changes_nothing(state, noisy_step, fields):
    params = trees.stack_layers(state.params) if "scan" in fields else state.params
    assert_same_run(train(compiled(create(NOISY | fields), ADAMW), start(params, ADAMW)), train(noisy_step, state))


def assert_same_run(found: tuple[TrainState, list[dict]], expected: tuple[TrainState, list[dict]]) -> None:
    (found_state, found_metrics), (expected_state, expected_metrics) = found, expected
    for a, b in zip(found_metrics, expected_metrics, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    assert_close(trees.unstack_layers(found_state.params), expected_state.params, 1e-4, 1e-5)


@pytest.mark.parametrize("loss", list(step.LOSSES))
def test_the_objective_is_the_mean_of_the_loss_that_it_names(loss):
    logits, targets = jnp.linspace(-3, 3, N * K).reshape(N, K), losses.one_hot(jnp.asarray(LABELS[:N]), K)
    of_images = getattr(losses, f"{loss}_cross_entropy")(logits, targets)
    np.testing.assert_allclose(step.Objective(K, loss=loss)(logits, targets, None), of_images.mean(), rtol=1e-6)


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
    train_step = compiled(model, SGD, step.Objective(K, loss="sigmoid"), accumulate=2, ema_decay=0.9)
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


def assert_skipped(after: TrainState, before: TrainState, metrics: dict) -> None:
    assert_same_bits(after.replace(step=before.step, guard=before.guard), before)
    assert after.step == before.step + 1
    assert after.guard["skipped"] == before.guard["skipped"] + 1 == metrics["skipped_updates"]
    assert after.guard["in_a_row"] == before.guard["in_a_row"] + 1 == metrics["skipped_in_a_row"]


def test_a_gradient_that_is_not_finite_is_skipped_and_counted_until_it_recovers(state, noisy_step):
    good, _ = train(noisy_step, state, 1)
    broken = good.replace(params=good.params | {"head": jax.tree.map(lambda x: x * jnp.nan, good.params["head"])})
    once, metrics = noisy_step(broken, batch(1), {})
    assert_skipped(once, broken, metrics)
    assert np.isnan(metrics["loss"])
    twice, metrics = noisy_step(once, batch(2), {})
    assert_skipped(twice, once, metrics)
    recovered, metrics = noisy_step(twice.replace(params=good.params), batch(3), {})
    assert (recovered.guard["skipped"], recovered.guard["in_a_row"]) == (2, 0)
    assert (metrics["skipped_updates"], metrics["skipped_in_a_row"]) == (2, 0)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, recovered.params, good.params)) > 1e-3


def test_parameters_that_would_not_be_finite_are_skipped(state, noisy_step):
    before, _ = train(noisy_step, state, 3)
    after, metrics = noisy_step(before, batch(3), {})  # where the learning rate is infinite
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert_skipped(after, before, metrics)


def test_a_frozen_parameter_has_no_gradient_and_the_others_the_same(state):
    model = create(CALM)
    frozen = compiled(model, SGD, trained=lambda params: trees.mask(params, "^head"))
    params = jax.tree.map(jnp.copy, state.params)
    after, [metrics] = train(frozen, start(params, SGD), 1)
    plain, _ = train(compiled(model, SGD), start(params, SGD), 1)
    assert_close(after.params["head"], plain.params["head"])
    rest = [{k: v for k, v in tree.items() if k != "head"} for tree in (after.params, params)]
    assert_same_bits(*rest)
    change = jax.tree.map(jnp.subtract, params["head"], after.params["head"])
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(change)) / 0.01, rel=1e-4)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_teacher_s_share_of_the_loss(state, kind):
    """The teacher looks at the student's augmented images; its variables are an argument."""
    model = create(CALM)
    scores = jnp.asarray(RNG.normal(size=(K,)), jnp.float32)

    def teacher(variables, images):
        assert images.shape == (N, *SHAPE)
        return variables["scores"][None] + 0 * images.mean(axis=(1, 2, 3))[:, None]

    def loss(weight):
        objective = step.Objective(K, teacher=teacher, distillation=kind, distillation_weight=weight, temperature=2.0)
        train_step = compiled(model, SGD, objective)
        _, metrics = train_step(start(state.params, SGD), batch(0), {"teacher": {"scores": scores}})
        return float(metrics["loss"])

    labels_only, teacher_only = loss(0.0), loss(1.0)
    assert loss(0.25) == pytest.approx(0.75 * labels_only + 0.25 * teacher_only, rel=1e-5)
    assert abs(labels_only - teacher_only) > 0.01

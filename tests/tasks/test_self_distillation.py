"""Self-distillation: its loss by an independent reference, teacher and centre by hand, and the laws of every task."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from scipy.special import log_softmax, softmax

from tests import quick, tiny
from vit_jax import augment, config, evaluate, inference, models, sharding, step, tasks, train, trees
from vit_jax.command import UserError
from vit_jax.metrics import probes
from vit_jax.tasks import self_distillation

SHAPE, PATCH, K = (12, 8, 3), (4, 2), 11
BACKBONE = {"patch_size": PATCH, "width": 8, "depth": 2, "mlp_dim": 12, "num_heads": 2, "qkv_bias": False}
SETTINGS = {"outputs": K, "hidden_width": 10, "bottleneck": 6, "local_crops": 3, "local_size": (8, 4)}
RNG = np.random.default_rng(0)
# Less to compile, and nothing that rounds colours to 256 levels, which two programs may do differently.
CALM = {"local_crops": 1, "blur": (0.0, 0.0, 0.0), "solarize": 0.0}
N = 8
BATCH = {"image": jnp.asarray(RNG.integers(0, 256, (N, *SHAPE), np.uint8))}
VIEW = augment.Settings(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), flip=0.5)


def task_of(model=(), **fields) -> self_distillation.SelfDistillation:
    module = models.create(models.settings("vit", **{**BACKBONE, **dict(model)}))
    parts = tasks.Parts(module, SHAPE, ("a", "b"), augment=VIEW, train_augment=VIEW)
    return tasks.create(tasks.settings("self_distillation", **SETTINGS | fields), parts)


TASK = task_of()


@pytest.fixture(scope="module")
def variables():
    return quick.jit(lambda: step.init_variables(TASK.module, 0, SHAPE))()


def test_the_loss_is_that_of_an_independent_reference():
    """As the authors' pseudocode has it: a loop over pairs of crops, in float64."""
    teacher, student, center = RNG.normal(size=(5, 2, K)), RNG.normal(size=(5, 6, K)), RNG.normal(size=K)
    losses = []
    for i in range(2):
        taught = softmax((teacher[:, i] - center) / 0.05, axis=1)
        losses += [-(taught * log_softmax(student[:, j] / 0.1, axis=1)).sum(axis=1) for j in range(6) if j != i]
    centred = jnp.asarray(teacher - center, jnp.float32)
    found = self_distillation.distillation(centred, jnp.asarray(student, jnp.float32), 0.05, 0.1)
    assert len(losses) == 10 and float(found) == pytest.approx(np.mean(losses), rel=1e-5)


def test_koleo_is_that_of_an_independent_reference():
    x = RNG.normal(size=(7, 5))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    apart = np.linalg.norm(unit[:, None] - unit[None], axis=2) + 1e9 * np.eye(7)
    found = float(self_distillation.koleo(jnp.asarray(x, jnp.float32)))
    assert found == pytest.approx(-np.log(apart.min(axis=1)).mean(), rel=1e-5)


def test_the_whole_loss_is_put_together_from_crops_networks_and_centre(variables):
    task = task_of(**CALM)
    center = jnp.asarray(RNG.normal(size=K), jnp.float32)
    state = task.init_state(jax.tree.map(lambda x: x + 0.1, variables["params"]))
    state["teacher"]["batch_stats"]["center"], state["progress"] = center, jnp.float32(0.15)
    rngs = step.rngs_for(3, 4, jnp.arange(N))

    @quick.jit
    def loss_and_parts(variables, state):
        """The loss, and what the teacher and the student say of each crop."""

        def apply(variables, images):
            return task.module.apply(variables, images.reshape(-1, *images.shape[2:]), train=False)[1].reshape(N, -1, K)

        large, small = task.crops(BATCH["image"], rngs.augment)
        assert large.shape == (N, 2, *SHAPE) and small.shape == (N, 1, 8, 4, 3)
        on_grid = {**variables, "params": task._on_grid(variables["params"], (2, 2))}
        parts = apply(state["teacher"], large), apply(variables, large), apply(on_grid, small)
        return *task.loss(variables["params"], variables["batch_stats"], state, BATCH, rngs, {}), *parts

    found, aux, *parts = jax.device_get(loss_and_parts(variables, state))
    taught, seen = parts[0], np.concatenate(parts[1:], axis=1)
    center = np.asarray(center)
    temperature = 0.04 + 0.03 * 0.15 / 0.3
    expected = np.mean(
        [
            -(softmax((taught[:, i] - center) / temperature, axis=1) * log_softmax(seen[:, j] / 0.1, axis=1)).sum(
                axis=1
            )
            for i in range(2)
            for j in range(3)
            if i != j
        ]
    )
    assert float(found) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(aux.extra["center"], taught.mean(axis=(0, 1)), atol=1e-5)


def test_an_images_crops_are_a_function_of_its_key_alone():
    crops = quick.jit(TASK.crops)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(N))
    large, small = crops(BATCH["image"], keys)
    other_large, other_small = crops(BATCH["image"][::-1], keys[::-1])
    np.testing.assert_array_equal(large, other_large[::-1])
    np.testing.assert_array_equal(small, other_small[::-1])
    assert len(np.unique(np.asarray(small).reshape(N * 3, -1), axis=0)) == N * 3


def test_the_teacher_follows_the_student_and_its_centre_what_it_says():
    task = task_of(momentum=0.9, center_momentum=0.8)
    state = {
        "teacher": {"params": {"w": jnp.ones(2)}, "batch_stats": {"center": jnp.full(K, 2.0)}},
        "progress": jnp.zeros(()),
    }
    aux = tasks.Aux({}, {}, {"center": jnp.full(K, 7.0)})
    for progress, momentum in ((0.0, 0.9), (0.5, 0.95), (1.0, 1.0)):
        new = task.update(state, {"w": jnp.zeros(2)}, aux, jnp.float32(progress))
        np.testing.assert_allclose(new["teacher"]["params"]["w"], momentum, rtol=1e-6)
        np.testing.assert_allclose(new["teacher"]["batch_stats"]["center"], 0.8 * 2 + 0.2 * 7, rtol=1e-6)
        assert new["progress"] == progress


def test_the_teachers_temperature_rises():
    found = [float(TASK.teacher_temperature(jnp.float32(p))) for p in (0, 0.15, 0.3, 0.9)]
    np.testing.assert_allclose(found, [0.04, 0.055, 0.07, 0.07], rtol=1e-6)
    assert float(task_of(warmup=0.0).teacher_temperature(jnp.float32(0))) == pytest.approx(0.07)


def test_the_last_layer_stands_still_at_first_and_its_columns_have_length_1(variables):
    task = task_of(**CALM, freeze_last=0.1, first_teacher_temperature=0.07)
    rngs = step.rngs_for(3, 4, jnp.arange(N))

    @quick.jit
    def gradient(progress):
        state = task.init_state(variables["params"]) | {"progress": progress}
        return jax.grad(lambda p: task.loss(p, variables["batch_stats"], state, BATCH, rngs, {})[0])(
            variables["params"]
        )["projection"]

    early, late = gradient(jnp.float32(0.05)), gradient(jnp.float32(0.15))
    assert not early["last"]["kernel"].any() and late["last"]["kernel"].any()
    np.testing.assert_allclose(early["bottleneck"]["kernel"], late["bottleneck"]["kernel"], rtol=1e-4, atol=1e-5)
    one = np.asarray(variables["params"]["projection"]["last"]["kernel"])
    np.testing.assert_allclose((one * late["last"]["kernel"]).sum(axis=0), 0, atol=1e-6)  # a longer column is no other


def test_positions_keep_their_place_on_a_smaller_grid():
    ramp = np.add.outer(np.arange(3.0), 10 * np.arange(4.0)).reshape(12, 1)  # [3 4] of the whole, and the class token
    params = {"Transformer": {"posembed_input": {"pos_embedding": jnp.asarray(np.r_[[[99.0]], ramp])[None]}}}
    found = np.asarray(task_of()._on_grid(params, (3, 2))["Transformer"]["posembed_input"]["pos_embedding"])[0, :, 0]
    assert found[0] == 99 and found.shape == (7,)
    np.testing.assert_allclose(
        found[1:].reshape(3, 2), ramp.reshape(3, 2, 2).mean(axis=2), atol=1
    )  # a bicubic curve through the ramp


def test_the_evaluator_measures_the_spread_of_all_features():
    evaluator, x = TASK.evaluator(20), RNG.normal(size=(20, 5)).astype(np.float32) + 0.5
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for rows in (slice(0, 7), slice(7, 20)):
        evaluator.add({"index": np.arange(20)[rows], "loss": np.ones(20)[rows], "direction": unit[rows]})
    found = evaluator.scalars()
    assert found["feature_spread"] == pytest.approx(probes.spread(x), rel=1e-5) and found["loss"] == 1
    assert evaluator.warnings() == []


def test_collapse_is_said():
    even = math.log(K)
    assert TASK.warnings({"loss": even / 2, "feature_spread": 0.5}) == []
    assert "features of all images are alike" in TASK.warnings({"loss": even / 2, "feature_spread": 0.001})[0]
    assert "the same even answer to every image" in TASK.warnings({"loss": even, "feature_spread": 0.5})[0]
    evaluator = TASK.evaluator(3)
    evaluator.add({"index": np.arange(3), "loss": np.ones(3), "direction": np.full((3, 4), 0.5)})
    assert "their spread is 0" in evaluator.warnings()[0]


def test_the_teacher_is_the_only_average_that_evaluation_reads():
    given = {"task": {"name": "self_distillation"}, "optim": {"schedule_free": 0.9, "schedule": "constant", "b1": 0.0}}
    with pytest.raises(UserError, match="schedule_free=0.9: evaluation reads the teacher of self-distillation"):
        config.from_dict(given)


def test_small_crops_that_no_patches_fill_and_crops_by_augment_are_refused():
    with pytest.raises(UserError, match="is no multiple of model.patch_size"):
        task_of(local_size=(6, 4))
    settings = tasks.settings("self_distillation", **SETTINGS)
    for fields, expected in (
        ({"crop_area": (0.2, 1.0)}, "crops by itself"),
        ({"alternate_flip": True}, "mirrors each"),
    ):
        parts = tasks.Parts(TASK.parts.model, SHAPE, (), augment.Settings(**fields), VIEW)
        with pytest.raises(UserError, match=expected):
            tasks.create(settings, parts)


def stepped(task, batch, constants, mesh=None, **options):
    """The state after two steps of plain gradient descent, and the metrics of the second."""
    tx = optax.sgd(0.1)
    train_step = step.make_train_step(task, tx, lambda count, steps: 0.1, seed=5, total_steps=9, **options)
    state = step.init_state(task, tx, 0, ema=False)
    if mesh is None:
        run = quick.jit(train_step)
    else:
        everywhere = sharding.replicated(mesh)
        places = everywhere, sharding.batch_sharding(mesh), everywhere
        run = quick.jit(sharding.on_mesh(train_step, mesh), in_shardings=places)
    for _ in range(2):
        state, metrics = run(state, batch, constants)
    return jax.device_get((state, metrics))


@pytest.mark.slow
def test_devices_parts_caches_and_scans_give_the_same_step():
    task = task_of(**CALM)
    expected, metrics = stepped(task, BATCH, {})
    networks = expected.params, expected.task["teacher"]["params"]
    assert metrics["loss"] > 0 and not np.array_equal(
        *(tree["projection"]["bottleneck"]["kernel"] for tree in networks)
    )

    def close(found):
        assert trees.names(found) == trees.names(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, np.abs(b).max()))

    close(stepped(task, BATCH, {}, sharding.make_mesh(sharding.Settings(), jax.devices()[:4]))[0])
    close(stepped(task, BATCH, {}, accumulate=2)[0])
    close(stepped(task, {"index": jnp.arange(N)[::-1]}, {"examples": {"image": BATCH["image"][::-1]}})[0])
    scanned, _ = stepped(task_of({"scan": True}, **CALM), BATCH, {})
    close(scanned.replace(**{f: trees.unstack_layers(getattr(scanned, f)) for f in ("params", "task")}))


def get_config(arg: str = "") -> ConfigDict:
    c = tiny.get_config("vit")
    c.model = models.settings("vit", **BACKBONE | {"patch_size": (2,)})
    c.task = tasks.settings("self_distillation", **SETTINGS | CALM | {"local_size": (4,)})
    c.augment.flip = 0.5
    c.optim.ema_decay = 0.0
    c.optim.lr = 1e-3
    c.evaluate.probe = ("knn",)
    c.evaluate.metric = "knn_accuracy"
    c.train.steps = 20
    return c


def start(workdir: Path, *overrides: str) -> train.Result:
    return tiny.train_quietly(get_config(), workdir, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("dino") / "run"
    assert start(workdir).exit_code == 0
    return workdir


@pytest.mark.slow
def test_a_run_resumes_exactly(finished, tmp_path):
    tiny.assert_resumes(start, tmp_path, finished)


@pytest.mark.slow
def test_later_commands_read_the_teacher(finished, tmp_path):
    result = tiny.result(finished)
    assert result["monitor"] == "knn_accuracy" and result["test/knn_accuracy"] > 0.2  # of ten classes
    found = evaluate.evaluate_run(finished)
    assert found["test/loss"] == pytest.approx(result["test/loss"], rel=1e-5)
    assert found["test/feature_spread"] == pytest.approx(result["test/feature_spread"], rel=1e-5)
    saved = tiny.arrays(finished)
    name = "['Transformer']['encoder_norm']['scale']"
    teacher, student = (saved[f"{place}{name}"] for place in ("['task']['teacher']['params']", "['params']"))
    read = inference.load(finished).variables["params"]["Transformer"]["encoder_norm"]["scale"]
    np.testing.assert_array_equal(read, teacher)
    assert not np.array_equal(teacher, student)
    assert start(tmp_path, f"init.weights={finished}", "train.steps=1", "optim.lr=1e-30").finished
    again = tiny.arrays(tmp_path)
    for place in ("['task']['teacher']['params']", "['params']"):
        np.testing.assert_allclose(again[f"{place}{name}"], teacher, rtol=1e-6)

"""What docs/extend.md shows: each kind of plug-in is a file outside the package, named in a config and used by it."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import vit_jax
from tests import quick, tiny
from tests.conftest import REPOSITORY, rest_is_slow
from tests.plugins.config import PLUGINS
from vit_jax import augment, compare, config, data, losses, metrics, models, optim, sharding, tasks, trees
from vit_jax.command import UserError
from vit_jax.config.schema import schema_of
from vit_jax.data import sources
from vit_jax.optim.settings import READS
from vit_jax.setting import active_if
from vit_jax.train import set_up
from vit_jax.workdir import Workdir

FOLDER = Path(__file__).with_name("plugins")
CONFIG = f"{FOLDER}/config.py"
REGISTRIES = (
    *(models.FAMILIES, tasks.TASKS, metrics.METRICS, losses.LOSSES, optim.OPTIMIZERS, READS["name"]),
    augment.registry._REGISTERED,
)
SHORT = ("train.steps=2", "train.batch_size=8", "log.tensorboard=false", "log.every_steps=1")


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Takes out again, at the end, what is registered in between, and forgets the plug-ins."""
    before, openers, known = [dict(registry) for registry in REGISTRIES], list(sources._OPENERS), set(sys.modules)
    try:
        yield
    finally:
        for registry, content in zip(REGISTRIES, before, strict=True):
            registry.clear()
            registry.update(content)
        sources._OPENERS[:] = openers
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
                del sys.modules[name]


@pytest.fixture(autouse=True)
def no_leak():
    with unchanged():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of a NumPy file with images that tell their class by their brightness."""
    path, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 40), ("test", 12)):
        label = np.arange(n) % 3
        arrays[f"x_{split}"] = (80 * label[:, None, None, None] + rng.integers(0, 60, (n, 8, 8, 3))).astype(np.uint8)
        arrays[f"y_{split}"] = label
    np.savez(path / "shapes.npz", **arrays)
    return path


def train(workdir: Path, folder: Path, arg: str, *overrides: str) -> tuple[vit_jax.train.Result, str]:
    """The result, and what was printed."""
    output = io.StringIO()
    console = Console(file=output, width=200, highlight=False)
    given = [*SHORT, f"data.data_dir={folder}", *overrides]
    return vit_jax.train(f"{CONFIG}:{arg}", workdir, given, console), output.getvalue()


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> tuple[Path, str]:
    """A run with six of the plug-ins, under flags that read what they declare; and what it printed."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    flags = ("optim.b1=0.8", "optim.layer_decay=0.5", "optim.head_warmup_steps=1", "mesh.fsdp=2")
    with unchanged():
        result, text = train(workdir, folder, "labels", *flags)
    assert result.finished
    return workdir, text


def test_the_page_shows_these_very_files():
    page = (REPOSITORY / "docs" / "extend.md").read_text()
    shown = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name in (*PLUGINS, "config"):
        assert (FOLDER / f"{name}.py").read_text() in shown, f"docs/extend.md does not show {name}.py as it is"


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plug_in_is_short(name):
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.lstrip().startswith(("#", '"""'))]
    assert len(code) < 40 and sum(".register(" in line for line in code) <= 2


def test_a_run_is_trained_and_its_folder_is_enough_to_use_it(trained, folder):
    workdir, _ = trained
    assert "convmixer" not in models.FAMILIES and "kappa" not in metrics.METRICS
    found, result = vit_jax.evaluate(workdir), tiny.result(workdir)
    assert result["steps"] == found["step"] == 2 and found["images"] == 12
    assert {"loss", "accuracy", "kappa"} <= {key.removeprefix("test/") for key in found}
    for key in ("test/loss", "test/kappa"):
        assert found[key] == pytest.approx(result[key], abs=1e-6)
    predictions = vit_jax.load(workdir).predict(np.load(folder / "shapes.npz")["x_test"])
    assert np.mean(predictions.probabilities.argmax(axis=1) == np.arange(12) % 3) == pytest.approx(
        found["test/accuracy"]
    )
    assert Workdir(workdir).config().plugins == tuple(str(FOLDER / f"{name}.py") for name in PLUGINS)


def test_a_metric_ranks_checkpoints_and_is_shown(trained):
    workdir, text = trained
    result = tiny.result(workdir)
    assert result["monitor"] == "kappa" and {"val/kappa", "best_val/kappa", "test/kappa"} <= set(result)
    assert re.search(r"val loss \S+  acc .*  kappa -?\d", text) and re.search(r"test Cohen's kappa +-?\d", text)
    Workdir(workdir).config()
    assert {"best_val/kappa", "val/kappa", "test/kappa"} <= set(compare.shown(result)) <= set(compare.columns())
    assert compare.title("test/kappa") == "test kappa" in compare.important()
    assert compare.cell("test/kappa", [0.25]) == "0.2500"


def test_the_names_of_a_model_decide_layers_head_and_sharding(trained):
    workdir, _ = trained
    experiment = set_up(Workdir(workdir).config(), described=True)
    params, naming = experiment.abstract_state.params, models.naming_of(experiment.task.module)
    layer = dict(zip(trees.names(params), jax.tree.leaves(trees.layers(params, naming.layers)), strict=True))
    assert (layer["stem/kernel"], layer["block0_depthwise/kernel"], layer["head/kernel"]) == (0, 1, 2)
    places = sharding.tree_shardings(params, experiment.mesh, naming.rules)
    assert "fsdp" in places["stem"]["kernel"].spec and "fsdp" in places["head"]["kernel"].spec


def test_settings_that_an_optimizer_reads_may_be_set():
    plugins, flags = [str(FOLDER / "adopt.py")], ["optim.b1=0.8"]
    config.check_effect([config.from_dict({"plugins": plugins, "optim": {"name": "adopt"}}, flags)], flags)
    flags = ["optim.momentum=0.8"]
    with pytest.raises(
        UserError, match=r"momentum=0\.8 changes nothing without optim\.name=sgd or optim\.name=rmsprop"
    ):
        config.check_effect([config.from_dict({"plugins": plugins, "optim": {"name": "adopt"}}, flags)], flags)
    optim.register("silent")(lambda settings: [])
    for field in ("b1", "momentum", "rms_decay", "decay"):
        assert "optim.name=silent" in active_if(schema_of(config.Config())[f"optim.{field}"])
    config.check_effect([config.from_dict({"optim": {"name": "silent"}}, flags)], flags)


@pytest.mark.slow
def test_a_task_without_labels_resumes_bit_for_bit(folder, tmp_path, monkeypatch):
    whole, _ = train(tmp_path / "whole", folder, "rotation", "train.steps=4")
    with monkeypatch.context() as patch:
        tiny.interrupt_at(2, tiny.signal.SIGTERM, patch)
        assert train(tmp_path / "resumed", folder, "rotation", "train.steps=4")[0].exit_code == 143
    _, text = train(tmp_path / "resumed", folder, "rotation", "train.steps=4")
    assert "resumed at step 2" in text
    tiny.assert_same_run(tmp_path / "resumed", tmp_path / "whole")
    found = vit_jax.evaluate(tmp_path / "whole")
    assert (
        found["test/turns_right"] == pytest.approx(whole.metrics["test/turns_right"]) and "test/accuracy" not in found
    )
    assert vit_jax.load(tmp_path / "whole").features(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, 6)


@pytest.mark.parametrize("policy", rest_is_slow(["randaugment", "trivialaugment"]))
def test_an_operation_changes_no_draw_of_a_policy(policy):
    settings = augment.Settings(policy=policy, mean=(0.5,), std=(0.5,))
    images = jax.random.bits(jax.random.key(1), (4, 8, 8, 3), np.uint8)
    keys = jax.random.split(jax.random.key(0), 4)
    before = quick.jit(partial(augment.train_view, settings))(images, keys)
    config.from_dict({"plugins": [str(FOLDER / "fewer_bits.py")], "augment": {"extra": ["fewer_bits"]}})
    np.testing.assert_array_equal(quick.jit(partial(augment.train_view, settings))(images, keys), before)
    with_it = dataclasses.replace(settings, extra=("fewer_bits",))
    assert (np.asarray(quick.jit(partial(augment.train_view, with_it))(images, keys)) != before).any()


def test_a_name_that_is_taken_is_told():
    named = {
        "model": lambda name: models.register(name, type("Other", (models.CNN,), {"__module__": "elsewhere"})),
        "task": lambda name: tasks.register(name, type("Other", (tasks.classification.Classification,), {})),
        "metric": lambda name: metrics.register(name, metrics.Metric("x", "x")),
        "loss": lambda name: losses.register(name, losses.Loss(lambda logits, targets: logits.sum(axis=-1))),
        "optimizer": lambda name: optim.register(name)(lambda settings: []),
        "schedule": lambda name: optim.register_schedule(name)(lambda settings, at: at.step),
        "operation": lambda name: augment.register(name, lambda key, image: image, stage="colour"),
        "data set": lambda name: data.register(name, lambda name, folder: None),
    }
    names = {"model": "vit", "task": "classification", "metric": "accuracy", "loss": "softmax", "optimizer": "sgd"}
    augment.register("negative", np.negative, stage="colour")
    for kind, name in (names | {"schedule": "cosine", "operation": "negative", "data set": "digits"}).items():
        with pytest.raises(UserError, match=f"^the {kind} name '{name}' is taken; choose another$"):
            named[kind](name)
    for _ in range(2):  # as a notebook's cell that is run again
        named["loss"]("again")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.name=adop", r"optim\.name='adop' is unknown; choose from adamw, sgd, .*, adopt$"),
        ("task.loss=focus", r"task\.loss='focus' is unknown; choose from softmax, sigmoid, multi_hot, focal$"),
        ("evaluate.metric=kapa", r"evaluate\.metric='kapa' is unknown; choose from auto, accuracy, .*, kappa"),
    ],
)
def test_unknown_names_list_the_known_ones(override, expected):
    with pytest.raises(UserError, match=expected):
        config.load(CONFIG, [override])


def test_what_a_plug_in_lacks_is_told():
    class NoEvaluator(tasks.Task):
        loss = tasks.classification.Classification.loss
        outputs = tasks.classification.Classification.outputs

    class NoDefault(tasks.classification.Classification):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Settings(tasks.TaskSettings):
            angles: int

    with pytest.raises(UserError, match="^task 'blind': NoEvaluator has no method evaluator; see vit_jax.tasks.Task$"):
        tasks.register("blind", NoEvaluator)
    with pytest.raises(UserError, match="^task 'bare': its setting 'angles' has no default value; give it one$"):
        tasks.register("bare", NoDefault)
    with pytest.raises(UserError, match="^model 'dense': Dense lacks a field num_classes"):
        models.register("dense", models.registry.nn.Dense)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, r"plugins: the file \S+/mine\.py does not exist"),
        ("x = 1 / 0", r"plugins: \S+/mine\.py:1: ZeroDivisionError: division by zero$"),
        ("import nowhere.at_all", r"plugins: \S+/mine\.py:1: ModuleNotFoundError: No module named 'nowhere'"),
        ("def (", r"plugins: \S+/mine\.py:1: SyntaxError: "),
        (
            "from vit_jax import metrics\nmetrics.register('loss', metrics.Metric('mine', 'mine'))",
            r"plugins: \S+/mine\.py:2: the metric name 'loss' is taken",
        ),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_told(text, expected, tmp_path):
    if text:
        (tmp_path / "mine.py").write_text(text)
    for _ in range(2):
        with pytest.raises(UserError, match=expected):
            config.from_dict({}, [f"plugins={tmp_path}/mine.py"])
    with pytest.raises(UserError, match=r"there is no module 'nowhere\.at_all'; .*plugins=\./nowhere\.at_all\.py"):
        config.from_dict({"plugins": ["nowhere.at_all"]})


def test_where_a_plug_in_lies_may_change(tmp_path):
    moved = tmp_path / "kappa.py"
    moved.write_text((FOLDER / "kappa.py").read_text())
    here = config.from_dict({"plugins": ["tests/plugins/kappa.py"]})
    there = config.from_dict({"plugins": [str(FOLDER / "kappa.py")]})
    assert here.plugins == there.plugins == (str(FOLDER / "kappa.py"),)
    assert config.differences(here, config.Config()) == {}

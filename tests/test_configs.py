"""Every shipped configuration, with every argument: loads, fits its data set, and takes a step by shapes alone."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from tests.conftest import REPOSITORY
from vit_jax import cli, config, data, pretrained, sharding
from vit_jax.command import UserError
from vit_jax.data.sources import Dataset
from vit_jax.train import Inputs, set_up, start
from vit_jax.train.inputs import check_data
from vit_jax.workdir import default_workdir

FILES = sorted((REPOSITORY / "configs").glob("*.py"))

# Image shape, classes, and images to train and to test with, as their authors published them.
DATA_SETS = {
    "digits": ((8, 8, 1), 10, 1437, 360),
    "mnist": ((28, 28, 1), 10, 60000, 10000),
    "fashion_mnist": ((28, 28, 1), 10, 60000, 10000),
    "cifar10": ((32, 32, 3), 10, 50000, 10000),
    "cifar100": ((32, 32, 3), 100, 50000, 10000),
    "imagenette/160px-v2": ((0, 0, 3), 10, 9469, 3925),
    "imagenet21k": ((0, 0, 3), 21843, 14145922, 51200),
    "imagenet2012": ((0, 0, 3), 1000, 1281167, 50000),
    "camvid": ((360, 480, 3), 11, 367, 233),
}
MASKED = {"camvid"}  # whose examples have a mask instead of a label
# What published weights bring along; they are not here.
SOURCE = pretrained.Preprocessing((224, 224), "stretch", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
ELSEWHERE = ("runs/", "hf://", "./")  # commands in docstrings name what only their reader has


def arguments(path: Path) -> list[str]:
    """The arguments that a config file takes, as the error about another one lists them."""
    with pytest.raises(UserError) as refused:
        config.load(f"{path}:?")
    _, known, choices = str(refused.value).partition("choose from ")
    return choices.split(", ") if known else [""]


SPECS = [f"{path}:{arg}" if arg else str(path) for path in FILES for arg in arguments(path)]

FIRST = {next(spec for spec in SPECS if spec.startswith(str(path))) for path in FILES}


def name(spec: str) -> str:
    return spec.rpartition("/")[2]


def test_there_are_configs_with_arguments_and_without():
    assert {"digits.py", "fashion_mnist.py:tiny", "cifar10.py:cnn", "cifar100.py:vit"} <= set(map(name, SPECS))


class Unread:
    """The source of a data set that is not here."""

    def __init__(self, split: str):
        self.split = split

    def __len__(self) -> int:
        return 100_000

    def read(self, index: int):
        raise AssertionError("no image is read before training")

    def describe(self, index: int) -> str:
        return f"image {index} of {self.split}"


def opened(given: config.Config, patch: pytest.MonkeyPatch) -> data.Data:
    """The configuration's data set as far as metadata goes."""
    shape, k, train, test = DATA_SETS[given.data.name]
    classes = tuple(f"class {i}" for i in range(k))
    fields = ("image", "mask" if given.data.name in MASKED else "label")
    dataset = Dataset(given.data.name, classes, shape, {"train": train, "test": test}, Unread, fields=fields)
    patch.setattr(data.opening, "open_dataset", lambda name, data_dir: dataset)
    patch.setattr(data.opening, "choose_classes", lambda dataset, names: replace(dataset, class_names=names))
    return data.open_data(given.data, SOURCE.size)


def shallow(given: config.Config) -> config.Config:
    """With two blocks, or one in each stage: the others are like them, and take minutes to trace."""
    fewer = {"depth": lambda depth: min(depth, 2), "stage_sizes": lambda sizes: (1,) * len(sizes)}
    task = {**given.task, **({"decoder_depth": 1} if "decoder_depth" in given.task else {})}
    return replace(given, task=task).with_model(**{k: f(given.model[k]) for k, f in fewer.items() if k in given.model})


@pytest.mark.parametrize(
    "spec", [spec if spec in FIRST else pytest.param(spec, marks=pytest.mark.slow) for spec in SPECS], ids=name
)
def test_config(spec, monkeypatch):
    given = config.load(spec)
    assert config.from_dict(json.loads(config.to_json(given))) == given
    images = opened(given, monkeypatch)
    if given.init.weights:
        given = start.follow(given, images, SOURCE)
    check_data(given, images)
    one_device = shallow(replace(given, mesh=sharding.Settings()))
    built = set_up(Inputs(one_device, images), devices=jax.devices()[:1], described=True)
    state, metrics = jax.eval_shape(built.train_step, *built.arguments)
    shapes, expected = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x) for x in (state, built.abstract_state))
    assert shapes == expected
    assert {*built.task.train_metrics, "lr", "grad_norm"} <= metrics.keys() and metrics["loss"].shape == ()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_docstring_names_its_command(path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    commands = re.findall(r"python -m vit_jax\.main --config (\S+)", text)
    assert commands and all(command.partition(":")[0] == f"configs/{path.name}" for command in commands)
    for command in commands:
        if not any(place in command for place in ELSEWHERE):
            config.load(str(REPOSITORY / command))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_recipe_says_what_it_reaches(path):
    """A percentage, or that it was not yet run: in the text of the function that is a variant, or else of the file."""
    file = ast.parse(path.read_text())
    all_of = [ast.get_docstring(part) for part in (file, *file.body) if isinstance(part, ast.Module | ast.FunctionDef)]
    for arg, choice in (config.variants(path) or {"": None}).items():
        said = [cli._docstring(choice)] if cli._docstring(choice) else all_of
        assert any(re.search(r"\d %|[Nn]ot yet run", text or "") for text in said), (arg, said)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_config_reads_like_a_table(path):
    assert len(path.read_text().splitlines()) < 100


def test_deit3s_fine_tuning_starts_where_its_training_ends():
    first, second = (str(REPOSITORY / "configs" / f"deit.py:{arg}") for arg in ("deit3_b16", "deit3_b16_224"))
    trained, tuned = config.load(first), config.load(second)
    assert Path(tuned.init.weights) == default_workdir(first) and tuned.model == trained.model
    assert (trained.data.image_size, tuned.data.image_size) == ((192,), (224,))
    assert (trained.task["loss"], tuned.task["loss"]) == ("multi_hot", "softmax")


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012", "oxford_iiit_pet", "oxford_flowers102"])
def test_published_fine_tuning_has_steps_left_after_its_warmup(name):
    given = config.load(str(REPOSITORY / "configs" / f"finetune.py:vit_b16,{name}"))
    assert given.optim.warmup_steps == min(500, given.train.steps // 5)
    assert given.data.train == {"cifar10": "train[:98%]", "imagenet2012": "train[:99%]"}.get(name, "")


def test_photos_are_brought_to_the_size_that_published_weights_are_tuned_at():
    given = config.load(str(REPOSITORY / "configs" / "finetune.py:vit_b16,./photos"))
    weights = pretrained.Preprocessing((224, 224), "stretch", 1.0, "bilinear", (0.5,), (0.5,))
    assert given.augment.resize == (384,) and start.default_size(given, weights) == (384, 384)
    unsized = replace(given, augment=replace(given.augment, resize=()))
    assert start.default_size(unsized, weights) == (224, 224) and start.default_size(unsized, None) == (0, 0)


def test_unknown_weights_list_the_published_ones():
    with pytest.raises(UserError, match=r"'vit_b99' are neither here nor one of vit_ti16, .*mixer_b16"):
        config.load(str(REPOSITORY / "configs" / "finetune.py:vit_b99,cifar10"))
    with pytest.raises(UserError, match="expected WEIGHTS,DATASET"):
        config.load(str(REPOSITORY / "configs" / "finetune.py:vit_b16"))

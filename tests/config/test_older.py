"""Configurations of before: saved ones, flags and files with old names are read as those of today."""

import copy
import json

import pytest

from tests.conftest import REPOSITORY
from tests.test_configs import SPECS, name
from vit_jax import config, models
from vit_jax.command import UserError
from vit_jax.config import older
from vit_jax.config.schema import value_of

FIXTURES = REPOSITORY / "tests" / "config" / "fixtures"
SAVED = {  # by version 16d3a41, before there were tasks
    "digits.json": "configs/digits.py",
    "imagenet21k_b16.json": "configs/imagenet21k.py:b16",
    "deit3_s16.json": "configs/deit.py:deit3_s16",
}
LATER = {  # fields by their group
    "": ("plugins",),
    "augment": ("extra", "alternate_flip", "jitter_probability", "solarize", "cutout_from"),
    "checkpoint": ("wait",),
    "data": ("balance",),
    "evaluate": ("probe", "probe_every", "tta", "knn_temperature", "knn_neighbours"),
    "init": ("mimetic", "whitening", "impulse"),
    "log": ("wandb", "mlflow", "report"),
    "optim": ("cooldown", "final_weight_decay", "muon", "muon_per_head", "cautious", "lr_factors", "schedule_free"),
    "train": ("spike_sigmas", "flops", "image_sizes", "size_order"),
}
NEW = [f"{group}.{name}".lstrip(".") for group, names in LATER.items() for name in names]
NEWER = ("budget.py", "few_labels.py")  # they have what no old form has
FORMER = [spec for spec in SPECS if not any(file in spec for file in NEWER)]


@pytest.fixture(autouse=True)
def untold():
    older._tell.cache_clear()


@pytest.mark.parametrize("file", SAVED)
def test_a_saved_configuration_is_that_of_its_recipe(file):
    saved, now = config.load(str(FIXTURES / file)), config.load(str(REPOSITORY / SAVED[file]))
    assert saved == now and config.differences(saved, now) == {}
    assert list(config.to_dict(saved)) == list(config.to_dict(now))


def old_form(given: config.Config) -> dict:
    """As it was saved before there were tasks."""
    tree = config.to_dict(given)
    task = tree.pop("task")
    tree["perturb"] = tree.pop("corruption")
    assert not tree["model"].pop("patch_dropout", 0)
    names = {new: old for old, new in models.RENAMED.items()}
    tree["model"] = {names.get(key, key): value for key, value in tree["model"].items()}
    tree["train"] |= {key: task[key] for key in ("loss", "label_smoothing")}
    tree["evaluate"]["metric"] = "accuracy"
    for key in NEW:
        group, _, field = key.rpartition(".")
        assert (tree[group] if group else tree).pop(field) == value_of(config.Config(), key)
    return json.loads(json.dumps(tree))


@pytest.mark.parametrize("spec", FORMER, ids=name)
def test_every_recipe_has_the_numbers_that_it_had_when_it_was_saved(spec):
    given = config.load(spec)
    if given.task["name"] == "classification":  # there was no other task
        assert config.from_dict(old_form(given)) == given


def test_the_old_form_is_what_was_written():
    for file, spec in SAVED.items():
        assert old_form(config.load(str(REPOSITORY / spec))) == json.loads((FIXTURES / file).read_text())


def test_a_flag_with_an_old_name_works_and_is_told_once(caplog):
    for _ in range(2):
        given = config.from_dict({}, ["train.loss=sigmoid", "train.label_smoothing=0.1", "task.label_smoothing=0.2"])
    assert given.task == {
        "name": "classification",
        "loss": "sigmoid",
        "label_smoothing": 0.2,
        "balance": 0.0,
        "class_weights": (),
    }
    assert [record.message for record in caplog.records] == [
        "train.loss is called task.loss now; the old name still works",
        "train.label_smoothing is called task.label_smoothing now; the old name still works",
    ]
    assert config.rename_flags(["train.loss=softmax,sigmoid", "seed=1,2"]) == ["task.loss=softmax,sigmoid", "seed=1,2"]


def test_checks_of_flags_know_old_names():
    with pytest.raises(UserError, match=r"^task\.loss changes nothing in the evaluation of a finished run"):
        config.check_read(["train.loss=sigmoid"], "evaluate")
    config.check_read(["train.loss=sigmoid"], "predict")
    config.check_effect([config.Config()], ["train.loss=sigmoid"])


def test_a_mistake_in_an_old_field_names_the_new_one():
    with pytest.raises(UserError, match=r"task\.loss='l2' is unknown; choose from softmax, "):
        config.from_dict({}, ["train.loss=l2"])
    with pytest.raises(UserError, match=r"task\.label_smoothing='x' is a str, expected a float"):
        config.from_dict({"train": {"label_smoothing": "x"}})


def test_a_config_file_may_read_and_set_old_names(caplog):
    c = config.default()
    c.train.loss = "sigmoid"
    c.train.update(label_smoothing=0.1)
    assert (c.train.loss, c.task.loss, c.task.label_smoothing) == ("sigmoid", "sigmoid", 0.1)
    assert config.from_dict(c).task["loss"] == "sigmoid"
    assert "train.loss is called task.loss now" in caplog.text
    c.task.loss = "softmax"  # the last word counts
    assert config.from_dict(c).task["loss"] == "softmax"
    c.train = {"loss": "multi_hot", "label_smoothing": 0.0, "epochs": 3}
    given = config.from_dict(c)
    assert (given.task["loss"], given.train.epochs) == ("multi_hot", 3.0)


def test_the_old_default_metric_is_auto_and_loss_stays():
    saved = {"evaluate": {"metric": "accuracy"}, "train": {"loss": "softmax"}}
    assert config.from_dict(saved).evaluate.metric == "auto"
    saved["evaluate"]["metric"] = "loss"
    assert config.from_dict(saved).evaluate.metric == "loss"
    assert config.from_dict({}, ["evaluate.metric=accuracy"]).evaluate.metric == "accuracy"
    explicit = config.from_dict({}, ["evaluate.metric=accuracy"])  # a run of before, started with that flag, goes on
    assert config.differences(config.Config(), explicit) == {}
    assert config.differences(config.Config(), config.from_dict({}, ["evaluate.metric=loss"]))


def test_names_in_a_model_and_of_a_group(monkeypatch, caplog):
    """As if `num_heads` had once been `num_attention_heads`, and `corruption` `disturb`."""
    monkeypatch.setitem(older.RENAMED, "model.num_attention_heads", "model.num_heads")
    monkeypatch.setitem(older.RENAMED, "disturb", "corruption")
    tree = {"model": models.settings("vit/Ti16"), "disturb": {"kind": "blur", "severity": 2}}
    tree["model"]["num_attention_heads"] = tree["model"].pop("num_heads") + 3
    given = config.from_dict(tree, ["disturb.severity=3"])
    assert given.model["num_heads"] == 6 and (given.corruption.kind, given.corruption.severity) == ("blur", 3)
    assert "disturb.severity is called corruption.severity now" in caplog.text
    assert config.from_dict({"disturb": {}}) == config.Config()
    with pytest.raises(UserError, match=r"no field 'model\.num_attention_heads'"):  # a CNN has no heads
        config.from_dict({"model": models.settings("cnn/conv3")}, ["model.num_attention_heads=3"])
    assert config.rename_flags(["model.num_attention_heads=3", "disturb.kind=blur"]) == [
        "model.num_attention_heads=3",
        "corruption.kind=blur",
    ]
    c = config.default()
    c.model.width = 5 * c.model.num_attention_heads
    c.model.num_attention_heads = 5
    c.disturb.kind = "blur"
    c.disturb = {"kind": "noise", "severity": 1}
    given = config.from_dict(c)
    assert (given.model["width"], given.model["num_heads"], given.corruption.kind) == (15, 5, "noise")
    c.model = tree["model"]
    assert config.from_dict(c).model["num_heads"] == 6


def test_a_field_that_a_model_has_keeps_its_name(monkeypatch):
    monkeypatch.setitem(older.RENAMED, "model.width", "model.depth")
    assert config.from_dict({}, ["model.width=5"]).model["width"] == 5
    assert config.rename_flags(["model.width=5"]) == ["model.width=5"]


def test_a_copy_of_a_recipe_is_one_too():
    c = config.default()
    for copied in (copy.deepcopy(c), c.copy_and_resolve_references()):
        copied.train.epochs = 3.0
        with pytest.raises(AttributeError, match="epoch"):
            copied.train.epoch = 3.0
        assert config.from_dict(copied).train.epochs == 3.0
    assert c.train.epochs == 10.0

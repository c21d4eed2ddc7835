"""Flags that change nothing are refused, unless what would read them was turned off by hand."""

from typing import Any

import pytest

from vit_jax import config, models, tasks
from vit_jax.command import UserError
from vit_jax.config.effect import READERS, unread
from vit_jax.config.schema import schema
from vit_jax.setting import active_if


def check(flags: list[str], **groups: dict[str, Any]) -> None:
    """Of a configuration that sets these fields, under these flags."""
    config.check_effect([config.from_dict(groups, flags)], flags)


@pytest.mark.parametrize(
    ("flag", "without"),
    [
        ("init.head=new", "init.weights; set that too, or leave init.head at 'auto'"),
        ("data.choice=3", "data.limit or data.images_per_class"),
        ("data.crop_on=host", "augment.crop_area"),
        (
            "augment.rand_magnitude=5",
            "augment.policy=randaugment or augment.policy=randaugment_tf; set that too, or leave",
        ),
        ("augment.erasing_fill=noise", "augment.erasing;"),
        ("augment.fill=reflect", "augment.crop_padding or augment.rotation or "),
        ("augment.mix_switch=0.3", "augment.mixup;"),
        ("optim.nesterov=true", "optim.name=sgd or optim.name=muon;"),
        ("optim.factor=0.5", "optim.schedule=step or optim.schedule=exponential"),
        ("distill.kind=soft", "distill.teacher;"),
        ("optim.decay=.*", "optim.weight_decay or optim.name=lamb;"),
        ("model.stochastic_depth_schedule=uniform", "model.stochastic_depth; set that too"),
    ],
)
def test_a_flag_that_changes_nothing_is_refused(flag, without):
    key, _, _ = flag.partition("=")
    with pytest.raises(UserError, match=rf"^{key}=\S+ changes nothing without {without}"):
        check([flag])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["train.epochs=3", "train.steps=100"],
            r"train\.epochs changes nothing beside train\.steps=100; leave it out, or set train\.steps=0",
        ),
        (["train.epochs=3", "train.seconds=100"], r"train\.epochs changes nothing beside train\.seconds=100"),
        (["train.epochs=3", "train.flops=1e9"], r"train\.epochs changes nothing beside train\.flops=1e\+09"),
        (
            ["corruption.kind=blur", "corruption.severity=3"],
            r"changes nothing in training, .*compare --evaluate corruption",
        ),
    ],
)
def test_what_another_field_or_command_decides_is_refused(flags, expected):
    with pytest.raises(UserError, match=expected):
        check(flags)


def test_epochs_instead_of_a_file_s_steps():
    check(["train.epochs=3", "train.steps=0"], train={"steps": 100})
    with pytest.raises(UserError, match=r"beside train\.steps=100"):
        check(["train.epochs=3"], train={"steps": 100})


@pytest.mark.parametrize("flag", ["data.image_size=20", "augment.mean=(0.5,)", "optim.lr=1", "evaluate.split=train"])
def test_predicting_reads_few_fields_of_a_run(flag):
    with pytest.raises(UserError, match=f"{flag.partition('=')[0]} changes nothing in the predictions of this model"):
        config.check_read([flag], "predict")
    if flag.startswith(("data", "augment")):
        config.check_read([flag], "weights")
    config.check_read(["evaluate.use=best", "model.dtype=bfloat16", "data.draft=true", "no.field=1"], "predict")


def test_the_texture_report_reads_the_images_and_the_model():
    for flags in (["data.classes=a,b", "model.dtype=bfloat16"], ["evaluate.split=train", "data.limit=5"]):
        config.check_read(flags, "texture")
    for flag in ("data.limit=5", "evaluate.batch_size=3", "mesh.fsdp=2"):
        with pytest.raises(UserError, match="changes nothing in this report"):
            config.check_read([flag], "texture")


@pytest.mark.parametrize(
    "flags",
    [
        ["augment.rand_magnitude=5", "augment.policy=randaugment"],
        ["augment.mix_switch=0.3", "augment.mixup=0.8", "augment.cutmix=1"],
        ["augment.fill=reflect", "augment.shear=5"],
        ["optim.final_lr=1e-5", "optim.schedule=linear"],
        ["optim.b1=0.8"],
        ["model.stochastic_depth_schedule=uniform", "model.stochastic_depth=0.1"],
        ["augment.interpolation=bicubic", "init.weights=runs/x"],
        ["distill.temperature=2", "distill.kind=soft", "distill.teacher=runs/x"],
    ],
)
def test_what_is_read_is_accepted(flags):
    check(flags)


def test_each_of_two_needs_is_needed():
    both = ["augment.mixup=0.8", "distill.teacher=runs/x"]
    with pytest.raises(UserError, match=r"mix_switch=0\.3 changes nothing without augment\.cutmix;"):
        check(["augment.mix_switch=0.3", *both])
    with pytest.raises(UserError, match=r"temperature=2\.0 changes nothing without distill\.kind=soft;"):
        check(["distill.temperature=2", *both])


def test_what_is_turned_off_by_hand_leaves_its_fields_alone():
    check(["augment.policy=none", "augment.rand_magnitude=5"])
    check(["distill.kind=soft", "distill.weight=0.9", "distill.teacher="])
    with pytest.raises(UserError, match=r"rand_magnitude=5\.0 changes nothing without augment\.policy=randaugment"):
        check(["augment.policy=trivialaugment", "augment.rand_magnitude=5"])  # on, and reads another
    with pytest.raises(UserError, match=r"optim\.nesterov=True changes nothing without optim\.momentum;"):
        check(["optim.nesterov=true"], optim={"name": "sgd", "momentum": 0.0})


def test_some_fields_are_read_unless_another_is_off():
    check(["evaluate.metric=loss"])
    with pytest.raises(UserError, match=r"metric='loss' changes nothing without data\.validation!=none; set that too"):
        check(["evaluate.metric=loss"], data={"validation": "none"})


def test_what_a_file_sets_is_left_alone():
    """A recipe's variant, or its run, without what the recipe tuned."""
    recipe = {"policy": "randaugment", "rand_magnitude": 5.0}
    check(["augment.policy=none", "train.epochs=3"], augment=recipe)
    check(["train.epochs=3"], augment=recipe | {"policy": "none"})
    with pytest.raises(UserError, match=r"rand_layers=3 changes nothing"):
        check(["augment.rand_layers=3"], augment=recipe | {"policy": "none"})


def test_of_several_configurations_one_that_reads_a_flag_is_enough():
    flags = ["optim.nesterov=true", "train.epochs=3"]
    adam, sgd, steps = (
        config.from_dict(groups, flags) for groups in ({}, {"optim": {"name": "sgd"}}, {"train": {"steps": 100}})
    )
    config.check_effect([adam, sgd, steps], flags)
    with pytest.raises(
        UserError, match=r"optim\.nesterov=True changes nothing without optim\.name=sgd or optim\.name=muon;"
    ):
        config.check_effect([adam, adam], flags)
    with pytest.raises(UserError, match=r"train\.epochs changes nothing beside train\.steps=100"):
        config.check_effect([steps, steps], flags)


def test_declarations_name_fields_and_readers_and_the_defaults_pass():
    for family in models.FAMILIES:
        for task in tasks.names():
            known = schema({"model": family, "task": task})
            needs = " ".join(map(active_if, known.values()))
            assert {need.partition("=")[0].rstrip("!") for need in needs.split()} - {"and", "or"} <= known.keys()
            readers = " ".join(f.metadata.get("read_by", "") for f in known.values())
            assert set(readers.split()) <= {*READERS, "train_split"}
    assert not any(list(unread([config.Config()], key)) for key in schema({"model": "vit", "task": "classification"}))

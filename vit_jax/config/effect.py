"""Fields that are read only together with others: a flag that changes nothing is a mistake, told before the run."""

from collections.abc import Iterator, Sequence
from typing import Any

from vit_jax.command import UserError
from vit_jax.config.schema import Config

# Fields, and what at least one of must be so for them to be read: a field is on, or has the value, or another one.
NEEDS = (
    ("init.head init.interpolation", "init.weights"),
    ("data.choice", "data.limit data.images_per_class"),
    ("data.crop_on augment.crop_aspect", "augment.crop_area"),
    ("augment.interpolation", "augment.resize augment.crop_area init.weights"),  # weights tell a size
    (
        "augment.fill",
        "augment.crop_padding augment.rotation augment.zoom augment.translation augment.shear",
    ),
    (
        "augment.rand_layers augment.rand_magnitude augment.rand_magnitude_std augment.rand_probability",
        "augment.policy=randaugment augment.policy=randaugment_tf",
    ),
    ("augment.blur_sigma", "augment.blur augment.three_augment"),
    ("augment.erasing_area augment.erasing_aspect augment.erasing_fill", "augment.erasing"),
    ("augment.mix_probability", "augment.mixup augment.cutmix"),
    ("augment.mix_switch", "augment.mixup"),
    ("augment.mix_switch", "augment.cutmix"),
    ("optim.warmup_start_lr", "optim.warmup_steps optim.warmup_epochs"),
    ("optim.final_lr", "optim.schedule=cosine optim.schedule=linear"),
    ("optim.step_epochs", "optim.schedule=step"),
    ("optim.factor", "optim.schedule=step optim.schedule=exponential"),
    ("optim.timescale_steps", "optim.schedule=rsqrt"),
    ("optim.decay", "optim.weight_decay optim.name=lamb"),
    ("optim.b1 optim.b2", "optim.name=adamw optim.name=lion optim.name=lamb"),
    ("optim.epsilon", "optim.name=adamw optim.name=lamb optim.name=rmsprop"),
    ("optim.momentum", "optim.name=sgd optim.name=rmsprop"),
    ("optim.nesterov", "optim.name=sgd"),
    ("optim.nesterov", "optim.momentum"),
    ("optim.rms_decay", "optim.name=rmsprop"),
    ("distill.kind distill.weight distill.temperature", "distill.teacher"),
    ("distill.temperature", "distill.kind=soft"),
    ("evaluate.metric checkpoint.keep_best", "data.validation!=none"),
)

# What evaluating a finished run reads: of it are the sizes, the normalisation and the interpolation of its images.
EVALUATED_GROUPS = ("mesh", "model", "perturb")
EVALUATED = (
    *("evaluate.split", "evaluate.batch_size", "evaluate.use", "train.batch_size", "train.deterministic"),
    *("data.name", "data.data_dir", "data.train", "data.validation", "data.test", "data.classes"),
    *("data.cache", "data.threads", "data.max_bad_fraction", "optim.ema_decay"),
)
NOT_TEXTURED = ("evaluate.batch_size", "train.batch_size", "train.deterministic", "data.cache")  # by the report
PREDICTED = ("evaluate.use", "optim.ema_decay", "train.loss", "data.threads", "data.draft")
VIEWED = (
    *("data.image_size", "data.resize", "data.crop_fraction", "data.interpolation", "data.channels"),
    *("augment.mean", "augment.std"),
)
CHOICE = ("data.limit", "data.images_per_class", "data.choice")  # of training images


def check_effect(configs: Sequence[Config], overrides: Sequence[str]) -> None:
    """Raises `UserError` for one of the `field=value` overrides that changes nothing in any of the configurations.

    An override that turns off what would read the value excuses it: a policy turned off by hand may keep its strength.
    What a file sets is left alone, too: its variants build on each other, and turn off what others tuned.
    """
    flags = {override.partition("=")[0] for override in overrides}
    for longer in ("steps", "seconds") if "train.epochs" in flags else ():
        if all(lengths := [getattr(config.train, longer) for config in configs]):
            raise UserError(
                f"train.epochs changes nothing beside train.{longer}={lengths[0]:g}; "
                f"leave it out, or set train.{longer}=0"
            )
    for key in flags:
        if key.startswith("perturb."):
            raise UserError(
                f"{key} changes nothing in training, nor in its test; perturb with `vit_jax.evaluate --config.{key}`, "
                f"or `vit_jax.compare --evaluate {key}=...`"
            )
    for key, value, needed in unread(configs):
        if key in flags and not any(_is_off(config, need) for config in configs for need in flags & _keys(needed)):
            raise UserError(
                f"{key}={value!r} changes nothing without {' or '.join(needed)}; "
                f"set that too, or leave {key} at {_field(Config(), key)!r}"
            )


def check_evaluated(config: Config, overrides: Sequence[str]) -> None:
    """Raises `UserError` for one of the `field=value` overrides that the evaluation of a finished run does not read."""
    for key in (override.partition("=")[0] for override in overrides):
        read = key in EVALUATED or key.partition(".")[0] in EVALUATED_GROUPS
        if not read and not (key in CHOICE and config.evaluate.split == "train"):
            raise UserError(f"{key} changes nothing in the evaluation of a finished run; train with it or leave it out")


def check_textured(overrides: Sequence[str]) -> None:
    """Raises `UserError` for an override of a field that `vit_jax.report.texture` does not read."""
    for key in (override.partition("=")[0] for override in overrides):
        read = (key in EVALUATED and key not in NOT_TEXTURED) or key.partition(".")[0] == "model"
        if not read and not (key in CHOICE and "evaluate.split=train" in overrides):
            raise UserError(f"{key} changes nothing in this report; leave it out")


def check_predicted(overrides: Sequence[str], *, of_run: bool) -> None:
    """Raises `UserError` for an override of a field that predicting does not read; of weights it decides the input.

    Of one that is no field, opening the model tells.
    """
    for key in (override.partition("=")[0] for override in overrides):
        group, _, name = key.partition(".")
        is_field = hasattr(getattr(Config(), group, None), name)
        if is_field and not (key in PREDICTED or (not of_run and key in VIEWED)):
            raise UserError(f"{key} changes nothing in the predictions of this model; leave it out")


def unread(configs: Sequence[Config]) -> Iterator[tuple[str, Any, list[str]]]:
    """The fields that differ from their defaults and that none reads: field, value, what would make it read."""
    for fields, needs in NEEDS:
        needed = needs.split()
        for key in () if any(_holds(config, need) for config in configs for need in needed) else fields.split():
            for value in [value for config in configs if (value := _field(config, key)) != _field(Config(), key)][:1]:
                yield key, value, needed


def _keys(needed: Sequence[str]) -> set[str]:
    return {need.partition("=")[0].rstrip("!") for need in needed}


def _is_off(config: Config, key: str) -> bool:
    return _field(config, key) in ("none", "", 0, 0.0, False, ())


def _holds(config: Config, need: str) -> bool:
    key, _, wanted = need.partition("=")
    value = _field(config, key.rstrip("!"))
    return (value == wanted) != key.endswith("!") if wanted else bool(value)


def _field(config: Config, key: str) -> Any:
    group, _, name = key.partition(".")
    return getattr(getattr(config, group), name)

"""The schema: what kinds of fields it may have, its defaults, its ranges, and that code reads every field."""

import ast
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

import vit_jax
from vit_jax import config, models, tasks
from vit_jax.command import UserError
from vit_jax.config.schema import schema, value_of
from vit_jax.config.values import check

PACKAGE = Path(vit_jax.__file__).parent
OWNERS = {
    "corruption": "augment",
    "augment": "augment",
    "data": "data",
    "optim": "optim",
    "mesh": "sharding.py",
    "model": "models",
    "task": "tasks",
}
CHECKS = ("schema.py", "effect.py")  # of the config: what only these look at is read by nothing
FIELDS = {
    key: f.type
    for family in models.FAMILIES
    for task in tasks.TASKS
    for key, f in schema({"model": family, "task": task}).items()
}


def plain(annotation: Any) -> bool:
    """Whether it is a bool, int, float, str, choice of strings, or tuple of one of these."""
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        return all(plain(part) for part in get_args(annotation) if part is not Ellipsis)
    return annotation in (bool, int, float, str)


def test_plain_refuses_what_cannot_be_written_on_a_command_line():
    assert plain(tuple[tuple[int, ...], ...]) and plain(Literal["a"])
    assert not any(map(plain, (int | None, int | str, dict, Any, tuple[int | None, ...], Literal[1])))


@pytest.mark.parametrize("key", FIELDS)
def test_no_field_is_none_a_union_or_a_callable(key):
    assert plain(FIELDS[key]), FIELDS[key]


@pytest.mark.parametrize("name", models.names())
def test_every_default_has_its_type(name):
    given = config.from_dict({"model": models.settings(name)})
    for key, field in schema({"model": name, "task": "classification"}).items():
        value = value_of(given, key)
        assert check(value, field, key) == value and type(check(value, field, key)) is type(value)


def test_every_group_is_frozen():
    for field in dataclasses.fields(config.Config):
        if dataclasses.is_dataclass(field.type):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(getattr(config.Config(), field.name), dataclasses.fields(field.type)[0].name, 5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=-1", r"seed=-1 is not in \[0, 2\*\*32\)"),
        ("seed=4294967296", r"seed=4294967296 is not in"),
        ("train.batch_size=0", "train.batch_size=0 is not positive"),
        ("train.accumulate=3", "accumulate=3 does not divide train.batch_size=128"),
        ("train.max_bad_steps=0", "max_bad_steps=0 is not positive"),
        ("train.epochs=0", "train.epochs=0.0, train.steps=0, train.seconds=0.0: one of them must be positive"),
        ("train.steps=-1", "one of them must be positive"),
        ("task.label_smoothing=1", r"task.label_smoothing=1.0 is not in \[0, 1\)"),
        ("evaluate.every_steps=-1", "evaluate.every_steps=-1 is negative"),
        ("evaluate.batch_size=-1", "evaluate.batch_size=-1 is negative"),
        ("checkpoint.every_steps=-5", "checkpoint.every_steps=-5 is negative"),
        ("checkpoint.keep_best=-1", "checkpoint.keep_best=-1 is negative"),
        ("checkpoint.keep_last=0", "checkpoint.keep_last and log.every_steps must be positive"),
        ("log.every_steps=0", "checkpoint.keep_last and log.every_steps must be positive"),
        ("log.every_seconds=-1", "log.every_seconds=-1.0 is negative; 0 means off"),
        ("data.threads=0", "data.threads=0"),
        (
            "data.repeats=128",
            "data.repeats=128 fills each batch of train.batch_size=128 with one image; repeat it less",
        ),
        ("augment.flip=1.5", "augment.flip=1.5"),
        ("optim.decay=(", "optim.decay='\\(' is not a regular expression"),
        ("mesh.fsdp=0", "mesh.fsdp=0: sizes are positive"),
    ],
)
def test_values_out_of_range(override, expected):
    with pytest.raises(UserError, match=expected):
        config.from_dict(config.default(), [override])


@pytest.mark.parametrize("field", ["mimetic", "whitening"])
def test_published_weights_leave_nothing_to_initialise(field):
    with pytest.raises(UserError, match=f"init.{field}=True has no effect beside init.weights"):
        config.from_dict({}, ["init.weights=a.npz", f"init.{field}=True"])


def test_smoothed_labels_are_not_multi_hot():
    with pytest.raises(
        UserError, match=r"label_smoothing=0\.1 would make every class a target of task\.loss='multi_hot'"
    ):
        config.from_dict({}, ["task.loss=multi_hot", "task.label_smoothing=0.1"])
    assert config.from_dict({}, ["task.loss=multi_hot"]).task["loss"] == "multi_hot"


def test_a_batch_may_hold_few_images_but_not_one_of_many():
    assert config.from_dict({}, ["data.repeats=127"]).data.repeats == 127
    assert config.from_dict({}, ["train.batch_size=1"]).data.repeats == 1


def test_steps_stand_in_for_epochs():
    assert config.from_dict({}, ["train.steps=5", "train.epochs=0"]).train.steps == 5


class Reads(ast.NodeVisitor):
    """`owner.field` for each attribute that is read outside a check: of `x.y.z`, `y.z`."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not node.name.lstrip("_").startswith("check"):
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        self.found.add(f"{owner}.{node.attr}")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:  # config.task["loss"]
        if isinstance(node.value, ast.Attribute) and isinstance(node.slice, ast.Constant):
            self.found.add(f"{node.value.attr}.{node.slice.value}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:  # getattr(model, "scan", False)
        if getattr(node.func, "id", "") == "getattr" and isinstance(node.args[1], ast.Constant):
            self.found.add(f"{getattr(node.args[0], 'id', '')}.{node.args[1].value}")
        self.generic_visit(node)


@functools.cache
def reads(path: Path) -> set[str]:
    visitor = Reads()
    visitor.visit(ast.parse(path.read_text()))
    return visitor.found


def places(key: str) -> Iterator[str]:
    """How code may read a field: `train.epochs` anywhere; in the part that owns it as a field of its settings."""
    group, _, field = key.rpartition(".")
    everywhere = set().union(*(reads(path) for path in PACKAGE.rglob("*.py") if path.name not in CHECKS))
    yield from (read for read in everywhere if read == key or (not group and read.endswith(f".{field}")))
    if group in OWNERS:
        owner = PACKAGE / OWNERS[group]
        for path in owner.rglob("*.py") if owner.is_dir() else [owner]:
            yield from reads(path) & {f"self.{field}", f"settings.{field}"}


@pytest.fixture(scope="module")
def read_fields() -> set[str]:
    return {key for key in (*FIELDS, "train.no_such_field", "model.no_such_field") if any(places(key))}


def test_every_field_is_read_by_code(read_fields):
    elsewhere = {"model.name", "task.name", "plugins"}  # `model["name"]`: a dict; the parser imports plug-ins
    assert set(FIELDS) - read_fields - elsewhere == set()
    assert not {key for key in read_fields if "no_such_field" in key}

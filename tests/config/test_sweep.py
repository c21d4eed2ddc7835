"""Sweeps on the command line."""

import pytest

from vit_jax.command import UserError
from vit_jax.config import sweep


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.patch_size=4,7", ("model.patch_size", ["4", "7"])),
        ("a.b=(1,2),(3,4)", ("a.b", ["(1,2)", "(3,4)"])),
        ("data.train=train[:1%],train[:10%]", ("data.train", ["train[:1%]", "train[:10%]"])),
        ("optim.lr=1e-3", ("optim.lr", ["1e-3"])),
        ("distill.teacher=,runs/x", ("distill.teacher", ["", "runs/x"])),
    ],
)
def test_values_are_divided_at_commas_outside_brackets(text, expected):
    assert sweep.split_values(text) == expected


def test_combinations_are_all_of_them_the_last_field_changing_fastest():
    assert list(sweep.combinations(["a.b=1,2", "c=x,y"])) == [
        ["a.b=1", "c=x"],
        ["a.b=1", "c=y"],
        ["a.b=2", "c=x"],
        ["a.b=2", "c=y"],
    ]
    assert list(sweep.combinations([])) == [[]]


@pytest.mark.parametrize("text", ["a.b", "a.b=", "a.b=,", "=1,2"])
def test_a_sweep_without_field_or_values_explains(text):
    with pytest.raises(UserError, match="expected FIELD=VALUE,VALUE"):
        list(sweep.combinations([text]))


def test_tables_name_the_field_and_the_whole_value():
    assert [sweep.short(text) for text in ("optim.lr=0.1", "seed=1", "distill.teacher=")] == [
        "lr=0.1",
        "seed=1",
        "teacher=",
    ]

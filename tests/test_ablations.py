"""One table of what each change does, each against the row without any, by seed."""

import json

import pytest

from benchmarks import tables
from tests import tiny
from vit_jax import compare
from vit_jax.command import UserError

CHANGES = ("optim.lr=0.01 optim.schedule=linear", "optim.name=sgd")


def test_each_change_is_a_row_behind_the_one_without(tmp_path):
    planned = compare.plan([tiny.spec("cnn")], ["train.steps=3,5"], 2, ["optim.clip_norm=1"], tmp_path, CHANGES)
    assert [variant.name for variant in planned] == [
        "tiny-cnn steps=3",
        "tiny-cnn steps=5",
        "tiny-cnn lr=0.01 schedule=linear steps=3",
        "tiny-cnn lr=0.01 schedule=linear steps=5",
        "tiny-cnn name=sgd steps=3",
        "tiny-cnn name=sgd steps=5",
    ]
    optim = [variant.runs[0][0].optim for variant in planned]
    assert [(o.lr, o.schedule, o.name) for o in optim[::2]] == [
        (3e-2, "cosine", "adamw"),
        (1e-2, "linear", "adamw"),
        (3e-2, "cosine", "sgd"),
    ]
    assert {o.clip_norm for o in optim} == {1} and len({path for v in planned for _, path in v.runs}) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.lr=0.03", "is compared with itself"),
        ("optim.nothing=1", "optim.nothing"),
        ("optim.momentum=0.5", "optim.momentum=0.5 changes nothing without"),
        ("lr", "lr"),
    ],
)
def test_a_change_that_is_none_is_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        compare.main([tiny.spec("cnn"), "--change", change, "--out", str(tmp_path / "out")])


def test_rows_of_the_same_seeds_tell_how_far_they_are_from_the_first(tmp_path):
    def row(name, accuracies):
        return {key: [1.0] for key in compare.FACTS} | {
            "run": name,
            "seeds": list(range(len(accuracies))),
            "test/accuracy": accuracies,
            "test/f1_macro": accuracies,
            "test/ece": accuracies,
        }

    about = {"device": "CPU", "date": "2026-11-29", "command": "c", "versions": {}}
    (tmp_path / "comparisons").mkdir()
    for name, rows in {
        "paired": [row("a", [0.5, 0.6, 0.7]), row("b", [0.52, 0.61, 0.73])],  # 2, 1 and 3 points better
        "single": [row("a", [0.5]), row("b", [0.6])],
    }.items():
        (tmp_path / "comparisons" / f"{name}.json").write_text(json.dumps(about | {"rows": rows}))
    found = tables.tables(tmp_path)
    lines = found["comparison/paired"].splitlines()
    assert lines[2].endswith("acc against the first row, ± standard error |")
    assert lines[4].endswith("|  |") and lines[5].endswith("| +2.00 ± 0.58 |")
    assert "standard error" not in found["comparison/single"]

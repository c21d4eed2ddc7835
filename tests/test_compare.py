"""Comparisons: which runs there are, what is trained once, and the table."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from rich.console import Console

from tests import tiny
from vit_jax import compare
from vit_jax.command import UserError
from vit_jax.train import Result

SPEC = tiny.spec("cnn")
BLURRED = ("--config.corruption.kind=blur", "--config.corruption.severity=3")


def stopped(workdir) -> Result:
    """As an interruption leaves a run."""
    return Result(workdir, 130, {})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two seeds, two widths, two evaluations."""
    out = tmp_path_factory.mktemp("compare")
    assert compare.main(flags(out)) == 0
    return out


def flags(out):
    sweep = ["--sweep", "model.dense_widths=(5,),(17,)", "--evaluate", "evaluate.batch_size=7,40"]
    return [SPEC, "--seeds", "2", *sweep, "--config.train.steps=12", "--out", str(out)]


def test_every_combination_is_trained_with_each_seed(compared):
    table = json.loads((compared / "comparison.json").read_text())
    widths, sizes = ("dense_widths=(5,)", "dense_widths=(17,)"), ("batch_size=7", "batch_size=40")
    assert [row["run"] for row in table] == [f"tiny-cnn {w} {s}" for w in widths for s in sizes]
    assert all(row["seeds"] == [0, 1] and len(row["test/accuracy"]) == 2 for row in table)
    assert table[0]["parameters"] != table[2]["parameters"]
    assert table[0]["test/accuracy"] == table[1]["test/accuracy"]  # metrics do not depend on the batch size


def test_the_values_are_those_of_the_runs(compared):
    folders = sorted(path for path in compared.iterdir() if path.is_dir())
    assert len(folders) == 4
    table = json.loads((compared / "comparison.json").read_text())
    results = [tiny.result(path) for path in folders if "widths=_5-" in path.name]
    assert [r["config"]["seed"] for r in results] == [0, 1]
    for key in ("test/accuracy", "best_val/accuracy", "val/accuracy", "test/ece", "seconds"):
        np.testing.assert_allclose(table[0][key], [r[key] for r in results], rtol=1e-6)


def test_mean_and_spread(compared):
    with (compared / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = json.loads((compared / "comparison.json").read_text())
    for row, values in zip(rows, table, strict=True):
        a, b = values["test/loss"] if "test/loss" in values else values["test/accuracy"]
        assert float(row["test/accuracy"]) == pytest.approx((a + b) / 2)
        assert float(row["test/accuracy std"]) == pytest.approx(abs(a - b) / 2**0.5)
    assert compare.cell("test/accuracy", [0.5, 0.6]) == "55.00 ± 7.07 %"
    assert compare.cell("test/accuracy", [0.5]) == "50.00 %" and compare.cell("energy_kwh", []) == ""
    markdown = (compared / "comparison.md").read_text().splitlines()
    assert len(markdown) == 6 and markdown[0].startswith("| run | parameters | FLOPs |") and " ± " in markdown[2]


def test_what_is_finished_is_not_trained_again_and_names_are_printed_whole(compared, monkeypatch, capsys):
    monkeypatch.setattr(compare, "train", None)
    monkeypatch.setenv("COLUMNS", "80")
    before = (compared / "comparison.json").read_text()
    assert compare.main(flags(compared)) == 0
    assert (compared / "comparison.json").read_text() == before
    lines = capsys.readouterr().out.splitlines()
    assert "tiny-cnn dense_widths=(17,) batch_size=40" in [line.strip()[:41] for line in lines]
    assert "test acc" in "".join(lines) and "left out for lack of width" in "".join(lines)


def test_a_run_that_fails_leaves_the_others(tmp_path, capsys):
    sweep = ["--sweep", "optim.lr=1e-2,1e38", "--config.optim.schedule=constant", "--config.train.steps=12"]
    assert compare.main([SPEC, *sweep, "--out", str(tmp_path)]) == 1
    table = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["run"] for row in table] == ["tiny-cnn lr=1e-2"]
    assert "have diverged" in capsys.readouterr().out.replace("training has diverged", "have diverged")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sweep", "model.patch_size=4,5"], "^tiny-vit patch_size=5: model.patch_size=5 does not divide"),
        (["--sweep", "data.name=digits,/nowhere"], "^tiny-vit name=/nowhere: "),
        (["--sweep", "distill.teacher=,/nowhere"], "^tiny-vit teacher=/nowhere: /nowhere is neither a run"),
        (["--sweep", "init.weights=,/nowhere"], "^tiny-vit weights=/nowhere: /nowhere does not exist"),
        (["--sweep", "train.batch_size=40,42"], "^tiny-vit batch_size=42: .* cannot be divided by 4 devices"),
        (["--evaluate", "model.patch_size=(4,),(3,)"], "patch_size=3 does not divide the image height 8"),
        (["--evaluate", "model.depth=2,3"], "--evaluate depth=3: the trained model has other parameters"),
        (["--evaluate", "data.name=synthetic/8x8x1/7/70"], "name=.*/70: 'synthetic/.*' does not have the classes of"),
        (["--evaluate", "evaluate.split=test,tset"], "split 'tset' of"),
        (
            ["--config.data.channels=1", "--evaluate", "corruption.kind=grey", "--evaluate", "corruption.severity=1"],
            "one ch",
        ),
    ],
)
def test_no_run_is_trained_before_all_are_checked(words, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "train", None)
    with pytest.raises(UserError, match=expected):
        compare.main([tiny.spec("vit"), *words, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_folder_with_another_run_is_told_first(compared, monkeypatch):
    monkeypatch.setattr(compare, "train", None)
    words = [SPEC, "--sweep", "model.dense_widths=(7,),(5,)", "--config.train.steps=13", "--out", str(compared)]
    with pytest.raises(UserError, match=r"^tiny-cnn dense_widths=\(5,\): .*holds a run of another configuration"):
        compare.main(words)


@pytest.mark.parametrize("field", ["distill.teacher", "init.weights"])
def test_an_earlier_run_may_be_teacher_or_beginning(field, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        compare, "train", lambda given, workdir, console: trained.append(workdir.name) or stopped(workdir)
    )
    words = [SPEC, "--sweep", f"{field}=,{tmp_path}/tiny-cnn_{field.rpartition('.')[2]}=-seed0", "--out", str(tmp_path)]
    assert compare.main(words) == 130 and len(trained) == 1
    back = [SPEC, "--sweep", words[2].replace("=,", "=") + ",", "--out", str(tmp_path)]
    with pytest.raises(UserError, match="does not exist"):  # a later run is none
        compare.main(back)


def test_a_clean_row_has_no_severity_and_comes_once(compared, tmp_path):
    sweeps = ["corruption.kind=none,noise", "corruption.severity=1,5", "evaluate.batch_size=7"]
    found = compare.evaluations(sweeps)
    assert list(found) == ["kind=none batch_size=7", *(f"kind=noise severity={i} batch_size=7" for i in (1, 5))]
    assert compare.evaluations([]) == {"": []}
    noisy = ["corruption.kind=noise", "corruption.severity=3"]  # of the configuration: off all the same
    variants = compare.plan([SPEC], ["model.dense_widths=(5,)"], 1, ["train.steps=12"], compared)
    clean, weak, strong = compare.rows(variants, sweeps, noisy)
    assert clean["run"] == "tiny-cnn dense_widths=(5,) kind=none batch_size=7"
    [plain] = compare.rows(variants, [], [])
    assert clean["test/accuracy"] == plain["test/accuracy"] and strong["test/ece"] != weak["test/ece"]


def test_an_interruption_stops_the_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "train", lambda given, workdir, console: stopped(workdir))
    assert compare.main([SPEC, "--out", str(tmp_path)]) == 130


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([SPEC, SPEC], "tiny-cnn is compared with itself; "),
        ([SPEC, "--sweep", "optim.lr=1,1"], "compared with itself; "),
        ([SPEC, "--sweep", "optim.lr=1e-3,0.001"], "lr=0.001 is compared with itself under the name tiny-cnn lr=1e-3"),
        ([SPEC, "--sweep", "optim.lr=1,2", "--sweep", "optim.lr=3"], "optim.lr is given twice"),
        ([SPEC, "--sweep", "optim.lr=1,2", "--config.optim.lr=3"], "optim.lr is given twice"),
        (
            [SPEC, "--evaluate", "corruption.seed=1", "--evaluate", "corruption.seed=2"],
            "corruption.seed is given twice",
        ),
        ([SPEC, "--sweep", "optim.lr"], "expected FIELD=VALUE"),
        ([SPEC, "--sweep", "optim.learning=1"], "has no field"),
        ([SPEC, tiny.spec("vit"), "--sweep", "model.dense_widths=(5,)"], "^[^:]*:vit: config has no field 'model"),
        ([SPEC, "--evaluate", "evaluate.splt=1"], "did you mean evaluate.split"),
        ([SPEC, "--evaluate", "optim.lr=1e-3,1e-2"], "optim.lr changes nothing in the evaluation of a finished run"),
        ([SPEC, "--evaluate", "data.limit=20,40"], "data.limit changes nothing"),
        ([SPEC, "--seeds", "0"], "not positive"),
        ([SPEC, "--sweep", "distill.weight=0.5,0.9"], r"distill.weight=0\.9 changes nothing without distill.teacher"),
        ([SPEC, "--sweep", "corruption.seed=1,2"], r"changes nothing in training, .*compare --evaluate corruption\."),
        ([SPEC, *BLURRED, "--config.optim.nesterov=true"], "without optim.name=sgd"),
        ([SPEC, *BLURRED, "--evaluate", "corruption.severity=1,5"], "corruption.severity is given twice"),
        (["configs/digitz.py"], "did you mean"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(words, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "train", None)
    with pytest.raises(UserError, match=expected):
        compare.main([*words, "--out", str(tmp_path)])


@pytest.fixture
def one(compared, tmp_path):
    """The words of a comparison of one run, which is finished, and its folder."""
    [name] = [path.name for path in compared.iterdir() if path.name.endswith("widths=_5-seed0")]
    workdir = shutil.copytree(compared / name, tmp_path / name)
    sweep = ["--sweep", "model.dense_widths=(5,)", "--config.train.steps=12"]
    return [SPEC, *sweep, "--out", str(tmp_path)], workdir


def test_a_model_is_compared_on_several_splits(one, monkeypatch):
    words, workdir = one
    monkeypatch.setattr(compare, "train", None)
    assert compare.main([*words, "--evaluate", "evaluate.split=train[:7],validation,test"]) == 0
    table = json.loads((workdir.parent / "comparison.json").read_text())
    splits = ("train[:7]", "validation", "test")
    assert [row["run"] for row in table] == [f"tiny-cnn dense_widths=(5,) split={s}" for s in splits]
    found = tiny.result(workdir)
    assert table[2]["test/accuracy"] == [found["test/accuracy"]]
    assert table[1]["test/accuracy"] == [found["val/accuracy"]] and len(table[0]["test/ece"]) == 1


def test_names_that_folders_cannot_have_stay_apart(tmp_path):
    halves = ["data.train=train[:50%],train[50%:]", "data.name=a/b,a_b"]
    for sweep in halves:
        folders = [workdir for variant in compare.plan([SPEC], [sweep], 1, [], tmp_path) for _, workdir in variant.runs]
        assert len(set(folders)) == 2 and {folder.parent for folder in folders} == {tmp_path}
    [plain] = compare.plan([SPEC], ["optim.lr=0.5"], 1, [], tmp_path)
    assert plain.runs[0][1] == tmp_path / "tiny-cnn_lr=0.5-seed0"


def test_a_flag_that_perturbs_is_for_the_evaluation(one, monkeypatch):
    words, workdir = one
    monkeypatch.setattr(compare, "train", None)
    evaluated = ["--evaluate", "corruption.kind=blur", "--config.corruption.severity=3"]
    assert compare.main([*words, *evaluated]) == 0
    [row] = json.loads((workdir.parent / "comparison.json").read_text())
    assert row["run"] == "tiny-cnn dense_widths=(5,) kind=blur severity=3"
    assert row["test/ece"] != [tiny.result(workdir)["test/ece"]]
    (workdir / "checksums.json").unlink()  # by which the change would be found
    (workdir / "images.json").write_text('{"train": 1, "validation": 20, "test": 40}')
    wider = [word.replace("(5,)", "(5,),(7,)") for word in words]
    for more in ([*words, "--seeds", "2"], wider):
        with pytest.raises(UserError, match=r"are not those that the run .* began with: 1 images to train, now 180"):
            compare.main(more)


def test_a_file_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "train", None)
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="--out .*out is a file; give a folder"):
        compare.main([SPEC, "--out", str(tmp_path / "out")])


def test_one_of_several_processes_compares_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(compare.jax, "process_count", lambda: 3)
    with pytest.raises(UserError, match="one of 3 processes, which would all train the same; start it once"):
        compare.main([SPEC, "--out", str(tmp_path)])


def test_a_deterministic_comparison_asks_for_it_before_a_device_is_touched(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(compare, "check", None)
    with pytest.raises(TypeError):
        compare.main([SPEC, "--config.train.deterministic=true", "--out", str(tmp_path)])
    assert "xla_gpu_deterministic_ops=true" in os.environ["XLA_FLAGS"]


def test_an_empty_table_is_written_nowhere(tmp_path):
    assert compare.rows([], [], []) == []
    compare.write([{"run": "x", "seeds": [0]}], tmp_path, Console(quiet=True))
    assert (tmp_path / "comparison.md").read_text() == "| run |\n| --- |\n| x |\n"

"""A result is kept only with the command that it came from, and the tables of accuracy are what the results say."""

import json
import shlex
from pathlib import Path

import pytest

from benchmarks import accuracy, tables
from benchmarks.machine import RESULTS
from tests import tiny
from tests.conftest import REPOSITORY
from vit_jax import compare, config
from vit_jax.command import UserError

SPEC = tiny.spec("cnn")
PUBLISHED = accuracy.published()
COMPARISONS = accuracy.read(RESULTS, "comparisons")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tiny.finished(tmp_path_factory, "cnn", "train.steps=3")


def test_every_row_trains_on_the_data_set_of_its_section():
    names = {"footwear": "fashion_mnist", "visual_transformer": "cifar10", "imagenet": "imagenet2012"}
    for row in PUBLISHED:
        if row["section"] == "budget":  # its rows name their data
            continue
        data = config.load(str(REPOSITORY / row["config"])).data.name
        assert data.partition("/")[0] == names.get(row["section"], row["section"])


@pytest.mark.parametrize("file", ["fashion_mnist", "cifar100", "footwear", "cifar10", "visual_transformer"])
def test_every_argument_of_a_reports_config_has_a_row(file):
    with pytest.raises(UserError) as refused:
        config.load(f"{REPOSITORY}/configs/{file}.py:?")
    listed = str(refused.value).partition("choose from ")[2].split(", ")
    rows = [row["config"] for row in PUBLISHED]
    assert len(rows) == len(set(rows)) and {f"configs/{file}.py:{arg}" for arg in listed} <= set(rows)


def test_every_result_has_a_row_and_its_configuration_is_still_the_shipped_one():
    results = accuracy.read(RESULTS, "accuracy").values()
    assert sum(map(len, accuracy.runs().values())) == len(results) > 0
    for found in results:
        given = config.load(str(REPOSITORY / found["spec"]), found["overrides"])
        assert config.differences(config.from_dict(found["config"]), given) == {}, found["spec"]


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_command_of_a_comparison_is_one_that_compare_takes(name, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    module, *words = shlex.split(COMPARISONS[name]["command"])[2:]
    assert module == "vit_jax.compare"
    planned = []
    monkeypatch.setattr(compare, "check", lambda *given: None)  # needs the data, and the teacher's run
    monkeypatch.setattr(compare, "train_all", lambda variants, console: planned.extend(variants) or (1, {}))
    assert compare.main(words) == 1
    assert len({workdir for variant in planned for _, workdir in variant.runs}) >= 2


def test_a_run_is_kept_with_its_command_and_shown(tmp_path, finished, monkeypatch):
    measured, row = tiny.result(finished), {"section": "t", "model": "tiny CNN", "published": "12.3", "config": SPEC}
    monkeypatch.setattr(accuracy, "published", lambda: [row | {"waits_for": "time"}])
    path = accuracy.keep_run(finished, SPEC, ["train.steps=3"], tmp_path)
    kept = json.loads(path.read_text())
    assert kept["test/accuracy"] == measured["test/accuracy"] and kept["versions"]["jax"]
    assert str(finished) not in path.read_text() and path.name.endswith("-train.steps=3-cpu.json")
    shown = tables.tables(tmp_path)
    (line,) = [line for line in shown["t"].splitlines() if line.startswith("| tiny CNN")]
    assert f"**{100 * measured['test/accuracy']:.2f}** | 120 images" in line
    assert f"`{SPEC} --config.train.steps=3`" in line and "12.3" in line
    assert f"time | `{SPEC}`" in shown["waiting"]  # its whole schedule has not run


def test_a_run_that_a_budget_ended_tells_its_images():
    """`train.epochs` says nothing of it."""
    assert {row["training"].split()[-1] for row in accuracy.runs()["budget"]} == {"images"}


def test_a_run_of_another_command_is_refused(tmp_path, finished):
    with pytest.raises(UserError, match=r"was not trained by this command: train\.steps \(3 there, 23 here\)"):
        accuracy.keep_run(finished, SPEC, [], tmp_path)
    with pytest.raises(UserError, match="holds no finished run"):
        accuracy.keep_run(tmp_path, SPEC, [], tmp_path)
    with pytest.raises(UserError, match=r"configs/x\.py is no row of published\.csv; choose from configs/"):
        accuracy.main([str(finished), "configs/x.py"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_comparison_is_kept_with_its_command(tmp_path):
    words = [SPEC, "--sweep", "optim.lr=0.01,0.02", "--config.train.steps=3", "--out", str(tmp_path / "runs")]
    with pytest.raises(UserError, match="give it whole, with --out"):
        accuracy.keep_comparison("speed", words[:-2], tmp_path)
    path = accuracy.keep_comparison("speed", words, tmp_path)
    found = json.loads(path.read_text())
    assert found["command"] == " ".join(["python -m vit_jax.compare", *words]) and "CPU" in found["device"]
    text = tables.tables(tmp_path)["comparison/speed"]
    for row in found["rows"]:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {row['run']} ")]
        assert f"{100 * row['test/accuracy'][0]:.2f} %" in line


def test_a_comparison_of_segmentations_shows_the_mean_iou(tmp_path):
    rows = [
        {"run": run, "seeds": [0, 1], "parameters": [7], "test/accuracy": [], "test/mean_iou": found}
        for run, found in {"plain": [0.25, 0.375], "tokens": [0.5, 0.625]}.items()
    ]
    kept = {"rows": rows, "device": "CPU", "date": "2026-11-30", "command": "c"}
    (tmp_path / "comparisons").mkdir()
    (tmp_path / "comparisons" / "x.json").write_text(json.dumps(kept))
    lines = tables.tables(tmp_path)["comparison/x"].splitlines()
    assert lines[2] == "| run | parameters | test mIoU | mIoU against the first row, ± standard error |"
    assert lines[-1] == "| tokens | 7 | 56.25 ± 8.84 % | +25.00 ± 0.00 |"

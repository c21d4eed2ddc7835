"""accuracy.md is what the kept results say, and a result is kept only with the command it came from."""

import json
from pathlib import Path

import pytest

from benchmarks import accuracy
from benchmarks.accuracy import Row
from tests import tiny
from tests.conftest import REPOSITORY
from vit_jax import config
from vit_jax.command import UserError
from vit_jax.config import sweep

SPEC = tiny.spec("cnn")
SHORT = ["train.steps=3"]


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """An empty folder of results, for a page with one row."""
    monkeypatch.setattr(accuracy, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(accuracy, "PAGE", tmp_path / "accuracy.md")
    monkeypatch.setattr(accuracy, "SECTIONS", {"T": (Row("tiny CNN", "12.3", SPEC),)})
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tiny.finished(tmp_path_factory, "cnn", *SHORT)


def test_the_page_is_what_the_results_say():
    assert (REPOSITORY / "benchmarks" / "accuracy.md").read_text() == accuracy.page()


def test_every_row_trains_on_the_data_set_of_its_section():
    names = {"A": "fashion_mnist", "B": "cifar100", "C": "fashion_mnist", "D": "cifar10", "Imagenette": "imagenette"}
    found = {
        (title, config.load(str(REPOSITORY / row.spec)).data.name)
        for title, rows in accuracy.SECTIONS.items()
        for row in rows
    }
    for section, name in names.items():
        assert {data.partition("/")[0] for title, data in found if title.startswith(section)} == {name}
    assert {data for title, data in found if title.startswith("E")} == {"cifar10", "imagenet2012"}


@pytest.mark.parametrize("file", ["fashion_mnist", "cifar100", "footwear", "cifar10", "visual_transformer"])
def test_every_argument_of_a_reports_config_has_a_row(file):
    with pytest.raises(UserError) as refused:
        config.load(f"{REPOSITORY}/configs/{file}.py:?")
    listed = str(refused.value).partition("choose from ")[2].split(", ")
    rows = [row.spec for rows in accuracy.SECTIONS.values() for row in rows]
    assert len(rows) == len(set(rows)) and {f"configs/{file}.py:{arg}" for arg in listed} <= set(rows)


@pytest.mark.parametrize("path", sorted(accuracy.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_shipped_configuration_is_still_the_one_that_was_measured(path):
    found = json.loads(path.read_text())
    given = config.load(str(REPOSITORY / found["spec"]), found["overrides"])
    assert config.differences(config.from_dict(found["config"]), given) == {}


def test_a_run_joins_the_page_with_its_command(kept, finished):
    assert accuracy.main([str(finished), SPEC, "--config.train.steps=3"]) == 0
    text, measured = (kept / "accuracy.md").read_text(), tiny.result(finished)
    waiting, line = [line for line in text.splitlines() if line.startswith("| tiny CNN")]
    assert "not yet run on a GPU" in waiting and "not yet run" not in line
    assert f"**{100 * measured['test/accuracy']:.2f}**" in line and f"{SPEC} --config.train.steps=3" in line
    [path] = (kept / "kept").iterdir()
    result = json.loads(path.read_text())
    assert result["test/accuracy"] == measured["test/accuracy"] and result["versions"]["jax"]
    assert str(finished) not in path.read_text()


def test_a_long_command_has_a_file_name_that_systems_take(kept, finished, monkeypatch):
    monkeypatch.setattr(sweep, "LONGEST", 10)
    for more in ([], ["--config.seed=0"]):
        assert accuracy.main([str(finished), SPEC, "--config.train.steps=3", *more]) == 0
    names = sorted(path.name for path in (kept / "kept").iterdir())
    assert len(names) == 2 and all(len(name) == 10 + len("-01234567-cpu.json") for name in names)


def test_a_run_of_another_command_is_refused(kept, finished):
    with pytest.raises(UserError, match=r"was not trained by this command: train\.steps \(3 there, 23 here\)"):
        accuracy.main([str(finished), SPEC])
    with pytest.raises(UserError, match=r"configs/x\.py is no row of accuracy\.md; choose from .*tiny"):
        accuracy.main([str(finished), "configs/x.py"])
    with pytest.raises(UserError, match="holds no finished run"):
        accuracy.main([str(kept), SPEC])
    with pytest.raises(UserError, match="which configuration trained"):
        accuracy.main([str(finished)])
    assert not (kept / "kept").exists()

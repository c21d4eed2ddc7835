"""The reports' questions: their commands load, and an answer is kept only from the runs of its command."""

import json
import shlex

import pytest

from benchmarks import accuracy, comparisons
from benchmarks.comparisons import Question
from tests import tiny
from tests.conftest import REPOSITORY
from vit_jax import compare
from vit_jax.command import UserError

ASKED = Question("Fast or slow?", (tiny.spec("cnn"),), ("optim.lr=0.01,0.02",), overrides=("train.steps=3",))


@pytest.mark.parametrize("name", comparisons.QUESTIONS)
def test_each_command_is_one_that_compare_takes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    module, *words = shlex.split(comparisons.QUESTIONS[name].command(name))[2:]
    assert module == "vit_jax.compare"
    planned = []
    monkeypatch.setattr(compare, "check", lambda *given: None)  # needs the data, and the teacher's run
    monkeypatch.setattr(compare, "train_all", lambda variants, console: planned.extend(variants) or (1, {}))
    assert compare.main(words) == 1
    assert len({workdir for variant in planned for _, workdir in variant.runs}) >= 2


def test_a_comparison_joins_the_page_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(comparisons, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(comparisons, "QUESTIONS", {"speed": ASKED})
    monkeypatch.setattr(accuracy, "PAGE", tmp_path / "accuracy.md")
    folder = tmp_path / "runs"
    with pytest.raises(UserError, match=r"does not hold tiny-cnn_lr=0\.01-seed0 as `python -m"):
        accuracy.main([str(folder), "speed"])
    assert "Not yet run: `python -m vit_jax.compare" in comparisons.sections()
    words = shlex.split(ASKED.command("speed"))[3:]
    words[words.index("runs/speed")] = str(folder)
    assert compare.main(words) == 0
    assert accuracy.main([str(folder), "speed"]) == 0
    text = (tmp_path / "accuracy.md").read_text()
    found = json.loads((tmp_path / "kept" / "speed.json").read_text())
    assert [row["run"] for row in found["rows"]] == ["tiny-cnn lr=0.01", "tiny-cnn lr=0.02"]
    for row in found["rows"]:
        [line] = [line for line in text.splitlines() if line.startswith(f"| {row['run']} ")]
        assert f"{100 * row['test/accuracy'][0]:.2f} %" in line
    assert str(folder) not in json.dumps(found["rows"])

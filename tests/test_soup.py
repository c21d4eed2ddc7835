"""Model soups: the mean of one model is itself, of several what numpy says; the file loads as any other model."""

import io

import jax
import numpy as np
import pytest
from rich.console import Console

import vit_jax
from tests import tiny
from vit_jax import evaluate, soup
from vit_jax.command import UserError

SHORT = ("train.steps=8", "evaluate.every_steps=4", "checkpoint.every_steps=4", "checkpoint.keep_last=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trained with other settings: of the optimizer, of what only training reads, and of the host."""
    changes = ("optim.lr=0.01",), ("optim.lr=0.03", "model.dropout=0.1", "data.threads=2")
    return [tiny.finished(tmp_path_factory, "cnn", *SHORT, *words) for words in changes]


def ingredient(name: str, value: float) -> soup.Ingredient:
    return soup.Ingredient(name, 3, {"w": np.full((2, 3), value, np.float32)})


def test_the_mean():
    tree = soup.mean_of([ingredient(name, value).variables for name, value in (("a", 1.0), ("b", 4.0), ("c", 7.0))])
    np.testing.assert_array_equal(tree["w"], np.full((2, 3), 4.0))
    assert soup.mean_of([tree])["w"].dtype == np.float32


def test_greedy_takes_what_does_not_make_it_worse():
    """The score is nearness to 2: after 1, 5 makes a mean of 3, as near; then 9 makes 5, and -6 makes 0."""
    found = soup.greedy(
        [ingredient(str(v), v) for v in (1.0, 5.0, 9.0, -6.0, 0.0)], lambda x: -abs(float(x["w"][0, 0]) - 2)
    )
    assert [one.name for one in found] == ["1.0", "5.0", "0.0"]


@pytest.mark.slow
def test_a_soup_of_runs_is_their_mean_and_is_used_as_a_run(runs, tmp_path):
    folder, output = tmp_path / "soup", Console(file=io.StringIO(), width=200)
    report = soup.cook(runs, folder, output, checkpoints=False, uniform=True)
    means = jax.tree.map(lambda a, b: (a + b) / 2, *(jax.device_get(dict(vit_jax.load(run).variables)) for run in runs))
    loaded = vit_jax.load(folder)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), dict(loaded.variables), means)
    assert loaded.class_names == vit_jax.load(runs[0]).class_names and loaded.step == 8
    assert len(report["chosen"]) == 2 and report["monitor"] == "accuracy"
    assert evaluate.evaluate_run(folder)["test/accuracy"] == report["test"]["soup"]
    assert "the mean of 2 of 2 models" in output.file.getvalue()


@pytest.mark.slow
def test_checkpoints_of_one_run_are_ingredients(runs):
    _, found = soup.find(runs[:1], checkpoints=True)
    assert [one.name.rpartition("step ")[2] for one in found] == ["4", "8"]
    jax.tree.map(
        np.testing.assert_array_equal, found[1].variables, jax.device_get(dict(vit_jax.load(runs[0]).variables))
    )
    assert any((a != b).any() for a, b in zip(*(jax.tree.leaves(one.variables) for one in found), strict=True))


@pytest.mark.slow
def test_what_makes_no_soup_is_refused(runs, tmp_path):
    out = ["--out", str(tmp_path / "x")]
    for words, message in (
        ([str(runs[0]), *out], "a soup needs two models and more"),
        ([str(runs[0]), str(tmp_path), *out], "holds no run; give the folders of runs"),
        ([str(runs[0]), "--out", str(tmp_path)], "is there already; give a new folder"),
        ([str(runs[0]), *out, "--config.seed=1"], "--config.seed=1 changes nothing in a soup"),
    ):
        with pytest.raises(UserError, match=message):
            soup.main(words)

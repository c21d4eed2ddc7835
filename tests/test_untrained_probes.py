"""`evaluate --probe --untrained`: how far the features of a run are above those of random parameters."""

import json
import shutil

import jax
import pytest

from tests import tiny
from vit_jax import evaluate, inference, step
from vit_jax.command import UserError
from vit_jax.report import tables
from vit_jax.workdir import Workdir


def test_random_parameters_are_probed_beside_those_of_the_run(tmp_path_factory, tmp_path, capsys):
    run = shutil.copytree(tiny.finished(tmp_path_factory, "cnn"), tmp_path / "run")
    assert evaluate.main(["--workdir", str(run), "--probe", "knn", "--untrained"]) == 0
    printed = capsys.readouterr().out
    (path,) = run.glob("probes-test*.json")
    found = json.loads(path.read_text())
    trained, random = (found[f"{split}/knn_accuracy"] for split in ("test", "test untrained"))
    assert f"kNN accuracy: {100 * (trained - random):+.1f} points over random parameters" in printed
    assert found["test/feature_spread"] != found["test untrained/feature_spread"]
    (section,) = tables.probed(Workdir(run))
    assert [row[0] for row in section.rows] == ["test", "test untrained"]
    assert [dict(zip(section.columns, row, strict=True))["knn_accuracy"] for row in section.rows] == [trained, random]


def test_it_is_the_model_as_it_is_initialised(tmp_path_factory, monkeypatch):
    """Where the run's own parameters are the random ones, the gain is nothing."""
    run = tiny.finished(tmp_path_factory, "cnn")
    loaded = inference.load(run)
    shape = (5, 7, 3)
    random = jax.jit(lambda: step.init_variables(loaded.model, loaded.config.seed, shape))()
    as_new = inference.Predictor(
        loaded.config, loaded.model, random, loaded.class_names, loaded.preprocessing, loaded.step
    )
    monkeypatch.setattr(inference, "load", lambda *args, **kwargs: as_new)
    found = evaluate.probe(run, ["knn"], untrained=True)
    assert found["test/knn_accuracy"] == found["test untrained/knn_accuracy"]
    assert found["test/feature_spread"] == found["test untrained/feature_spread"]


def test_the_flag_needs_a_probe(tmp_path):
    with pytest.raises(UserError, match="--untrained belongs to --probe"):
        evaluate.main(["--workdir", str(tmp_path), "--untrained"])

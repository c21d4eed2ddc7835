"""Probes of whole runs: while they train, of a finished one by the command, of published weights, and bad flags."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.tasks.test_masked_autoencoder import get_config
from vit_jax import config, evaluate, inference, metrics, train
from vit_jax.command import UserError
from vit_jax.data import open_data
from vit_jax.report import tables
from vit_jax.workdir import Workdir

PROBED = ["evaluate.probe=knn,fewshot", "evaluate.probe_every=2", "evaluate.knn_neighbours=5", "train.steps=20"]
NAMES = {"knn_accuracy", "shot1_accuracy", "shot5_accuracy", "shot10_accuracy", "feature_spread"}


def start(workdir: Path, *overrides: str) -> train.Result:
    """A masked autoencoder, whose own loss reads no label."""
    return tiny.train_quietly(get_config(), workdir, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tiny.finished(tmp_path_factory, "cnn", *PROBED, "evaluate.before=true")


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_every_second_validation_the_last_one_and_the_test_are_probed(finished):
    lines = [line for line in tiny.metric_lines(finished) if "val/loss" in line]
    assert [line["step"] for line in lines if "val/knn_accuracy" in line] == [18, 20] and len(lines) == 3
    result = tiny.result(finished)
    assert {f"{split}/{name}" for split in ("val", "test", "before") for name in NAMES} <= result.keys()
    assert result["test/knn_accuracy"] > 0.5  # of three classes


@pytest.mark.slow
def test_probes_change_nothing_of_a_run_without_labels_and_resume_exactly(tmp_path):
    assert start(tmp_path / "plain", "train.steps=20").finished
    assert start(tmp_path / "probed", *PROBED).finished
    ours, theirs = (tiny.arrays(tmp_path / name) for name in ("plain", "probed"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours) and ours.keys() == theirs.keys()
    assert {key for key in tiny.result(tmp_path / "probed") if key.startswith("test/")} == {
        f"test/{name}" for name in (*NAMES, "loss")
    }
    tiny.assert_resumes(lambda workdir: start(workdir, *PROBED), tmp_path / "resumed", tmp_path / "probed")


def test_the_command_finds_what_the_run_found(copied, capsys):
    flags = ["--probe", "knn,fewshot,linear", "--config.evaluate.knn_neighbours=5"]
    assert evaluate.main(["--workdir", str(copied), *flags]) == 0
    (path,) = copied.glob("probes-test*.json")
    found, expected = json.loads(path.read_text()), tiny.result(copied)
    for name in ("knn_accuracy", "shot10_accuracy", "feature_spread"):
        assert found[f"test/{name}"] == pytest.approx(expected[f"test/{name}"], abs=1e-6)
    assert found["test/linear_accuracy"] > 0.5 and found["images"] == 40
    (section,) = tables.probed(Workdir(copied))
    (row,) = section.rows
    assert dict(zip(section.columns, row, strict=True))["knn_accuracy"] == found["test/knn_accuracy"]
    assert row[:2] == ("test", "180") and len(row) == 8
    printed = capsys.readouterr().out
    assert "test kNN accuracy" in printed and "training images taught" in printed and path.name in printed


def test_features_are_those_of_the_predictor(finished):
    """kNN by hand, from what `features` gives of the same images."""
    trained = inference.load(finished)
    data = open_data(trained.config.data)
    train_split, test_split = (data.split(purpose).load() for purpose in ("train", "test"))
    features = [trained.features(split.arrays["image"]) for split in (train_split, test_split)]
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in features)
    similar = queries @ bank.T
    nearest = np.argsort(-similar, axis=1)[:, :5]
    weights = np.exp(np.take_along_axis(similar, nearest, axis=1) / 0.07)
    votes = np.einsum("nj,njk->nk", weights, np.eye(3)[train_split.arrays["label"][nearest]])
    share = np.mean(votes.argmax(axis=1) == test_split.arrays["label"])
    assert tiny.result(finished)["test/knn_accuracy"] == pytest.approx(
        share, abs=0.03
    )  # of 40 images, one may lie between


@pytest.mark.slow
def test_published_weights_are_probed_on_a_data_set(tmp_path_factory, tmp_path, capsys):
    """A classifier, handed on as a folder of weights, gives the features that the run gives."""
    run, out = tiny.finished(tmp_path_factory, "vit"), tmp_path / "weights"
    inference.load(run).save_huggingface(out)
    same = [evaluate.probe(run, ["knn"]), evaluate.probe(out, ["knn"], ["data.name=digits"], weights=True)]
    assert same[0]["test/knn_accuracy"] == same[1]["test/knn_accuracy"]
    assert evaluate.main(["--weights", str(out), "--probe", "knn", "--config.data.name=digits"]) == 0
    assert "test kNN accuracy" in capsys.readouterr().out and not list(out.glob("probes*"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["evaluate.probe=knm"], "probe 'knm' is unknown; did you mean 'knn'"),
        (["evaluate.probe_every=0"], "must be positive"),
        (["evaluate.knn_temperature=0"], "must be positive"),
        (["evaluate.metric=knn_accuracy"], "set evaluate.probe=knn and"),
        (["evaluate.metric=knn_accuracy", "evaluate.probe=knn", "evaluate.probe_every=3"], "evaluate.probe_every=1"),
    ],
)
def test_flags_out_of_range(overrides, expected):
    with pytest.raises(UserError, match=expected):
        config.from_dict(tiny.get_config("vit"), overrides)


def test_the_command_refuses_weights_without_probe_and_unknown_probes(finished):
    with pytest.raises(UserError, match="have no evaluation of their own; add --probe"):
        evaluate.main(["--weights", "w.npz"])
    with pytest.raises(UserError, match="probe 'svm' is unknown; known: knn, linear, fewshot"):
        evaluate.probe(finished, ["svm"])


def test_every_probe_metric_can_rank_checkpoints():
    for name, found in metrics.PROBES.items():
        for metric in found:
            flags = [f"evaluate.metric={metric}", f"evaluate.probe={name}"]
            assert config.from_dict(tiny.get_config("vit"), flags).evaluate.metric == metric

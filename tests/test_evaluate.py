"""Exact evaluation: every way to look at a split gives the metrics that the run itself found."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny
from vit_jax import config, evaluate, inference, metrics, sharding, step
from vit_jax.command import UserError
from vit_jax.data import Loader, open_data
from vit_jax.manifest import read_sealed
from vit_jax.tasks import Means, Task, classification
from vit_jax.tasks.classification import ClassificationEvaluator
from vit_jax.train import evaluation
from vit_jax.train.evaluation import evaluate_split
from vit_jax.train.experiment import make_task
from vit_jax.workdir import Workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tiny.finished(tmp_path_factory, "cnn")


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory) -> Path:
    """A workdir to write evaluations into."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("evaluate") / "run")


def command(workdir: Path, *flags: str, split: str = "test") -> dict[str, float]:
    assert evaluate.main(["--workdir", str(workdir), *flags]) == 0
    return read_sealed(workdir / f"evaluation-{split}.json", "")


def predict(
    trained: inference.Predictor, batch_size: int, devices: int, split: str = "test"
) -> ClassificationEvaluator:
    mesh = sharding.make_mesh(sharding.Settings(), jax.devices()[:devices])
    data, task = (
        open_data(trained.config.data),
        make_task(trained.config, trained.class_names, trained.preprocessing.shape),
    )
    eval_step = jax.jit(step.make_eval_step(task))
    variables = jax.device_put(trained.variables, sharding.replicated(mesh))
    return evaluate_split(eval_step, variables, data.loader(data.split(split), mesh), batch_size, task)


def test_the_command_finds_what_the_run_found_and_prints_it(copied, capsys):
    found, expected = command(copied), tiny.result(copied)
    measured = {k: v for k, v in expected.items() if k.startswith("test/")}
    assert len(measured) == 4 and {k: found[k] for k in measured} == measured
    assert (found["step"], found["images"]) == (23, 40)
    details = json.loads((copied / "confusion.json").read_text())
    assert {k: found[k] for k in details} == details
    printed = capsys.readouterr().out
    assert f"{100 * expected['test/accuracy']:.2f} %" in printed and "class 2" in printed


def test_the_command_evaluates_any_split(copied):
    found = command(copied, "--config.evaluate.split=validation", split="validation")
    assert found["validation/accuracy"] == tiny.result(copied)["val/accuracy"] and found["images"] == 20
    found = command(copied, "--config.evaluate.split=train[:7]+test[3:]", split="train__7__test_3__")
    assert found["images"] == 44 and 0 <= found["train[:7]+test[3:]/accuracy"] <= 1


def test_batch_and_devices_do_not_change_the_metrics(finished):
    trained = inference.load(finished)
    expected = predict(trained, 40, 1).scalars()
    for batch_size, devices in ((7, 1), (64, 1), (64, 4), (4, 4)):
        found = predict(trained, batch_size, devices).scalars()
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert all(found[k] == expected[k] for k in ("accuracy", "f1_macro"))


@pytest.mark.slow
def test_large_models_are_evaluated_in_parts(tmp_path_factory):
    """No device holds the whole of a matrix that training divides, not even while it is read."""
    workdir = tiny.finished(tmp_path_factory, "vit", "data.cache=device")
    mesh = sharding.make_mesh(sharding.Settings(fsdp=2, tensor=2))
    encoder = inference.load(workdir, mesh=mesh).variables["params"]["Transformer"]
    kernel = encoder["encoderblock_0"]["MlpBlock_3"]["Dense_0"]
    assert kernel["kernel"].shape == (8, 12)
    assert {shard.data.shape for shard in kernel["kernel"].addressable_shards} == {(4, 6)}
    whole = evaluate.evaluate_run(workdir, ["mesh.devices=4"])
    parts = evaluate.evaluate_run(workdir, ["mesh.fsdp=2", "mesh.tensor=2"])
    assert parts.pop("test/loss") == pytest.approx(whole.pop("test/loss"), abs=1e-5)
    assert parts.pop("test/ece") == pytest.approx(whole.pop("test/ece"), abs=1e-5)
    assert parts == whole


def test_few_batches_are_in_flight(monkeypatch):
    begun, finished = [], []
    monkeypatch.setattr(jax, "device_get", lambda rows: finished.append(int(rows["logits"][0, 0])) or rows)

    class Numbers(Loader):
        constants = {}

        def __init__(self):
            self.split = range(40)

        def evaluation(self, batch_size):
            for number in range(40):
                assert begun == list(range(number))
                assert finished == begun[: max(0, number - evaluation.IN_FLIGHT)]
                yield number

    def eval_step(variables, number, constants):
        begun.append(number)
        one = np.ones(1)
        return {"logits": number * one[None], "label": np.zeros(1, int), "weight": one}

    class AnyTask(Task):
        def __init__(self):
            pass

        def evaluator(self, size):
            return ClassificationEvaluator(size, ("one",))

    found = evaluate_split(eval_step, {}, Numbers(), 1, AnyTask()).found
    assert found.logits[:, 0].tolist() == begun == finished == list(range(40)) == found.place.tolist()


def test_pictures_of_the_first_images_alone_come_to_the_host():
    class FewPictures(Task):
        shown = {"picture": 3}

        def __init__(self):
            pass

        def evaluator(self, size):
            return Means()

    class Batches(Loader):
        constants, split = {}, range(8)

        def __init__(self):
            pass

        def evaluation(self, batch_size):
            return range(4)

    def eval_step(variables, batch, constants):
        return {"loss": np.ones(2), "picture": np.ones((2, 1, 1, 1)), "weight": np.ones(2)}

    evaluator = evaluate_split(eval_step, {}, Batches(), 2, FewPictures())
    assert ["picture" in rows for rows in evaluator._parts] == [True, True, False, False] and evaluator.size == 8


def test_where_logits_would_be_too_many_what_they_say_is_kept(finished, monkeypatch, tmp_path):
    trained = inference.load(finished)
    whole = predict(trained, 7, 1)
    monkeypatch.setattr(classification, "LOGITS_BYTES", 40 * 3 * 4 - 1)
    monkeypatch.setattr(classification, "MATRIX_CLASSES", 2)
    found = predict(trained, 7, 1)
    assert found.found.logits is None and found.scalars() == whole.scalars()
    assert found.details()["matrix"] is None
    found.save(tmp_path)
    saved = np.load(tmp_path / "predictions.npz")
    assert set(saved) == {"index", "label", "prediction", "confidence"}
    np.testing.assert_array_equal(saved["prediction"], metrics.predict(whole.found.logits))


def test_masked_batches_give_what_numpy_finds_without_padding(finished):
    trained = inference.load(finished)
    split = open_data(trained.config.data).split("test").load()
    logits = trained.logits(split.arrays["image"], batch_size=40).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    found = predict(trained, 12, 4).scalars()
    assert found["loss"] == pytest.approx(-log_p[np.arange(40), split.arrays["label"]].mean(), abs=1e-6)
    assert found["accuracy"] == np.mean(logits.argmax(axis=1) == split.arrays["label"])


def test_an_opened_run_gives_the_runs_own_logits(finished):
    trained = inference.load(finished)
    split = open_data(trained.config.data).split("test").load()
    expected = np.load(finished / "predictions.npz")["logits"]
    for batch_size in (1, 7, 128):
        np.testing.assert_allclose(trained.logits(split.arrays["image"], batch_size), expected, atol=1e-5)
    assert trained.class_names == ("class 0", "class 1", "class 2") and trained.preprocessing.shape == (5, 7, 3)
    assert trained.logits(split.arrays["image"][:0]).shape == (0, 3)


def test_images_of_another_shape_or_dtype(finished):
    trained = inference.load(finished)
    with pytest.raises(UserError, match=r"images are uint8\[2, 5, 5, 3\], expected uint8\['n', 5, 7, 3\]"):
        trained.logits(np.zeros((2, 5, 5, 3), np.uint8))
    with pytest.raises(UserError, match=r"images are float32"):
        trained.logits(np.zeros((2, 5, 7, 3), np.float32))


def test_a_broken_image_is_left_out_of_the_metrics(finished, monkeypatch):
    trained = inference.load(finished)
    whole = predict(trained, 8, 4)
    source = type(open_data(trained.config.data).split("test").source)
    read = source.read
    monkeypatch.setattr(source, "read", lambda self, i: read(self, i if i != 13 else 10**9))
    tolerant = config.from_dict(config.to_dict(trained.config), ["data.max_bad_fraction=0.1", "data.cache=none"])
    for batch_size, devices in ((8, 4), (1, 1)):  # of one image: a whole batch is broken
        found = predict(dataclasses.replace(trained, config=tolerant), batch_size, devices).found
        assert list(found.place) == [i for i in range(40) if i != 13]
        np.testing.assert_allclose(found.logits, np.delete(whole.found.logits, 13, axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--workdir"),
        (["--workdir", "no-such-run"], "no-such-run holds no run: it has no config.json"),
        (["--workdir", "RUN", "--config.evaluate.split=tset"], "split 'tset' of"),
        (["--workdir", "RUN", "--config.evaluate.splt=test"], "did you mean evaluate.split"),
        (["--workdir", "RUN", "--config.optim.lr=0.5"], "optim.lr changes nothing in the evaluation"),
        (["--workdir", "RUN", "--config.data.limit=3"], "data.limit changes nothing in the evaluation"),
        (["--workdir", "RUN", "--config.model.dense_widths=(5,)"], "belongs to another configuration"),
        (["--workdir", "RUN", "--config.model.stages=((5,),(6,),(7,),(8,))"], "stages"),
        (["--workdir", "RUN", "--config.corruption.kind=blur"], "set both or neither"),
        (["--workdir", "RUN", "--config.data.name=synthetic/5x7x3/2/200"], "has 2 classes .*learned 3 classes"),
    ],
)
def test_what_is_wrong_is_said(copied, flags, expected):
    with pytest.raises(UserError, match=expected):
        evaluate.main([str(copied) if flag == "RUN" else flag for flag in flags])


def test_a_choice_of_training_images_counts_where_these_are_evaluated(copied):
    flags = ["--config.evaluate.split=train", "--config.data.limit=3", "--config.data.choice=1"]
    assert command(copied, *flags, split="train-data.choice=1-data.limit=3")["images"] == 3


def test_images_of_another_size_are_brought_to_the_size_of_the_run(copied):
    found = command(
        copied, "--config.data.name=synthetic/10x14x3/3/200", split="test-data.name=synthetic_10x14x3_3_200-b9657113"
    )
    assert found["images"] == 40


def test_another_evaluation_of_the_split_has_a_file_of_its_own_and_does_not_depend_on_the_batch(copied, capsys):
    clean = command(copied, "--config.evaluate.batch_size=7", "--config.mesh.fsdp=1")
    noise = ["corruption.kind=noise", "corruption.severity=5"]
    found = command(copied, *(f"--config.{text}" for text in noise), split=f"test-{'-'.join(noise)}")
    again = evaluate.evaluate_run(copied, [*noise, "evaluate.batch_size=7"])
    for name, value in found.items():  # XLA may add up another batch in another order
        assert again[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
    assert (clean["with"], found["with"]) == ([], ["corruption.kind=noise", "corruption.severity=5"])
    assert "40 images, with corruption.kind=noise corruption.severity=5;" in capsys.readouterr().out
    assert read_sealed(copied / "evaluation-test.json", "") == clean and clean["test/loss"] < found["test/loss"]


def test_images_that_came_later_are_told(copied, caplog, tmp_path):
    workdir = shutil.copytree(copied, tmp_path / "run")
    now = json.loads((workdir / "images.json").read_text())
    assert now == {"train": 180, "validation": 20, "test": 40}
    (workdir / "checksums.json").unlink()  # by which the change would be found
    (workdir / "images.json").write_text(json.dumps(now | {"train": 100}))
    command(workdir, "--data_dir", str(tmp_path))
    assert "are not those that the run in" in caplog.text and "began with: 100 images to train, now 180" in caplog.text
    (workdir / "images.json").unlink()  # an earlier version's run
    caplog.clear()
    command(workdir)
    assert not caplog.messages


def test_the_model_that_took_a_damaged_ones_place_is_told(tmp_path_factory, tmp_path, caplog):
    workdir = shutil.copytree(tiny.finished(tmp_path_factory, "cnn", "checkpoint.keep_last=2"), tmp_path / "run")
    last, before = Workdir(workdir).saved_steps()[:-3:-1]
    tiny.damage(workdir, last)
    assert inference.load(workdir).step == before and f"the model is that of checkpoint {before}" in caplog.text


def test_a_run_without_a_usable_checkpoint(copied, tmp_path):
    workdir = shutil.copytree(copied, tmp_path / "run")
    for at in Workdir(workdir).saved_steps():
        tiny.damage(workdir, at)
    with pytest.raises(UserError, match=r"holds no usable checkpoint \(found steps \[.*23\]\)"):
        evaluate.main(["--workdir", str(workdir)])

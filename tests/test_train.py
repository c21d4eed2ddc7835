"""A run from start to result: resumed wherever it was stopped to the same bits, honest about what it did."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny
from vit_jax import config, log, memory, metrics, train
from vit_jax.command import UserError
from vit_jax.data import Loader
from vit_jax.train import loop
from vit_jax.workdir import Workdir

DRIVER = """
import time
from vit_jax import command, log, main
advance = log.Progress.advance
log.Progress.advance = lambda self, step: (time.sleep(0.05), advance(self, step))
command.run(main.main)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tiny.finished(tmp_path_factory, "vit", "data.cache=device")


@pytest.fixture(scope="module")
def cnn(tmp_path_factory) -> Path:
    return tiny.finished(tmp_path_factory, "cnn")


TERMINATED, INTERRUPTED = (11, signal.SIGTERM, 143), (17, signal.SIGINT, 130)


@pytest.mark.parametrize(
    ("cache", "stops"),
    [
        ("device", [TERMINATED, INTERRUPTED]),
        pytest.param("none", [TERMINATED], marks=pytest.mark.slow),
        pytest.param("host", [TERMINATED, INTERRUPTED], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_interrupted_ends_as_one_that_is_not(tmp_path, tmp_path_factory, cache, stops):
    override = f"data.cache={cache}"
    for step, number, code in stops:
        with pytest.MonkeyPatch.context() as patch:
            tiny.interrupt_at(step, number, patch)
            found, text = tiny.start(tmp_path, "vit", override)
        assert found == code and f"Stopped at step {step}, and saved" in " ".join(text.split())
        assert not Workdir(tmp_path).result_file.exists()
    found, text = tiny.start(tmp_path, "vit", override)
    assert found == 0 and f"resumed at step {step}" in text
    tiny.assert_same_run(tmp_path, tiny.finished(tmp_path_factory, "vit", override))


@pytest.mark.slow
def test_streamed_and_kept_on_the_host_are_the_same_run(tmp_path_factory):
    runs = [tiny.finished(tmp_path_factory, "vit", f"data.cache={cache}") for cache in ("none", "host")]
    tiny.assert_same_run(*runs)


def spawn(workdir: Path, *overrides: str) -> subprocess.Popen:
    """The same run in a process of its own, slow enough to be hit."""
    flags = ["--config", tiny.spec("vit"), "--workdir", str(workdir), *(f"--config.{each}" for each in overrides)]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", DRIVER, *flags], env=environment, **pipes)


def kill(process: subprocess.Popen) -> int:
    process.kill()
    process.communicate()
    return process.returncode


def finish(process: subprocess.Popen) -> None:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_is_not(tmp_path, finished):
    process = spawn(tmp_path, "data.cache=device")
    while not list(Workdir(tmp_path).checkpoints.glob("*")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.7))
    assert kill(process) == -signal.SIGKILL
    finish(spawn(tmp_path, "data.cache=device"))
    tiny.assert_same_run(tmp_path, finished)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none"])
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path, tmp_path_factory, cache):
    override = f"data.cache={cache}"
    began = time.monotonic()
    finish(spawn(tmp_path / "whole", override))
    whole = time.monotonic() - began
    for _ in range(5):
        process = spawn(tmp_path / "killed", override)
        time.sleep(random.uniform(0.3, 1.0) * whole)
        kill(process)
    finish(spawn(tmp_path / "killed", override))
    tiny.assert_same_run(tmp_path / "killed", tmp_path / "whole")
    tiny.assert_same_run(tmp_path / "killed", tiny.finished(tmp_path_factory, "vit", override))


def test_a_finished_run_says_so_and_trains_nothing_wherever_it_is_started_again(finished, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    monkeypatch.setattr(train, "open_inputs", None)
    elsewhere = "mesh.data=2 mesh.fsdp=2 data.cache=none model.scan=true model.remat=full log.every_steps=4"
    for given in ("data.cache=device", f"{elsewhere} data.threads=2"):
        code, text = tiny.start(finished, "vit", *given.split())
        assert code == 0 and "This run is finished." in text
        assert f"{100 * tiny.result(finished)['test/accuracy']:.2f} %" in text
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_configuration_or_a_file_is_refused(finished, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir .*file is a file; give a folder"):
        tiny.start(tmp_path / "file", "cnn")
    with pytest.raises(UserError, match=r"holds a run of another configuration: seed \(0 .*5 .*\), optim\.lr \(0\.03 "):
        tiny.start(finished, "vit", "optim.lr=0.02", "seed=5")
    with pytest.raises(UserError, match=r"model\.name"):
        tiny.start(finished, "cnn")


def test_a_run_that_was_refused_before_it_trained_may_be_corrected(tmp_path):
    """It leaves its description, which is written before the step is compiled; another tool's file stays what it is."""

    def refuse(*_):
        raise UserError("the device cannot do that")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "compile", refuse)
        with pytest.raises(UserError, match="cannot do that"):
            tiny.start(tmp_path, "vit", "train.steps=2")
    assert Workdir(tmp_path).config_file.exists()
    assert tiny.start(tmp_path, "cnn", "train.steps=2")[0] == 0
    assert Workdir(tmp_path).config() == config.load(tiny.spec("cnn"), ["train.steps=2"])
    with pytest.raises(UserError, match="holds a run of another configuration"):
        tiny.start(tmp_path, "cnn", "train.steps=3")
    (tmp_path / "other").mkdir()
    Workdir(tmp_path / "other").config_file.write_text('{"hidden_size": 3}')
    with pytest.raises(UserError, match="hidden_size"):
        tiny.start(tmp_path / "other", "cnn")


@pytest.mark.slow
def test_a_scanned_run_keeps_its_layers_by_name(tmp_path):
    plain = ["model.embedding_dropout=0", "augment.flip=0", "train.accumulate=1", "train.steps=3"]
    code, text = tiny.start(tmp_path, "vit", *plain, "model.scan=true")
    assert code == 0 and "encoderblock_0..1" in text
    assert any("encoderblock_1" in name for name in tiny.arrays(tmp_path))


@pytest.mark.slow
def test_a_run_resumes_on_another_mesh_from_another_cache_scanned(tmp_path, finished):
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(11, signal.SIGTERM, patch)
        assert tiny.start(tmp_path, "vit", "data.cache=device")[0] == 143
    changed = "mesh.data=2 mesh.fsdp=2 data.cache=none model.scan=true model.remat=full"
    assert tiny.start(tmp_path, "vit", *changed.split())[0] == 0
    ours, theirs = tiny.arrays(tmp_path), tiny.arrays(finished)
    assert ours.keys() == theirs.keys()
    for name in (name for name in ours if "params" in name):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)
    assert tiny.result(tmp_path)["test/loss"] == pytest.approx(tiny.result(finished)["test/loss"], abs=1e-4)


def test_the_workdir_holds_what_the_contract_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.json", "labels.json", "metrics.jsonl", "checkpoints", "predictions.npz", "confusion.json"}
    assert json.loads((finished / "labels.json").read_text()) == list("0123456789")
    assert config.load(str(finished / "config.json")) == config.load(tiny.spec("vit"), ["data.cache=device"])
    found = tiny.result(finished)
    measured = {f"test/{k}" for k in ("accuracy", "top5", "loss", "f1_macro", "ece")}
    counted = {"best_step", "parameters", "flops_per_image", "steps", "seconds", "images_per_second"}
    assert found.keys() >= measured | counted | {"config", "energy_kwh", "device", "warnings"}
    assert found["steps"] == 23 and found["seconds"] > 0 and found["images_per_second"] > 0
    assert (
        found["config"]["model"]["num_classes"] == 10 and found["best_step"] in (9, 18, 23) and found["test_step"] == 23
    )
    assert found["device"].startswith("4 x CPU") and found["skipped_images"] == 0


def test_predictions_and_confusion_are_those_of_the_result(finished):
    found, saved = tiny.result(finished), np.load(finished / "predictions.npz")
    assert saved["logits"].shape == (360, 10) and list(saved["index"]) == list(range(360))
    expected = metrics.of_examples(metrics.per_example(saved["logits"], saved["label"]), saved["label"], 10)
    assert {f"test/{k}": v for k, v in expected.items()} == {k: v for k, v in found.items() if k.startswith("test/")}
    details = json.loads((finished / "confusion.json").read_text())
    matrix = np.array(details["matrix"])
    np.testing.assert_array_equal(matrix.sum(axis=1), np.bincount(saved["label"]))
    assert np.trace(matrix) / 360 == pytest.approx(found["test/accuracy"])
    assert details["per_class_accuracy"]["7"] == pytest.approx(matrix[7, 7] / matrix[7].sum())


def test_metrics_are_written_at_their_steps_with_the_noise_of_the_gradient(finished):
    lines = tiny.metric_lines(finished)
    noise = {line["step"]: line["train/gradient_noise_scale"] for line in lines if "train/loss" in line}
    assert list(noise) == [7, 14, 21, 23] and min(noise.values()) > 0
    assert [line["step"] for line in lines if "val/loss" in line] == [9, 18, 23]
    assert lines[-1]["val/accuracy"] == tiny.result(finished)["val/accuracy"]


def test_slow_steps_are_shown_and_leave_nothing_behind(tmp_path, cnn):
    """Of steps that are slow beside `log.every_seconds`; what is computed, saved and written is the same."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(11, signal.SIGTERM, patch)
        _, first = tiny.start(tmp_path, "cnn", "log.every_seconds=1e-9")
    _, second = tiny.start(tmp_path, "cnn", "log.every_seconds=1e-9")
    shown = [{int(line.split("/")[0]) for line in text.splitlines() if "/23 " in line} for text in (first, second)]
    assert shown[0] - {7} == {*range(1, 6), 8, 9} and shown[1] - {14, 21, 23} == {12, *range(15, 20)}
    tiny.assert_same_run(tmp_path, cnn)


def test_steps_that_take_much_memory_run_one_at_a_time_and_are_the_same(tmp_path, cnn, monkeypatch):
    running, most, looked = [0], [], []
    monkeypatch.setattr(memory, "MUCH", 0.0)
    monkeypatch.setattr(memory.Gaps, "after_step", lambda gaps: looked.append(gaps.step_bytes))
    advance, finished = log.Progress.advance, log.Progress.finished

    def counted(progress, at):
        most.append(at - running[0])
        advance(progress, at)

    def done(progress, at):
        running[0] = at
        finished(progress, at)

    monkeypatch.setattr(log.Progress, "advance", counted)
    monkeypatch.setattr(log.Progress, "finished", done)
    assert tiny.start(tmp_path, "cnn")[0] == 0
    assert set(most) == {0} and len(looked) == 23 and min(looked) > 0
    tiny.assert_same_run(tmp_path, cnn)


def test_a_model_that_learns_is_not_warned_of(cnn):
    assert tiny.result(cnn)["test/accuracy"] > 0.9 and tiny.result(cnn)["warnings"] == []


@pytest.mark.parametrize(
    ("loss", "guessing"),
    [("softmax", "ln(3) = 1.10"), pytest.param("sigmoid", "ln(3) + 2 ln(3/2) = 1.91", marks=pytest.mark.slow)],
)
def test_a_model_that_cannot_learn_is_warned_of(tmp_path, loss, guessing):
    code, text = tiny.start(tmp_path, "cnn", "optim.lr=1e-12", f"task.loss={loss}")
    assert code == 0 and text.count("warning") == len(tiny.result(tmp_path)["warnings"]) >= 1
    assert f" {guessing}, what guessing gives" in tiny.result(tmp_path)["warnings"][0]


def test_a_model_that_predicts_one_class_is_warned_of(tmp_path):
    first_class = "+".join(f"train[{i}:{i + 1}]" for i in range(0, 12, 3))  # labels go round
    code, text = tiny.start(tmp_path, "cnn", f"data.train={first_class}", "train.batch_size=4")
    [warning] = tiny.result(tmp_path)["warnings"]
    assert code == 0 and "100.00 % of the predictions are 'class 0'" in warning
    assert "the class of 35.00 % of the images" in warning and text.count("warning") == 1


@pytest.mark.parametrize("machines", [1, 2])
def test_energy_is_read_and_waiting_for_images_measured_at_each_log_line(tmp_path, monkeypatch, machines):
    """The counters wrap around; and of several machines they tell a part, which is no answer."""
    reads, read = [], Loader.train

    def late(self, *arguments):
        for batch in read(self, *arguments):
            time.sleep(0.05)
            yield batch

    class Counted:
        def __init__(self, platform):
            assert platform == "cpu"

        def kwh(self):
            reads.append(1)
            return 0.25

    monkeypatch.setattr(loop, "Meter", Counted)
    monkeypatch.setattr(loop.distributed, "on_one_machine", lambda: machines == 1)
    monkeypatch.setattr(Loader, "train", late)
    assert tiny.start(tmp_path, "cnn", "log.every_steps=1", "train.steps=7")[0] == 0
    assert len(reads) > 7 and tiny.result(tmp_path)["energy_kwh"] == (0.25 if machines == 1 else None)
    lines = [line for line in log.read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line]
    waited = [line["train/input_wait_fraction"] * 40 / line["train/images_per_second"] for line in lines]
    assert len(lines) == 7 and min(waited[1:]) > 0.049  # the first batch was there before the step was compiled


def test_training_that_diverges_stops_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^the last 14 gradients up to step 14 were not finite: .* lower optim\.lr"):
        tiny.start(tmp_path, "cnn", "optim.lr=1e38", "optim.schedule=constant", "train.max_bad_steps=10")
    lines = [line.split("\t") for line in Workdir(tmp_path).bad_batches_file.read_text().splitlines()]
    assert [step for step, _ in lines] == [f"step {step}" for step in range(1, 15) for _ in range(40)]
    assert all("train record" in name for _, name in lines) and len({name for _, name in lines[:160]}) == 160


def test_without_a_validation_split_a_checkpoint_is_written_each_epoch(tmp_path):
    none = ("data.validation=none", "checkpoint.every_steps=0", "checkpoint.keep_last=9", "train.steps=12")
    assert tiny.start(tmp_path, "cnn", *none)[0] == 0
    assert Workdir(tmp_path).saved_steps() == [5, 10, 12]
    assert tiny.result(tmp_path)["best_step"] is None
    assert not any("val/loss" in line for line in tiny.metric_lines(tmp_path))


def test_a_damaged_checkpoint_costs_steps_not_the_run(tmp_path, cnn, caplog):
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(11, signal.SIGTERM, patch)
        tiny.start(tmp_path, "cnn", "checkpoint.keep_last=2")
    tiny.damage(tmp_path, 11)
    code, text = tiny.start(tmp_path, "cnn")
    assert code == 0 and "checkpoint 11 is damaged" in caplog.text and "resumed at step 9" in text
    tiny.assert_same_run(tmp_path, cnn)


@pytest.mark.slow
def test_streamed_images_are_cropped_on_the_host_and_a_run_resumes_so(tmp_path, monkeypatch):
    crop = ["data.cache=none", "data.crop_on=host", "data.image_size=(4,5)", "augment.crop_area=(0.3,1)"]
    seen = set()
    read = Loader.train

    def watched(self, *arguments):
        for batch in read(self, *arguments):
            seen.add((self.crop is not None, batch["image"].shape))
            yield batch

    monkeypatch.setattr(Loader, "train", watched)
    assert tiny.start(tmp_path / "whole", "cnn", *crop)[0] == 0
    assert seen == {(True, (40, 4, 5, 3))}
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(11, signal.SIGTERM, patch)
        assert tiny.start(tmp_path / "parts", "cnn", *crop)[0] == 143
    assert tiny.start(tmp_path / "parts", "cnn", *crop)[0] == 0
    tiny.assert_same_run(tmp_path / "parts", tmp_path / "whole")

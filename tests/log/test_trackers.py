"""Weights & Biases and MLflow, offline, as the real packages write them."""

import json

import pytest
from PIL import Image

from tests import tiny
from vit_jax import config, log, train
from vit_jax.command import UserError
from vit_jax.log import trackers


def write(workdir, name, at, **options):
    """A run that resumes at step `at`."""
    writer = log.MetricsWriter(workdir, resume_step=at, tensorboard=False, trackers=[name], **options)
    for step in (at + 1, at + 2):
        writer.write(step, {"train/loss": 1 / step, "train/lr": 0.5})
        writer.write(step, {"val/accuracy": step / 10})
    writer.close("stopped")
    log.write_pictures(
        workdir, at + 2, {"confusion": Image.new("L", (20, 10))}, tensorboard=False, trackers=[name], ending="stopped"
    )


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_package_that_is_missing_is_named_before_anything_is_trained(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers.importlib, "import_module", lambda name: exec("import there_is_no_such_package"))
    given = config.load(tiny.spec("cnn"), [f"log.{name}=true"])
    with pytest.raises(UserError, match=rf"log.{name}=True needs the package {name}: pip install 'vit_jax\[{name}\]'"):
        train.train(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_metrics_and_pictures_in_one_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb: pip install -e '.[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for at in (0, 2):
        write(tmp_path, "wandb", at, config={"optim": {"lr": 0.5}})
    number = json.loads((tmp_path / trackers.FILE).read_text())["wandb"]
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert files and all(number in path.name for path in files)
    content = b"".join(path.read_bytes() for path in files)
    assert b"train/loss" in content and b"val/accuracy" in content
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/confusion*.png"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_metrics_and_pictures_in_one_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny: pip install -e '.[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    for at in (0, 2):
        write(tmp_path / "run", "mlflow", at, config={"optim": {"lr": 0.5}})
    number = json.loads((tmp_path / "run" / trackers.FILE).read_text())["mlflow"]
    client = mlflow.MlflowClient()
    history = client.get_metric_history(number, "train/loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in (1, 2, 3, 4)]
    found = client.get_run(number)
    assert found.data.params == {"optim.lr": "0.5"} and found.info.status == "KILLED"
    assert [file.path for file in client.list_artifacts(number)] == ["confusion-2.png", "confusion-4.png"]

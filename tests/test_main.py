"""The command: exit codes, one line for each mistake, the default folder, and imports that stay light."""

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import REPOSITORY
from vit_jax import main
from vit_jax.command import UserError

IMPORT_ALL = """
import importlib, pkgutil, sys, vit_jax
for module in pkgutil.walk_packages(vit_jax.__path__, "vit_jax."):
    importlib.import_module(module.name)
assert len([name for name in sys.modules if name.startswith("vit_jax.")]) > 20
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch", "keras")])
"""


def refused(*flags: str) -> str:
    with pytest.raises(UserError) as mistake:
        main.main(list(flags))
    return str(mistake.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["CONFIG", "--config.train.epochs=many"], "train.epochs='many' is a str, expected a float"),
        (["CONFIG", "--config.optim.lr", "-1"], "optim.lr=-1.0 is not positive"),
        (["CONFIG", "--config.distill.kind=soft"], "distill.kind='soft' changes nothing without distill.teacher;"),
        (["CONFIG", "--workdri=x"], "unrecognized arguments: --workdri=x; see `python -m vit_jax.main --help`"),
        ([], "--config"),
        (["CONFIG", "--config.data.name=no_such_data", "--data_dir=nowhere"], "TFDS has no data set of that name; "),
        (["CONFIG", "--config.train.batch_size=1000"], "larger than the training split of 180 images"),
        (["CONFIG", "--config.train.batch_size=41"], "train.batch_size=41 cannot be divided by 4 devices"),
        (["CONFIG", "--config.mesh.devices=3"], "found 4 devices, expected mesh.devices=3"),
        (["CONFIG", "--config.model.num_classes=5"], "has 3 classes"),
        (["CONFIG", "--config.optim.head_warmup_steps=23"], "head_warmup_steps=23 leaves nothing"),
        (["CONFIG", "--config.model.stages=((5,),(5,),(5,))"], "halves the image 3 times"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, flags, expected):
    monkeypatch.chdir(tmp_path)
    given = [word for flag in flags for word in (["--config", tiny.spec("cnn")] if flag == "CONFIG" else [flag])]
    assert expected in refused(*given)
    assert not list(tmp_path.glob("runs/*/*")), "a mistake that is found before training leaves nothing behind"


def test_a_data_set_that_has_to_be_prepared_elsewhere_says_how(tmp_path):
    message = refused("--config", tiny.spec("cnn"), "--config.data.name=imagenette", "--data_dir", str(tmp_path))
    assert f"data set 'imagenette' is not in {tmp_path} (prepared there: nothing)" in message
    assert "tfds.builder('imagenette'" in message and "download_and_prepare()" in message


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "vit_jax.main", "--config", tiny.spec("cnn"), "--config.optim.step_epoch=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: config has no field 'optim.step_epoch'; did you mean optim.step_epochs")


def test_a_data_set_out_of_reach_is_the_users_error(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy"):  # nobody listens there
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of the first download
    monkeypatch.chdir(tmp_path)
    message = refused("--config", str(REPOSITORY / "configs" / "cifar100.py"), "--data_dir", "data")
    assert "cifar-100-binary.tar.gz" in message and not Path("runs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.slow
def test_a_signal_saves_and_the_exit_code_says_which(tmp_path, number, code):
    flags = ["--config", tiny.spec("cnn"), "--workdir", "run", "--config.train.steps=1000000"]
    process = subprocess.Popen([sys.executable, "-m", "vit_jax.main", *flags], cwd=tmp_path, stdout=subprocess.PIPE)
    with process:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.poll() is None
        process.send_signal(number)
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == code and b"and saved" in printed
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_a_run_in_the_default_folder_with_a_data_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--config", tiny.spec("cnn"), "--data_dir", "prepared", "--config.train.steps=2"]
    assert main.main(flags) == 0
    assert tiny.result(tmp_path / "runs" / "tiny-cnn")["config"]["data"]["data_dir"] == "prepared"


def test_nothing_imports_tensorflow():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"

"""`import vit_jax`: instant, complete, and helpful about what is not there."""

import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

import vit_jax
from tests import tiny
from vit_jax import config, inference
from vit_jax.command import UserError

IMPORTS = """
import sys, vit_jax
print(dir(vit_jax), sorted({"jax", "flax", "numpy", "PIL"} & set(sys.modules)))
vit_jax.list_models()
print("jax" in sys.modules)
for first in ("", "import vit_jax.train", "from vit_jax.train import train as again"):
    for name in [name for name in sys.modules if name.partition(".")[0] == "vit_jax"]:
        del sys.modules[name]
    exec(first)
    from vit_jax import train
    from vit_jax.evaluate import main
    import vit_jax.evaluate
    assert callable(vit_jax.train) and callable(vit_jax.evaluate)
    assert vit_jax.train is sys.modules["vit_jax.train"] is train and train.train
    print("imported")
"""


def test_importing_imports_no_jax_and_train_and_evaluate_are_modules_and_functions_in_any_order():
    found = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout
    light = "['create', 'evaluate', 'list_models', 'list_weights', 'load', 'train'] []"
    assert found.splitlines() == [light, "True", *["imported"] * 3]


def test_models_are_listed():
    assert "vit/B16" in vit_jax.list_models() and "resnet/50" in vit_jax.list_models()
    assert vit_jax.list_models("vit/B*") == ["vit/B8", "vit/B14", "vit/B16", "vit/B32"]


def test_weights_are_listed():
    assert vit_jax.list_weights("vit_b*") == ["vit_b32", "vit_b16", "vit_b8"] and len(vit_jax.list_weights()) > 20


def as_file(spec):
    return spec


def as_config(spec):
    return config.load(spec)


def as_config_dict(spec):
    return ConfigDict(config.to_dict(config.load(spec)))


def as_nested_dict(spec):
    tree = config.to_dict(config.load(spec))
    return {name: tree[name] for name in tree if name not in ("mesh", "augment")}  # these are at their defaults


def test_a_run_is_trained_and_evaluated_from_python(tmp_path):
    """The same run in whatever form its configuration is given: the second finds the first's result."""
    workdir, short = tmp_path / "run", ["train.steps=3", "log.tensorboard=false"]
    for number, form in enumerate((as_nested_dict, as_file, as_config, as_config_dict)):
        output = io.StringIO()
        run = vit_jax.train(form(tiny.spec("cnn")), workdir, short, Console(file=output, width=100))
        assert "test accuracy" in " ".join(output.getvalue().split()) and run.finished
        assert ("This run is finished" in output.getvalue()) == (number > 0)
    found = vit_jax.evaluate(str(workdir))
    assert tiny.result(workdir) == run.metrics and run.metrics["steps"] == found["step"] == 3
    assert found["test/loss"] == pytest.approx(run.metrics["test/loss"], rel=1e-6)
    validation = vit_jax.evaluate(workdir, overrides=["evaluate.split=validation"])
    assert validation["images"] == 20 and validation["validation/loss"] > 0


def test_the_default_folder_is_that_of_the_command(tmp_path, tmp_path_factory, monkeypatch):
    """There it finds a run that is finished."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.finished(tmp_path_factory, "cnn"), tmp_path / "runs" / "tiny-cnn")
    run = vit_jax.train(tiny.spec("cnn"))
    assert run.metrics == tiny.result(tmp_path / "runs" / "tiny-cnn") and len(list((tmp_path / "runs").iterdir())) == 1
    with pytest.raises(UserError, match="a configuration that is no file does not name its folder; give workdir"):
        vit_jax.train(config.load(tiny.spec("cnn")))
    with pytest.raises(UserError, match="optim.lr changes nothing in the evaluation of a finished run"):
        vit_jax.evaluate(tmp_path / "runs" / "tiny-cnn", ["optim.lr=3"])


def test_a_run_is_loaded(tmp_path_factory):
    workdir = tiny.finished(tmp_path_factory, "cnn")
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    found, expected = vit_jax.load(workdir), inference.load(workdir)
    np.testing.assert_array_equal(found.logits(images), expected.logits(images))
    assert vit_jax.load(str(workdir), overrides=["task.loss=sigmoid"]).config.task["loss"] == "sigmoid"


def test_what_is_not_there_is_told():
    with pytest.raises(AttributeError, match=r"no attribute 'crate'; it has create, evaluate, .*, train, and modules"):
        vit_jax.crate  # noqa: B018 - the access is what is tested
    with pytest.raises(UserError, match=r"no field 'widht'; did you mean 'width'"):
        vit_jax.create("vit/B16", widht=3)

"""Every family in onnxruntime, and in a process that imports JAX alone; a run by the command, int8 included."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny
from tests.conftest import REAL_DATA
from tests.export.trained import FAMILIES, images, trained
from tests.test_extend import folder, no_leak, train  # noqa: F401 - fixtures
from vit_jax import inference
from vit_jax.export import command as exporting
from vit_jax.export import export, find_trained, open_exported
from vit_jax.workdir import Workdir

pytest.importorskip("jax2onnx", reason="the extra [onnx] is not installed")
pytestmark = pytest.mark.slow

ALONE = """
import sys
import numpy as np
import jax
for folder in sys.argv[1:]:
    given = np.load(f"{folder}/given.npz")
    exported = jax.export.deserialize(open(f"{folder}/model.stablehlo", "rb").read())
    assert exported.platforms == ("cpu", "cuda", "tpu"), exported.platforms
    for n in (1, 3):
        found = np.asarray(exported.call(given["images"][:n]))
        np.testing.assert_allclose(found, given["expected"][:n], rtol=1e-4, atol=1e-4, err_msg=folder)
assert not {"vit_jax", "flax", "optax"} & set(sys.modules)
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_agrees_in_onnxruntime(family, tmp_path):
    model = trained(family)
    found = export(model, "onnx", tmp_path / "model.onnx", images(3, model.predictor.preprocessing))
    assert found.is_within(1e-4) and found.scale > 0.01


def test_each_family_agrees_where_jax_alone_is_imported(tmp_path):
    for family in FAMILIES:
        model = trained(family)
        given = images(3, model.predictor.preprocessing)
        export(model, "stablehlo", tmp_path / family / "model.stablehlo", given)
        normalised = open_exported(tmp_path / family).given(given)
        np.savez(tmp_path / family / "given.npz", images=normalised, expected=model(given))
    folders = [str(tmp_path / family) for family in FAMILIES]
    done = subprocess.run([sys.executable, "-c", ALONE, *folders], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_task_of_ones_own_is_exported_whole(folder, tmp_path):  # noqa: F811
    """Rotation prediction puts a head of four on its backbone: the graph has it."""
    run = tmp_path / "run"
    train(run, folder, "rotation")
    whole = find_trained(inference.load(run), Workdir(run))
    given = images(3, whole.predictor.preprocessing)
    export(whole, "onnx", tmp_path / "model.onnx", given, with_preprocessing=True)
    assert open_exported(tmp_path)(given).shape == (3, 4)


def test_the_command(tmp_path, tmp_path_factory, capsys):
    """Runs judged by their own test splits: each format of a ViT, and int8 both ways of a CNN.

    The ViT of width 8 has too few numbers for 8 bits: half of its images change their class.
    """
    overrides = ("model.class_token=true", "model.pooling=token", "data.channels=3", "model.norm_epsilon=1e-6")
    run = tiny.finished(tmp_path_factory, "vit", *overrides)
    for form in ("stablehlo", "safetensors", "huggingface"):
        flags = ["--workdir", str(run), "--format", form, "--out", str(tmp_path / form)]
        assert exporting.main(flags) == 0
        assert capsys.readouterr().out.rstrip().endswith("ok"), form
    cnn = str(tiny.finished(tmp_path_factory, "cnn"))
    for kind in ("int8", "int8-static"):
        out = tmp_path / f"{kind}.onnx"
        code = exporting.main(["--workdir", cnn, "--format", "onnx", "--out", str(out), "--quantize", kind])
        printed = capsys.readouterr().out
        assert code == 0 and "accuracy" in printed and "images/s" in printed and printed.endswith("ok\n"), printed
        assert b"Integer" in out.read_bytes() or b"QuantizeLinear" in out.read_bytes()
    about = json.loads((tmp_path / "stablehlo" / "model.stablehlo.preprocessing.json").read_text())
    assert about["class_names"] == [str(digit) for digit in range(10)]


@pytest.mark.skipif(not (REAL_DATA / "fashion_mnist").is_dir(), reason=f"no Fashion-MNIST in {REAL_DATA}")
def test_int8_keeps_the_accuracy_on_real_images(tmp_path, tmp_path_factory):
    """A ViT of Fashion-MNIST, trained for a few steps: 8 bits cost it less than a point on 2,000 test images."""
    given = ("data.name=fashion_mnist", f"data.data_dir={REAL_DATA}", "model.width=64", "model.mlp_dim=128")
    more = ("model.patch_size=7", "train.steps=120", "optim.lr=3e-3", "augment.flip=0", "train.accumulate=1")
    run = tiny.finished(tmp_path_factory, "vit", *given, *more)
    from vit_jax.export import compare

    model = find_trained(inference.load(run), Workdir(run))
    given, labels = compare.split(model.predictor.config, model.predictor.preprocessing, "test", 2000)
    flags = ["--workdir", str(run), "--format", "onnx", "--out", str(tmp_path), "--quantize", "int8"]
    assert exporting.main(flags) == 0
    shares = [
        float((compare.in_batches(one, given, 100).argmax(axis=1) == labels).mean())
        for one in (model, open_exported(tmp_path))
    ]
    assert shares[0] > 0.4 and abs(shares[1] - shares[0]) <= 0.01

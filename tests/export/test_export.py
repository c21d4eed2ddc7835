"""Writing, reading back, comparing: what travels along, what is refused, and what a wrong export is told by."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.conftest import rest_is_slow
from tests.export.trained import NAMES, images, trained
from vit_jax import command
from vit_jax.command import UserError
from vit_jax.data import Preprocessing
from vit_jax.export import About, Differs, compare, export, formats, open_exported
from vit_jax.export import command as exporting
from vit_jax.export.about import from_json, side_file
from vit_jax.export.graph import make_graph

pytest.importorskip("jax2onnx", reason="the extra [onnx] is not installed")


@pytest.fixture(scope="module")
def vit():
    """Scanned, and with a resize on the device: both become part of the graph."""
    return trained("vit", resize=(32, 48), scan=True)


@pytest.mark.parametrize("form", rest_is_slow(["stablehlo", "onnx", "safetensors"]))
def test_a_scanned_model_comes_back_in_each_format(vit, form, tmp_path):
    given = images(3, vit.predictor.preprocessing)
    file = tmp_path / f"x{formats.SUFFIXES[form]}"
    found = export(vit, form, file, given)
    assert found.images == 3 and found.agreement == 1 and found.scale > 0.1
    again = open_exported(file)
    np.testing.assert_allclose(again(given[:2]), vit(given)[:2], rtol=1e-4, atol=1e-4)
    about = json.loads((tmp_path / f"{file.name}.preprocessing.json").read_text())
    assert about["class_names"] == list(NAMES) and about["mean"] == [0.5, 0.4, 0.3] and about["resize"] == [32, 48]
    assert about["view"]["size"] == [20, 30] and about["input_shape"] == [32, 48, 3] and about["dtype"] == "float32"
    assert again.about.loss == "softmax" and again.about.output == "logits" and again.about.step == 17


def test_the_safetensors_of_a_model_are_the_same_bytes_each_time():
    """As the library saves it, the order of the metadata is random."""
    model = trained("cnn")
    graph = make_graph(model)
    assert len({formats.safetensors(graph, model) for _ in range(12)}) == 1


@pytest.mark.slow
def test_onnx_with_preprocessing_takes_pixels_and_holds_its_labels(tmp_path):
    import onnxruntime

    cnn = trained("cnn", resize=(32, 48))
    given = images(3, cnn.predictor.preprocessing)
    export(cnn, "onnx", tmp_path / "model.onnx", given, with_preprocessing=True)
    (tmp_path / "model.onnx.preprocessing.json").unlink()
    assert open_exported(tmp_path).about.class_names == NAMES
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (only,) = session.get_inputs()
    assert (only.name, only.type, only.shape[1:]) == ("images", "tensor(uint8)", [20, 30, 3])
    assert [output.name for output in session.get_outputs()] == ["logits"]
    for n in (1, 2):
        np.testing.assert_allclose(session.run(None, {"images": given[:n]})[0], cnn(given[:n]), rtol=1e-4, atol=1e-4)


def test_a_model_without_a_head_gives_features(tmp_path):
    encoder = trained("vit", classes=0)
    given = images(2, encoder.predictor.preprocessing)
    export(encoder, "stablehlo", tmp_path / "encoder.stablehlo", given)
    again = open_exported(tmp_path / "encoder.stablehlo")
    assert again.about.output == "features" and again.about.class_names == () and again.about.loss == ""
    assert again(given).shape == encoder(given).shape == (2, 32)


def test_an_export_that_differs_is_told(vit, tmp_path, monkeypatch):
    monkeypatch.setitem(formats.BYTES, "safetensors", lambda graph, vit: of(perturbed(graph), vit))
    of, file = formats.safetensors, tmp_path / "x.safetensors"
    with pytest.raises(Differs, match="more than rounding"):
        export(vit, "safetensors", file, images(2, vit.predictor.preprocessing))
    assert not list(tmp_path.iterdir()), "a wrong export stays nowhere"


def perturbed(graph):
    return dataclasses.replace(graph, variables=jax.tree.map(lambda leaf: leaf * 1.01, graph.variables))


def test_differences():
    expected = np.array([[0.0, 10.0, 2.0], [1.0, 0.0, 0.5]])
    found = compare.difference(np.array([[0.0, 10.0, 2.0], [1.0, 0.0, 1.25]]), expected)
    assert (found.images, found.largest, found.scale, found.agreement) == (2, 0.75, 10.0, 0.5)
    assert found.is_within(0.075) and not found.is_within(0.07)
    assert not compare.difference(np.full((2, 3), np.nan), expected).is_within(1e9)
    small = compare.difference(1.01e-3 * expected, 1e-3 * expected)
    assert small.is_within(0.0101) and not small.is_within(0.0099), "a share of the largest output, however small"
    assert compare.difference(0 * expected, 0 * expected).is_within(0.0)


def test_the_last_batch_is_filled_up():
    sizes = []

    def model(part):
        sizes.append(len(part))
        return part.sum(axis=(1, 2, 3))[:, None]

    given = images(5, Preprocessing((2, 3), "crop", 1))
    np.testing.assert_array_equal(compare.in_batches(model, given, 2)[:, 0], given.sum(axis=(1, 2, 3)))
    assert sizes == [2, 2, 2]


def test_what_the_formats_cannot_hold(vit, tmp_path):
    given = images(2, vit.predictor.preprocessing)
    with pytest.raises(UserError, match="--with-preprocessing is for graphs"):
        export(vit, "safetensors", tmp_path / "x.safetensors", given, with_preprocessing=True)
    whole = dataclasses.replace(vit, module=vit.module.clone())
    with pytest.raises(UserError, match="cannot hold what task 'classification' puts on its model"):
        export(whole, "huggingface", tmp_path / "x", given)
    assert not list(tmp_path.iterdir())


def test_a_folder_for_transformers_is_read_back_beside_an_older_export(tmp_path):
    """Not the arrays of an earlier training, which lie in the same folder."""
    fields = {"class_token": True, "pooling": "token", "norm_epsilon": 1e-6, "registers": 0}
    model, older = trained("vit", **fields), trained("vit", **fields, depth=1)
    given = images(2, model.predictor.preprocessing)
    export(older, "stablehlo", tmp_path / "model.stablehlo", given)
    for _ in range(2):  # the second replaces the first
        found = export(model, "huggingface", tmp_path, given)
    assert found.is_within(1e-4) and found.agreement == 1
    again = open_exported(tmp_path)
    np.testing.assert_allclose(again(given), model(given), rtol=1e-4, atol=1e-4)
    assert again.about.class_names == NAMES
    np.testing.assert_allclose(open_exported(tmp_path / "model.stablehlo")(given), older(given), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="would replace the weights of a Hugging Face folder"):
        export(older, "safetensors", tmp_path / "model.safetensors", given)


def test_an_export_destroys_no_run(vit, tmp_path):
    given, run = images(2, vit.predictor.preprocessing), tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "preprocessing.json"):
        (run / name).write_text("{}")
    for form, out in (("onnx", run), ("onnx", run / "model.onnx"), ("stablehlo", run), ("huggingface", run)):
        flags = ["--workdir", str(run), "--format", form, "--out", str(out)]
        with pytest.raises(UserError, match="is the folder of a run, which an export could damage"):
            exporting.main(flags)
    with pytest.raises(UserError, match="is the folder of a run"):
        export(vit, "safetensors", run / "x.safetensors", given)
    (run / "preprocessing.json").unlink()
    with pytest.raises(UserError, match="its config.json is not Hugging Face's"):
        export(vit, "huggingface", run, given)
    (tmp_path / "x.onnx").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        export(vit, "onnx", tmp_path / "x.onnx", given)
    assert [path.name for path in run.iterdir()] == ["config.json"] and (run / "config.json").read_text() == "{}"


def test_int8_that_changes_classes_is_not_kept(tmp_path, monkeypatch, capsys):
    """What the quantizer gives turns each output round."""
    cnn, out = trained("cnn"), tmp_path / "out" / "x.onnx"
    given = images(4, cnn.predictor.preprocessing)
    opposite = dataclasses.replace(cnn, variables=jax.tree.map(np.copy, dict(cnn.variables)))
    head = list(opposite.variables["params"].values())[-1]
    for name, leaf in head.items():
        head[name] = -leaf
    export(opposite, "onnx", tmp_path / "opposite.onnx", given)
    for name, value in {"find_trained": cnn, "_images": (given, None)}.items():
        monkeypatch.setattr(exporting, name, lambda *_, value=value: value)
    monkeypatch.setattr(exporting, "quantize", lambda *_: (tmp_path / "opposite.onnx").read_bytes())
    monkeypatch.setattr(exporting.inference, "load", lambda *_, **__: None)
    flags = ["--weights", "x", "--format", "onnx", "--out", str(out), "--quantize", "int8"]
    assert exporting.main(flags) == command.FAULT
    assert "int8 changes too many classes" in capsys.readouterr().out and not list(out.parent.iterdir())


def test_files_that_are_no_exports(tmp_path):
    with pytest.raises(UserError, match="is no exported model"):
        open_exported(tmp_path)
    with pytest.raises(UserError, match="does not describe an exported model"):
        from_json('{"view": {}}', "x.json")


def test_descriptions_come_back():
    view = Preprocessing((5, 7), "crop", 1, crop_fraction=0.875, interpolation="bicubic")
    about = About("cnn", 3, "logits", ("ä", "b"), "sigmoid", True, (5, 7, 1), view, (9,), "bilinear", (0.5,), (0.25,))
    assert from_json(about.to_json(), "x") == about and about.settings.std == (0.25,)


def test_where_files_go(tmp_path):
    assert exporting._file(tmp_path / "a.onnx", "onnx") == tmp_path / "a.onnx"
    assert exporting._file(tmp_path / "a", "stablehlo") == tmp_path / "a" / "model.stablehlo"
    assert side_file(tmp_path / "a" / "model.stablehlo") == tmp_path / "a" / "model.stablehlo.preprocessing.json"
    with pytest.raises(UserError, match="is not called as --format stablehlo is; expected .*a.stablehlo"):
        exporting._file(tmp_path / "a.onnx", "stablehlo")


def test_flags_that_do_not_fit(tmp_path):
    out = ["--out", str(tmp_path / "x"), "--weights", str(tmp_path)]
    with pytest.raises(UserError, match="--quantize int8 is for --format onnx, not stablehlo"):
        exporting.main([*out, "--format", "stablehlo", "--quantize", "int8"])
    with pytest.raises(UserError, match="--workdir"):
        exporting.main(["--format", "onnx", "--out", "x"])

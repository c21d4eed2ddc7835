"""A trained model, from a run or from published weights: predictions and features of images in any form."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image

from tests import quick, tiny
from tests.pretrained import google_files
from vit_jax import config, inference, models, pretrained, sharding, step, trees
from vit_jax.command import UserError
from vit_jax.data import Preprocessing as HostPreprocessing
from vit_jax.inference import Predictions, Predictor
from vit_jax.pretrained.write import save_huggingface

RNG = np.random.default_rng(0)
VIT = {"patch_size": (5,), "width": 6, "depth": 11, "mlp_dim": 7, "num_heads": 2}  # "10" sorts before "2"


def untrained(name: str, size: tuple[int, int] = (10, 15), **fields) -> Predictor:
    """A model of random values, none of which is zero."""
    settings = models.settings(name, num_classes=4, **fields)
    prepared = config.from_dict({"model": settings, "augment": {"mean": (0.4,), "std": (0.3,)}})
    model, rng = models.create(settings), np.random.default_rng(7)
    looped = models.create({**settings, "scan": False} if "scan" in settings else settings)
    shapes = jax.eval_shape(lambda: step.init_variables(looped, 0, (*size, 3)))
    values = jax.tree.map(lambda leaf: rng.normal(0.3, 0.3, leaf.shape).astype(np.float32), shapes)
    values = jax.tree.map(np.asarray, trees.stack_layers(values)) if settings.get("scan") else values
    return Predictor(prepared, model, values, tuple("abcd"), HostPreprocessing(size, "crop", 3), 0)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory) -> Predictor:
    return inference.load(tiny.finished(tmp_path_factory, "cnn"))


@pytest.fixture(scope="module")
def vit() -> Predictor:
    return untrained("vit", **VIT)


def pictures(n: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *shape), np.uint8)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_probabilities_are_the_softmax_of_the_logits(cnn):
    images = pictures(7, 5, 7, 3)
    found = cnn.predict(images)
    expected = softmax(cnn.logits(images))
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    assert found.probabilities.dtype == np.float32 and len(found) == 7 and found.files == ()
    assert found.labels == [f"class {label}" for label in expected.argmax(axis=1)]


def test_the_best_classes_come_first(cnn):
    found = Predictions(np.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]], np.float32), ("å", "b", "c"))
    assert found.labels == ["b", "å"]
    assert [[name for name, _ in best] for best in found.top(2)] == [["b", "c"], ["å", "c"]]
    with pytest.raises(UserError, match=r"top\(-1\) asks for no class"):
        found.top(-1)
    assert found.top(9)[0] == [
        ("b", float(np.float32(0.7))),
        ("c", float(np.float32(0.2))),
        ("å", float(np.float32(0.1))),
    ]


@pytest.mark.parametrize("loss", ["sigmoid", "multi_hot"])
def test_a_run_trained_with_a_sigmoid_gives_each_class_its_own_probability(loss, tmp_path_factory):
    trained = inference.load(tiny.finished(tmp_path_factory, "cnn"), overrides=[f"task.loss={loss}"])
    images = pictures(3, 5, 7, 3)
    expected = 1 / (1 + np.exp(-trained.logits(images).astype(np.float64)))
    np.testing.assert_allclose(trained.predict(images).probabilities, expected, rtol=1e-5, atol=1e-7)


def test_images_in_any_form_and_of_any_size(cnn, tmp_path):
    arrays = [pictures(1, h, w, 3)[0] for h, w in ((5, 7), (31, 13), (8, 8))]
    images = [Image.fromarray(array) for array in arrays]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(3)]
    expected = cnn.logits(np.stack([cnn.preprocessing(array) for array in arrays]))
    forms = {"arrays": arrays, "images": images, "files": files, "names": list(map(str, files)), "folder": tmp_path}
    for form, given in forms.items():
        found = cnn.predict(given)
        np.testing.assert_allclose(found.probabilities, softmax(expected), rtol=1e-4, err_msg=form)
        assert found.files == (tuple(map(str, files)) if form in ("files", "names", "folder") else ())
    mixed = cnn.predict([arrays[0], images[1], files[2]])
    np.testing.assert_allclose(mixed.probabilities, softmax(expected), rtol=1e-4)
    for one in (images[1], files[1], str(files[1]), arrays[1][None]):
        np.testing.assert_allclose(cnn.predict(one).probabilities, softmax(expected)[1:2], rtol=1e-4)


def test_a_list_of_files_keeps_its_order_and_its_doubles(cnn, tmp_path):
    for name in "ab":
        Image.fromarray(pictures(1, 9, 9, 3)[0]).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / f"{name}.png") for name in "bab"]
    found = cnn.predict(files)
    assert found.files == tuple(files)
    np.testing.assert_array_equal(found.probabilities[0], found.probabilities[2])
    assert np.abs(found.probabilities[0] - found.probabilities[1]).max() > 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_a_pillow_image_is_seen_as_its_file_is(cnn, tmp_path, mode):
    if mode in ("I;16", "I"):
        image = Image.fromarray(RNG.integers(0, 65536, (10, 14), np.uint16)).convert(mode)
    else:
        image = Image.fromarray(pictures(1, 10, 14, 4)[0]).convert("RGBA" if "A" in mode else "RGB").convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I") else "x.png")
    image.save(path)
    np.testing.assert_array_equal(cnn.predict(image).probabilities, cnn.predict(path).probabilities)


def test_a_turned_pillow_image_is_seen_upright(cnn, tmp_path):
    image, exif = Image.fromarray(pictures(1, 14, 10, 3)[0]), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as turned:
        found = cnn.predict(turned)
    upright = cnn.predict(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(found.probabilities, upright.probabilities)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.zeros((5, 7, 3), np.uint8), r"images are uint8\[5, 7, 3\], expected uint8\[n h w c\]; .* image\[None\]"),
        (np.zeros((2, 5, 7, 3), np.float32), r"float32\[5, 7, 3\] is no image"),
        ([np.zeros((5, 7, 4), np.uint8)], r"uint8\[5, 7, 4\] cannot be used as an image: .* 1 or 3 channels, not 4"),
        (Image.new("F", (3, 3)), "floating-point pixels"),
        ("no/such/folder", "no/such/folder is not there"),
        (["no/such/file.png"], r"no/such/file.png cannot be used as an image: .*No such file"),
        ([__file__], r"test_predictor.py cannot be used as an image: .*not an image"),
        ([__file__, np.zeros((5, 7, 3), np.uint8)], r"test_predictor.py cannot be used as an image: .*not an image"),
    ],
)
def test_what_is_no_image_is_told(cnn, images, expected):
    with pytest.raises(UserError, match=expected):
        cnn.predict(images)


def test_a_broken_file_is_left_out_of_a_stream_of_files(cnn, tmp_path):
    for i in range(5):
        Image.fromarray(pictures(1, 9, 9, 3)[0]).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    files = sorted(map(str, tmp_path.iterdir()))
    parts = list(cnn.predict_files(files, batch_size=2))
    assert [predictions.files for predictions, _ in parts] == [tuple(files[:2]), (files[2], files[4])]
    assert [list(broken) for _, broken in parts] == [[], [files[3]]]
    expected = cnn.predict([file for file in files if file != files[3]]).probabilities
    found = np.concatenate([predictions.probabilities for predictions, _ in parts])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone = list(cnn.predict_files(files[3:4]))
    assert len(alone) == 1 and len(alone[0][0]) == 0 and list(alone[0][1]) == [files[3]]


def test_few_sizes_are_compiled_and_none_changes_the_result(tmp_path_factory):
    trained, images = inference.load(tiny.finished(tmp_path_factory, "cnn")), pictures(23, 5, 7, 3)
    expected = trained.predict(images, batch_size=4).probabilities
    assert trained.forward._cache_size() == 1  # the last batch, of three, is padded
    for n in (5, 7, 8):
        np.testing.assert_allclose(trained.predict(images[:n]).probabilities, expected[:n], rtol=1e-5)
    assert trained.forward._cache_size() == 2
    assert trained.predict(images[:0]).probabilities.shape == (0, 3)
    with pytest.raises(UserError, match="batch_size=0 is not positive"):
        trained.predict(images, batch_size=0)


def test_arrays_of_the_models_size_are_not_cropped_again():
    """They may come from a split, which has cropped them already."""
    trained = untrained("vit", **VIT | {"depth": 1})
    view = dataclasses.replace(trained.preprocessing, crop_fraction=0.5)
    trained, images = dataclasses.replace(trained, preprocessing=view), pictures(3, 10, 15, 3)
    normalised = (images / np.float32(255) - np.float32(0.4)) / np.float32(0.3)
    headless = trained.model.clone(num_classes=0)
    expected, features = (
        quick.jit(partial(model.apply, train=False))(trained.variables, normalised)
        for model in (trained.model, headless)
    )
    np.testing.assert_allclose(trained.logits(images), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained.features(images), features, rtol=1e-4, atol=1e-5)
    for form in (images, list(images)):
        np.testing.assert_allclose(trained.predict(form).probabilities, softmax(expected), rtol=1e-4, atol=1e-5)
    grey = images[..., 0]
    repeated = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_allclose(trained.features(list(grey)), trained.features(repeated), rtol=1e-4, atol=1e-5)
    larger = pictures(2, 20, 30, 3)
    cropped = np.stack([view(image) for image in larger])
    np.testing.assert_array_equal(cropped, larger[:, 5:15, 7:22])
    np.testing.assert_allclose(trained.features(larger), trained.features(cropped), rtol=1e-4, atol=1e-5)
    as_picture = trained.features(Image.fromarray(images[0]))
    assert np.abs(as_picture - features[:1]).max() > 1e-3  # a photo that has this size by chance is one as any other


def test_features_are_what_the_head_reads(cnn, vit):
    for trained, d in ((cnn, 17), (vit, 6)):
        images = pictures(3, *trained.preprocessing.shape)
        features, head = trained.features(images, batch_size=2), trained.variables["params"]["head"]
        assert features.shape == (3, d) and features.dtype == np.float32
        expected = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        np.testing.assert_allclose(trained.logits(images), expected, rtol=1e-4, atol=1e-5)


def test_tokens_come_from_the_blocks_asked_for(vit):
    images = pictures(3, 10, 15, 3)
    found = vit.features(images, layers=(-1, 0, 10), batch_size=2)
    assert list(found) == [-1, 0, 10] and {tokens.shape for tokens in found.values()} == {(3, 7, 6)}
    np.testing.assert_array_equal(found[-1], found[10])
    norm = vit.variables["params"]["Transformer"]["encoder_norm"]
    cls = found[-1][:, 0]  # the last of eleven: by name block 9 would be the last
    scaled = (cls - cls.mean(axis=1, keepdims=True)) / np.sqrt(cls.var(axis=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(scaled * norm["scale"] + norm["bias"], vit.features(images), rtol=1e-3, atol=1e-4)
    assert np.abs(found[0] - found[10]).max() > 0.1


def test_a_scanned_model_has_the_same_features(vit):
    scanned, images = untrained("vit", **VIT, scan=True), pictures(2, 10, 15, 3)
    ours, theirs = (trained.features(images, (0, 10, -1)) for trained in (scanned, vit))
    for layer in (0, 10, -1):
        np.testing.assert_allclose(ours[layer], theirs[layer], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scanned.features(images), vit.features(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "fields", "tokens"),
    [
        ("vit", (10, 15), VIT | {"depth": 2, "distillation_token": True, "registers": 3}, (2, 11, 6)),
        (
            "mixer",
            (10, 15),
            {"patch_size": (5,), "width": 6, "depth": 2, "token_mlp_dim": 3, "channel_mlp_dim": 7},
            (2, 6, 6),
        ),
        (
            "visual_transformer",
            (16, 16),
            {"stage_sizes": (1, 1), "bottleneck": False, "modules": 2, "tokens": 3, "mlp_dim": 5},
            (2, 3, 128),
        ),
    ],
)
def test_other_models_have_features_too(name, size, fields, tokens):
    trained = untrained(name, size, **fields)
    images = pictures(2, *trained.preprocessing.shape)
    found = trained.features(images, layers=range(2))
    assert trained.num_blocks == 2 and {found[layer].shape for layer in (0, 1)} == {tokens}
    assert trained.features(images).shape == (2, tokens[-1])


def test_features_of_a_distilled_model_are_the_mean_of_both_tokens():
    trained = untrained("vit", **VIT | {"depth": 1}, distillation_token=True)
    images = pictures(2, 10, 15, 3)
    last = trained.features(images, layers=[0])[0][:, :2]
    norm = trained.variables["params"]["Transformer"]["encoder_norm"]
    scaled = (last - last.mean(axis=2, keepdims=True)) / np.sqrt(last.var(axis=2, keepdims=True) + 1e-6)
    expected = (scaled * norm["scale"] + norm["bias"]).mean(axis=1)
    np.testing.assert_allclose(trained.features(images), expected, rtol=1e-3, atol=1e-4)


def test_layers_that_are_not_there(cnn, vit):
    with pytest.raises(UserError, match=r"layers=\(0, 11\): model 'vit' has no block 11: it has 0 to 10, or -1 to -11"):
        vit.features(pictures(1, 10, 15, 3), layers=(0, 11))
    with pytest.raises(UserError, match=r"model 'cnn' has no block 0: it has none; layers=\(\) gives what its head"):
        cnn.features(pictures(1, 5, 7, 3), layers=(0,))
    assert cnn.num_blocks == 0


@pytest.fixture
def published(tmp_path):
    """A file in the published layout: 15 pixels, patches of 5, 3 blocks, 11 classes."""

    def published(**changes):
        path = tmp_path / "weights.npz"
        np.savez(path, **google_files.random_arrays(google_files.vision_transformer(**changes)))
        return path

    return published


def test_published_weights_are_a_trained_model(published):
    path = published()
    trained, weights = inference.load(path), pretrained.open_weights(str(path))
    known = weights.preprocessing
    assert trained.preprocessing.shape == (15, 15, 3) == (*known.size, 3)
    assert trained.preprocessing.resize == known.resize
    assert trained.class_names == tuple(f"class {i}" for i in range(11)) and trained.step == 0
    assert trained.config.augment.mean == known.mean and trained.config.model == weights.model
    images, arrays = pictures(3, 15, 15, 3), weights.read()
    variables = trees.map_with_name(lambda name, _: arrays[name], trained.variables)
    normalised = (images / np.float32(255) - np.float32(known.mean)) / np.float32(known.std)
    expected = quick.jit(partial(models.create(weights.model).apply, train=False))(variables, normalised)
    np.testing.assert_allclose(trained.logits(images), expected, rtol=1e-4, atol=1e-5)
    assert len(trained.predict(images).top(5)[0]) == 5


def test_a_folder_of_published_weights_is_no_run_and_names_its_classes(tmp_path):
    settings = models.settings("vit", patch_size=(5,), width=6, depth=1, mlp_dim=7, num_heads=2, num_classes=3)
    shapes = pretrained.parameter_shapes(settings, (10, 15, 3))
    flat = {name.removeprefix("params/"): RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    view = pretrained.Preprocessing((10, 15), "stretch", 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3)
    variables = {"params": unflatten_dict(flat, sep="/")}
    save_huggingface(tmp_path, settings, variables, ("cat", "dög", "emu"), view, (10, 15))
    trained = inference.load(tmp_path)
    assert trained.class_names == ("cat", "dög", "emu")
    assert trained.preprocessing == HostPreprocessing((10, 15), "stretch", 3, interpolation="bicubic")
    assert trained.config.augment.std == (0.25,) * 3
    assert set(trained.predict(pictures(2, 31, 17, 3)).labels) <= {"cat", "dög", "emu"}


def test_published_weights_with_overrides(published):
    path, images = str(published()), pictures(2, 15, 15, 3)
    scanned = inference.load(path, overrides=["model.scan=true"])
    np.testing.assert_allclose(scanned.logits(images), inference.load(path).logits(images), rtol=1e-4, atol=1e-5)
    mesh = sharding.make_mesh(sharding.Settings(fsdp=2, tensor=2))
    for parts in (inference.load(path, overrides=given, mesh=mesh) for given in ([], ["model.scan=true"])):
        np.testing.assert_allclose(parts.logits(images), scanned.logits(images), rtol=1e-4, atol=1e-5)
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(parts.variables))
    larger = inference.load(path, overrides=["data.image_size=20", "task.loss=sigmoid"])
    pos_embed = larger.variables["params"]["Transformer"]["posembed_input"]["pos_embedding"]
    assert larger.preprocessing.shape == (20, 20, 3) and pos_embed.shape == (1, 17, 14)
    assert not np.allclose(larger.predict(images).probabilities.sum(axis=1), 1)
    with pytest.raises(UserError, match="patch_size=5 does not divide the image height 17"):
        inference.load(path, overrides=["data.image_size=17"])


def test_weights_without_a_head_have_features_only(published):
    trained, images = inference.load(published(classes=0)), pictures(2, 15, 15, 3)
    assert trained.class_names == () and trained.features(images).shape == (2, 14)
    for ask in (trained.predict, trained.logits, lambda x: list(trained.predict_files([]))):
        with pytest.raises(UserError, match="'vit' have no head and predict nothing; use `features`"):
            ask(images)


def test_addresses_that_hold_nothing(tmp_path, published):
    for address in (tmp_path / "nothing", str(tmp_path)):
        with pytest.raises(UserError, match=r"is neither a run \(it has no config.json .*\) nor published weights: "):
            inference.load(address)
    (tmp_path / "cut.npz").write_bytes(published().read_bytes()[:99])
    with pytest.raises(UserError, match=r"cut.npz is truncated or damaged"):
        inference.load(tmp_path / "cut.npz")


def test_which_checkpoint(tmp_path_factory, published):
    workdir = tiny.finished(tmp_path_factory, "cnn")
    assert inference.load(workdir, use="last").step == 23 == inference.load(workdir).step
    assert inference.load(workdir, use="best").step == tiny.result(workdir)["best_step"]
    with pytest.raises(UserError, match="use='bets' is not last or best"):
        inference.load(workdir, use="bets")
    with pytest.raises(UserError, match=r"use='best' chooses a checkpoint of a run; .* holds published weights"):
        inference.load(published(), use="best")

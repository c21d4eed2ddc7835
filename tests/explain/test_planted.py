"""Methods on models in which one patch decides: where they look, what their numbers sum up to, and bad requests."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from tests.explain import planted
from vit_jax import inference
from vit_jax.command import DONE, UserError
from vit_jax.explain import METHODS, faithfulness, main
from vit_jax.explain.methods import compute, network_of

CLASS_SPECIFIC = [name for name, method in METHODS.items() if method.class_specific]


@pytest.fixture(scope="module")
def seen() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images with a coloured patch that no model was trained on, their classes and where the patch lies."""
    pixels, labels, where = planted.images(40, 1)
    coloured = labels < 3
    return pixels[coloured][:16], labels[coloured][:16], where[coloured][:16]


def share(heat: np.ndarray, where: np.ndarray) -> float:
    """How much of all positive heat lies there; the mean over the images."""
    times = planted.SIDE // heat.shape[1]
    fine = np.maximum(heat.repeat(times, axis=1).repeat(times, axis=2), 0)
    return float(np.mean((fine * where).sum(axis=(1, 2)) / fine.sum(axis=(1, 2))))


@pytest.mark.parametrize("method", CLASS_SPECIFIC)
def test_nine_tenths_of_the_heat_lie_on_the_patch_that_decides(method, seen):
    pixels, labels, where = seen
    model = planted.trained("class_token")
    assert (model.logits(pixels).argmax(axis=1) == labels).all()
    assert share(model.explain(pixels, method), where) >= 0.9
    assert where.mean() == pytest.approx(1 / 16)  # by chance


@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients", "occlusion"])
def test_so_they_do_in_a_cnn(method, seen):
    """A place of the map that Grad-CAM weights sees a few pixels more: heat may lie so far beside the patch."""
    pixels, labels, where = seen
    model = planted.trained("cnn")
    assert (model.logits(pixels).argmax(axis=1) == labels).all()
    near = np.stack([binary_dilation(one, iterations=4 if method == "grad_cam" else 1) for one in where])
    assert share(model.explain(pixels, method), near) >= 0.9


def test_integrated_gradients_are_complete(seen):
    pixels, labels, _ = seen
    model = planted.trained("class_token")
    network = network_of(model)
    found = model.explain(pixels, "integrated_gradients", target=1, steps=48).sum(axis=(1, 2))
    start = np.asarray(network.logits(jnp.zeros((1, planted.SIDE, planted.SIDE, 3))))
    ends = model.logits(pixels)
    rise = (ends[:, 1] - ends.mean(axis=1)) - (start[0, 1] - start.mean())
    assert np.abs(rise).max() > 1
    np.testing.assert_allclose(found, rise, atol=0.02 * np.abs(rise).max())


def test_the_target_decides_what_is_explained(seen):
    pixels, labels, _ = seen
    model = planted.trained("class_token")
    by_name = model.explain(pixels, "occlusion", target=[model.class_names[label] for label in labels])
    np.testing.assert_array_equal(by_name, model.explain(pixels, "occlusion"))
    every = [model.explain(pixels, "occlusion", target=k) for k in range(4)]
    np.testing.assert_array_equal(every[3], model.explain(pixels, "occlusion", target="-"))
    assert by_name.max() > 0.1 and every[3].min() < -0.05
    np.testing.assert_allclose(sum(every), 0, atol=1e-5)  # what one class loses, the others get


def test_batches_do_not_change_results(seen):
    pixels = seen[0][:5]
    model = planted.trained("class_token")
    whole = model.explain(pixels, "rollout")
    np.testing.assert_allclose(model.explain(pixels, "rollout", batch_size=2), whole, rtol=1e-5)


def test_right_heat_is_more_faithful_than_chance(seen):
    pixels, labels, where = seen
    network = network_of(planted.trained("class_token"))

    def true_heat(network, x, targets):
        return (jnp.abs(x).max(axis=-1) > 1).astype(jnp.float32)

    areas = {}
    for name, function in {"true": true_heat, "chance": faithfulness._random}.items():
        both = compute(lambda *given, f=function: faithfulness._curves(f, *given), network, pixels, labels)
        areas[name] = faithfulness.areas(np.moveaxis(both, 0, -1)).mean(axis=1)
    assert areas["true"][0] < 0.15 < areas["chance"][0]
    assert areas["true"][1] > 0.8 > areas["chance"][0]


def test_areas_and_the_table():
    line = np.linspace(1, 0, 33)[None, :, None].repeat(3, axis=2)
    found = faithfulness.areas(np.concatenate([line, np.ones((1, 33, 3))]))
    np.testing.assert_allclose(found, [[0.5] * 3, [1.0] * 3])
    assert faithfulness.table({"rollout": found}).splitlines()[-1] == "| rollout | 0.500 ± 0.000 | 1.000 ± 0.000 |"


def test_a_blurred_image_keeps_its_colour():
    x = jnp.full((1, 32, 48, 3), 0.7)
    np.testing.assert_allclose(np.asarray(faithfulness.blurred(x)), x, rtol=1e-5)


@pytest.mark.parametrize(
    "method, options, said",
    [
        ("rollouts", {}, "method 'rollouts' is unknown; choose from attention, rollout"),
        ("grad_cam", {"target": 4}, "target 4 is out of range: the model has classes 0 to 3"),
        ("grad_cam", {"target": "red"}, "target 'red' is no class of the model; it has r, g, b, -"),
        ("grad_cam", {"target": [0]}, "target has 1 classes for 2 images"),
        ("grad_cam", {"layer": "stage1"}, "layer='stage1' is no layer .* choose from embedding, .*encoderblock_0"),
        ("rollout", {"layer": "x"}, "method 'rollout' has no option 'layer'; it has none"),
        ("attention", {"query": (4, 0)}, r"query=\(4, 0\) is no row and column of the grid of 4x4 patches"),
        ("occlusion", {"window": 17}, "window=17 and stride=0 must be pixels of the image, 16x16"),
        ("occlusion", {"window": 3, "stride": 4}, "stride=4 leaves pixels between squares of 3 pixels .* at most 3"),
        ("occlusion", {"stride": 5}, "stride=5 leaves pixels between squares of 2 pixels"),
        ("integrated_gradients", {"steps": 0}, "steps=0 is not positive"),
        ("integrated_gradients", {"baseline": "white"}, "baseline='white' is unknown; choose mean or black"),
        ("tsne", {}, "method 'tsne' needs at least 4 images, not 2"),
        ("rollout", {"batch_size": 0}, "batch_size=0 is not positive"),
    ],
)
def test_bad_requests(method, options, said):
    with pytest.raises(UserError, match=said):
        planted.trained("class_token").explain(planted.images(2, 0)[0], method, **options)


def test_a_query_may_be_a_list(seen):
    model = planted.trained("class_token")
    found = [model.explain(seen[0][:2], "attention", query=query) for query in ([1, 3], (1, 3))]
    np.testing.assert_array_equal(*found)


def test_a_layer_behind_the_last_attention_gives_zero_maps(seen):
    with pytest.raises(UserError, match="gives zero maps.*leave it out: 'Transformer/encoderblock_0/LayerNorm_0'"):
        planted.trained("class_token").explain(seen[0], "grad_cam", layer="Transformer/encoderblock_0")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(planted.images(5, 2)[0]):
        Image.fromarray(pixels).resize((32, 40)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def as_weights(monkeypatch):
    monkeypatch.setattr(inference, "load", lambda *args, **kwargs: planted.trained("class_token"))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "token_maps"])
def test_the_command_draws_every_method(method, photos, tmp_path, as_weights, capsys):
    out = tmp_path / "x.png"
    words = ["--weights", "here", str(photos), "--method", method, "--out", str(out)]
    assert main(words) == DONE
    picture = Image.open(out)
    assert min(picture.size) > 60 and len(picture.convert("RGB").getcolors(1 << 20)) > 8
    said = capsys.readouterr().out
    assert f"{method}, [" in said and str(out) in said
    expected = {"norms": "0.00% of the tokens are artefacts", "distance": "block 1: ", "grad_cam": "image 1: "}
    assert expected.get(method, "") in said


def test_the_command_writes_arrays(photos, tmp_path, as_weights):
    out = tmp_path / "x.npy"
    method = ["--method", "attention", "--query", "1", "3"]
    assert main(["--weights", "here", str(photos / "0.png"), *method, "--out", str(out)]) == DONE
    found = np.load(out)
    assert found.shape == (1, 1, 2, 4, 4) and found.dtype == np.float32


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--method", "rollout", "--out", "x.png"], "no image is given, which method 'rollout' needs"),
        (["none.jpg", "--method", "rollout", "--out", "x.png"], "none.jpg is not there"),
        (["--method", "positions", "--out", "x.txt"], "--out x.txt does not end in .png, "),
        (["--method", "positions", "--out", "none/x.png"], "cannot write --out none/x.png: No such file"),
        (["--method", "position", "--out", "x.png"], "method 'position' is unknown; choose from"),
        (["--method", "positions", "--beside", "runs/x", "--out", "x.png"], "beside= compares receptive fields"),
        (["--method", "positions", "--colours", "300", "--out", "x.png"], "--colours 300 is not in 0..256"),
    ],
)
def test_mistakes_in_the_command(flags, said, as_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        main(["--weights", "here", *flags])


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        main(["--workdir", str(tmp_path), "--method", "positions", "--out", "x.png"])

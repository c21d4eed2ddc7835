"""Segmentation: losses by hand, where windows lie, what changes nothing of a step, and a run from a folder to masks."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests import quick, street, tiny
from tests.step.small import assert_close, assert_same_bits
from tests.step.small import start as start_of
from vit_jax import augment, config, evaluate, inference, models, optim, predict, sharding, step, tasks, train, trees
from vit_jax.augment import VOID
from vit_jax.command import UserError
from vit_jax.optim.averages import exponential
from vit_jax.tasks.segmentation import evaluation, losses, pictures, task
from vit_jax.train import experiment

N, SHAPE, K = 12, (8, 12, 3), 3
VIEW = augment.Settings(flip=0.5, crop_padding=2, mean=(0.4,), std=(0.3,))
MODEL = models.settings("vit", patch_size=(4,), width=8, depth=2, mlp_dim=10, num_heads=2, qkv_bias=False)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (29, *SHAPE), np.uint8)
MASKS = RNG.integers(0, K, (29, *SHAPE[:2])).astype(np.uint8)
MASKS[RNG.random(MASKS.shape) < 0.1] = VOID
MASKS[3] = VOID  # an image of which nothing is known
INDEX = RNG.permutation(29)[:N].astype(np.int32)
INDEX[0] = 3
BATCH = {"image": jnp.asarray(IMAGES[INDEX]), "mask": jnp.asarray(MASKS[INDEX])}
SGD = optim.create(optim.Settings(name="sgd"))


def task_of(view=VIEW, model=MODEL, shape=SHAPE, **fields) -> task.Segmentation:
    parts = tasks.Parts(models.create(model), shape, ("a", "b", "c"), augment=view, train_augment=view)
    return tasks.create(tasks.settings("segmentation", **fields), parts)


TASK = task_of(dice=0.5, class_weights=(1.0, 2.0, 0.5))


def stepped(task=TASK, batch=BATCH, constants=None, state=None, **options):
    made = step.make_train_step(task, SGD, lambda at, total: jnp.float32(0.1), seed=5, total_steps=9, **options)
    return quick.jit(made)(state, batch, constants or {})


@pytest.fixture(scope="module")
def state():
    return quick.jit(lambda: step.init_state(TASK, SGD, 5, ema=True))()


@pytest.fixture(scope="module")
def after(state):
    return stepped(state=state, average=exponential(0.9))


def test_a_step_moves_the_decoder_and_its_averages(state, after):
    new, metrics = after
    before, now = (x.params["decoder"]["head"]["kernel"] for x in (state, new))
    assert np.abs(now - before).max() > 1e-4 and 0 < metrics["pixel_accuracy"] < 1
    expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, state.params, new.params)
    assert_close(new.ema["params"], expected)


def test_a_batch_by_index_is_the_batch_by_examples_to_the_bit(state, after):
    constants = {"examples": {"image": jnp.asarray(IMAGES), "mask": jnp.asarray(MASKS)}}
    assert_same_bits(
        stepped(batch={"index": jnp.asarray(INDEX)}, constants=constants, state=state, average=exponential(0.9)), after
    )


def test_parts_of_a_batch_give_the_gradients_of_the_whole(state, after):
    found, metrics = stepped(state=state, accumulate=3, average=exponential(0.9))
    assert_close(found.params, after[0].params)
    for name in ("loss", "pixel_accuracy"):
        np.testing.assert_allclose(metrics[name], after[1][name], rtol=1e-5)


@pytest.mark.slow
def test_scanned_layers_are_looped_ones(state, after):
    scanned = task_of(model=MODEL | {"scan": True}, dice=0.5, class_weights=(1.0, 2.0, 0.5))
    start = quick.jit(lambda: step.init_state(scanned, SGD, 5, ema=True))()
    assert_close(trees.unstack_layers(start.params), state.params)
    found, _ = stepped(scanned, state=start, average=exponential(0.9))
    assert_close(trees.unstack_layers(found.params), after[0].params)


@pytest.mark.slow
def test_four_devices_give_the_losses_of_one(state):
    given = config.from_dict({"model": MODEL, "optim": {"lr": 0.1, "name": "sgd", "clip_norm": 1.0}})
    given = dataclasses.replace(given, train=dataclasses.replace(given.train, batch_size=N, steps=9))
    found = {}
    for devices in (1, 4):
        mesh = sharding.make_mesh(sharding.Settings(data=devices), jax.devices()[:devices])
        parts = experiment.compiled_parts(given, TASK, mesh, per_epoch=2, total=9, by_size={})
        places = sharding.tree_shardings(parts["abstract_state"], mesh, models.naming_of(TASK.module).rules)
        at = start_of(state.params, optim.create(given.optim)).replace(ema={})
        at = jax.device_put(jax.tree.map(jnp.copy, at), places)
        compiled = parts["train_step"].lower(at, BATCH, {}).compile(quick.OPTIONS)
        found[devices] = []
        for _ in range(3):
            at, metrics = compiled(at, jax.device_put(BATCH, sharding.batch_sharding(mesh)), {})
            found[devices].append(float(metrics["loss"]))
    assert np.std(found[1]) > 1e-3
    np.testing.assert_allclose(found[4], found[1], rtol=1e-5)


LOGITS = RNG.normal(size=(4, 5, 7, K))
SOME = MASKS[:4, :5, :7]


def test_cross_entropy_by_hand():
    weights = np.array([0.5, 2.0, 3.0])
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=-1, keepdims=True)
    expected = []
    for probabilities, mask in zip(p, SOME, strict=True):
        of_pixels = [
            -weights[k] * np.log(q[k])
            for q, k in zip(probabilities.reshape(-1, K), mask.flat, strict=True)
            if k != VOID
        ]
        expected.append(np.mean(of_pixels) if of_pixels else 0.0)
    assert expected[3] == 0.0 < min(expected[:3])
    found = losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(SOME), jnp.asarray(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_dice_by_hand():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=-1, keepdims=True)
    expected = []
    for probabilities, mask in zip(p, SOME, strict=True):
        q = probabilities[mask != VOID]
        there = [k for k in range(K) if (mask == k).any()]
        of_class = [1 - 2 * q[mask[mask != VOID] == k, k].sum() / (q[:, k].sum() + (mask == k).sum()) for k in there]
        expected.append(np.mean(of_class) if there else 0.0)
    np.testing.assert_allclose(losses.dice(jnp.asarray(LOGITS), jnp.asarray(SOME)), expected, rtol=1e-5)


def test_median_frequency_balancing_by_hand():
    np.testing.assert_allclose(task.balanced(np.array([0.1, 0.4, 0.2, 0.0]), 1.0), [2.0, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(task.balanced(np.array([0.1, 0.4]), 0.5), np.sqrt([2.5, 0.625]))


def test_windows_cover_an_image_evenly():
    assert task.window_starts(10, 10) == [0] and task.window_starts(20, 10) == [0, 5, 10]
    for length, window in ((480, 256), (37, 8)):
        starts = task.window_starts(length, window)
        assert starts[0] == 0 and starts[-1] == length - window and max(np.diff(starts)) <= window // 2 + 1
    with pytest.raises(UserError, match="a window of 11 pixels is larger than the images' 10"):
        task.window_starts(10, 11)


def test_logits_are_those_of_the_windows_that_show_a_pixel(state):
    view, variables = augment.Settings(mean=(0.4,), std=(0.3,), resize=SHAPE[:2]), {"params": state.params}
    in_windows, resized = (task_of(view, evaluation=how) for how in ("windows", "resized"))
    images = RNG.integers(0, 256, (2, 12, 12, 3), np.uint8)
    found = quick.jit(in_windows.predict)(variables, images)
    of_windows = quick.jit(resized.predict)
    upper, lower = of_windows(variables, images[:, :8]), of_windows(variables, images[:, 4:])
    np.testing.assert_allclose(found[:, :4], upper[:, :4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:, 8:], lower[:, 4:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:, 4:8], (upper[:, 4:] + lower[:, :4]) / 2, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_built():
    with pytest.raises(UserError, match="mixup.*masks"):
        task_of(dataclasses.replace(VIEW, mixup=0.5))
    with pytest.raises(UserError, match="has 2 numbers for 3 classes"):
        task_of(class_weights=(1.0, 2.0))
    with pytest.raises(UserError, match="positions fit one size of image only"):
        task_of(dataclasses.replace(VIEW, resize=(8, 8)), evaluation="whole")


def rows(masks: np.ndarray, predicted: np.ndarray, loss: np.ndarray, begin: int = 0) -> dict[str, np.ndarray]:
    counts = np.stack(
        [np.bincount(m[m != VOID] * K + p[m != VOID], minlength=K * K) for m, p in zip(masks, predicted, strict=True)]
    )
    blank = {"boundary": np.zeros((len(masks), K, 4), np.int32), "image": IMAGES[begin : begin + len(masks)]}
    return {"mask": masks, "predicted": predicted, "confusion": counts.reshape(-1, K, K), "loss": loss} | blank


def test_an_evaluation_does_not_depend_on_batches():
    predicted, loss = RNG.integers(0, K, MASKS.shape).astype(np.uint8), RNG.random(29).astype(np.float32)
    whole, parts = (evaluation.MaskEvaluator("abc") for _ in range(2))
    whole.add(rows(MASKS, predicted, loss))
    for begin in range(0, 29, 5):
        some = rows(MASKS[begin : begin + 5], predicted[begin : begin + 5], loss[begin : begin + 5], begin)
        left_out = [name for name, first in task.Segmentation.shown.items() if begin >= first]
        parts.add({name: values for name, values in some.items() if name not in left_out})
    assert parts.scalars() == whole.scalars() and parts.details() == whole.details() and parts.size == 29
    known = MASKS != VOID
    assert whole.scalars()["pixel_accuracy"] == pytest.approx((predicted == MASKS)[known].mean(), rel=1e-12)
    of_pixels = np.repeat(loss.astype(np.float64), known.sum(axis=(1, 2)))
    assert whole.scalars()["loss"] == pytest.approx(of_pixels.mean(), rel=1e-9)
    assert parts.picture().tobytes() == whole.picture().tobytes()


def test_an_evaluation_tells_of_what_it_cannot_measure():
    found = evaluation.MaskEvaluator("abc")
    with pytest.raises(UserError, match="no pixel of a known class"):
        found.scalars()
    with pytest.raises(UserError, match="a mask has the value 3, but the 3 classes are 0 to 2"):
        found.add(rows(MASKS, MASKS % K, np.zeros(29)) | {"mask": np.full_like(MASKS, 3)})
    found.add(rows(MASKS, np.ones_like(MASKS), np.zeros(29)))
    assert "every pixel is taken for 'b'" in found.warnings()[0]


def test_a_mask_is_written_with_its_palette(tmp_path):
    pictures.save_mask(tmp_path / "mask.png", MASKS[0], K)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), MASKS[0])
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pictures.coloured(MASKS[0], K))
    over = pictures.overlay(IMAGES[0], MASKS[0], K)
    np.testing.assert_array_equal(over[MASKS[0] == VOID], IMAGES[0][MASKS[0] == VOID])


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    return street.write(tmp_path_factory.mktemp("streets") / "data", {"train": 16, "val": 3, "test": 5})


def get_config(streets: Path) -> ConfigDict:
    c = config.default()
    c.model = models.settings("vit", patch_size=(4,), width=12, depth=1, mlp_dim=16, num_heads=2, pos_embed="none")
    c.task = tasks.settings("segmentation", evaluation="windows", balance=0.5)
    c.data.name = str(streets)
    c.augment.resize = (16, 24)
    c.augment.flip = 0.5
    c.optim.lr = 2e-2
    c.optim.ema_decay = 0.5
    c.train.batch_size = 8
    c.train.steps = 40
    c.evaluate.every_steps = 20
    c.log.every_steps = 10
    c.log.tensorboard = False
    return c


def start(streets: Path, workdir: Path, *overrides: str) -> train.Result:
    return tiny.train_quietly(get_config(streets), workdir, *overrides)


@pytest.fixture(scope="module")
def finished(streets, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("segmentation") / "run"
    assert start(streets, workdir).exit_code == 0
    return workdir


def test_a_run_learns_streets(finished):
    result = tiny.result(finished)
    assert result["monitor"] == "mean_iou" and result["test/mean_iou"] > 0.6
    assert result["test/pixel_accuracy"] > 0.8 and 0 < result["test/boundary_f1"] < 1
    weights = result["config"]["task"]["class_weights"]
    assert len(weights) == 3 and weights[2] > 1 > min(weights)
    with Image.open(finished / evaluation.PICTURE) as picture:
        assert picture.height == 3 * (120 + 18 + 4) + 4


def test_a_report_shows_the_masks_and_the_classes(finished, tmp_path):
    masks, classes = tasks.TASKS["segmentation"].sections(finished)
    assert masks.picture == finished / evaluation.PICTURE
    found = json.loads((finished / evaluation.DETAILS).read_text())["iou_per_class"]
    assert {name: iou for name, iou, _ in classes.rows} == {k: "none" if v is None else v for k, v in found.items()}
    assert tasks.TASKS["segmentation"].sections(tmp_path) == []


@pytest.mark.slow
def test_a_run_resumes_exactly(streets, finished, tmp_path):
    tiny.assert_resumes(partial(start, streets), tmp_path, finished, at=23)


def test_a_finished_run_is_evaluated_whole(finished):
    found = evaluate.evaluate_run(finished)
    assert found["test/mean_iou"] == pytest.approx(tiny.result(finished)["test/mean_iou"], rel=1e-6)
    assert set(found["iou_per_class"]) == set(street.NAMES) and found["images"] == 5
    details = json.loads((finished / evaluation.DETAILS).read_text())
    assert np.sum(details["confusion"]) == 5 * 23 * 32  # all but the void row


def test_predictions_are_palette_pngs_and_overlays_at_the_original_size(finished, streets, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "more").mkdir(parents=True)
    known, _ = street.pair(200)
    Image.fromarray(known).save(photos / "a.png")
    Image.fromarray(street.pair(7, (31, 50))[0]).save(photos / "more" / "b.jpg")
    (photos / "c.png").write_bytes(b"no image")
    code = predict.main(["--workdir", str(finished), str(photos), "--out", str(out), "--json"])
    printed = capsys.readouterr()
    assert code == 1 and "c.png is left out" in printed.err and "2 masks" in printed.err
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [Path(line["mask"]).relative_to(out).as_posix() for line in lines] == ["a.png", "more/b.png"]
    with Image.open(out / "more" / "b.png") as mask, Image.open(out / "more" / "b-overlay.png") as overlay:
        assert mask.mode == "P" and mask.size == overlay.size == (50, 31) and overlay.mode == "RGB"
    model = inference.load_masks(finished)
    with Image.open(out / "a.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), model.predict([known])[0])
    assert sum(lines[0]["shares"].values()) == pytest.approx(1)
    shapes: list[tuple[int, ...]] = []
    forward = model.forward
    vars(model)["forward"] = lambda variables, seen: shapes.append(seen.shape) or forward(variables, seen)
    found = [one for some, _ in model.predict_files(sorted(photos.rglob("*.*")), 2) for one in some]
    assert [Path(one.name).name for one in found] == ["a.png", "b.jpg"]
    assert [shape[0] for shape in shapes] == [2, 2]
    with pytest.raises(UserError, match="give --out FOLDER"):
        predict.main(["--workdir", str(finished), str(photos)])


def test_masks_replace_no_image_and_no_other_mask(tmp_path):
    files = [tmp_path / name for name in ("a.png", "a.jpg", "b/c.jpg")]
    found = predict._mask_files(files, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in found.values()] == [
        "a.png.png",
        "a.jpg.png",
        "b/c.png",
    ]
    for out, files in ((tmp_path, [tmp_path / "a.png"]), (tmp_path, [tmp_path / "b.jpg", tmp_path / "b-overlay.png"])):
        with pytest.raises(UserError, match="would replace an image"):
            predict._mask_files(files, out)
    clash = [tmp_path / name for name in ("a.jpg", "a-overlay.jpg")]
    with pytest.raises(UserError, match="a.jpg and .*a-overlay.jpg would both be written to .*a-overlay.png"):
        predict._mask_files(clash, tmp_path / "out")


def test_masks_stay_in_their_folder_wherever_images_are(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for outside in ("../a/x.jpg", tmp_path / "a/x.jpg"):
        found = predict._mask_files([Path(outside), Path("b/y.jpg")], Path("out"))
        assert found == {str(outside): Path("out/a/x.png"), "b/y.jpg": Path("out/here/b/y.png")}


def test_its_backbone_starts_another_run(finished, streets):
    """Its arrays fit by their names; the decoder is new."""
    given = config.from_dict(get_config(streets), [f"init.weights={finished}"])
    inputs = train.open_inputs(given)
    theirs = inference.load(finished).variables["params"]
    kernel = inputs.arrays["params/Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"]
    np.testing.assert_array_equal(kernel, theirs["Transformer"]["encoderblock_0"]["MlpBlock_3"]["Dense_0"]["kernel"])
    assert not any("decoder" in name for name in inputs.arrays)

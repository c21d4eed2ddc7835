"""How a segmentation sees an image: whole, at its places; and in several views, of which it takes the mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks.test_segmentation import BATCH, IMAGES, SHAPE, TASK, VIEW, K, N, task_of
from vit_jax import augment, models, tasks
from vit_jax.augment import VOID
from vit_jax.command import UserError
from vit_jax.tasks.segmentation import evaluation, task

CNN = models.settings("resnet/18", width=4, stage_sizes=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("tta", "said"),
    [
        ("flip_shift", "evaluate.tta=flip_shift is not known to this task; choose from none, flip, flip_scales"),
        ("flip_scales", "evaluate.tta=flip_scales needs whole images of any size: choose a CNN with"),
    ],
)
def test_views_that_are_not_averaged_are_refused(tta, said):
    with pytest.raises(UserError, match=said):
        tasks.create(tasks.settings("segmentation"), dataclasses.replace(TASK.parts, tta=tta))


@pytest.mark.parametrize(("tta", "scales"), [("flip", (1.0,)), ("flip_scales", (0.75, 1.0, 1.25))])
def test_views_are_averaged_as_numpy_averages_them(tta, scales):
    """A linear head on pixels stands for the network, so that each view is easily computed by itself."""
    plain = task_of(model=CNN, decoder="fpn", evaluation="whole", boundary=0.1, width=4)
    seen = task.Segmentation(plain.settings, dataclasses.replace(plain.parts, tta=tta))
    head = np.random.default_rng(1).normal(size=(3, K)).astype(np.float32)
    seen._logits = lambda variables, images: (
        jnp.sin(7 * images + jnp.arange(images.shape[2])[None, None, :, None]) @ head
    )
    found = seen.predict_views({}, BATCH["image"])
    total = np.zeros((N, *SHAPE[:2], K))
    images = np.asarray(augment.eval_view(VIEW, BATCH["image"]))
    for scale in scales:
        size = (N, round(8 * scale), round(12 * scale), 3)
        scaled = np.asarray(jax.image.resize(images, size, "linear"))
        for turned in (False, True):
            view = scaled[:, :, ::-1] if turned else scaled
            logits = np.asarray(task.upsampled(seen._logits({}, view), SHAPE[:2]))
            of_view = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
            total += of_view[:, :, ::-1] if turned else of_view
    np.testing.assert_allclose(found, total / (2 * len(scales)), atol=1e-5)
    rows = seen.outputs({}, BATCH, {})
    kept = evaluation.MaskEvaluator(("a", "b", "c"))
    kept.add({name: np.asarray(value) for name, value in {**BATCH, **rows}.items()})
    known = np.asarray(BATCH["mask"]) != VOID
    right = (np.asarray(found).argmax(-1) == np.asarray(BATCH["mask"])) & known
    assert np.trace(kept.confusion_tta) == right.sum() and kept.confusion_tta.sum() == known.sum()
    assert kept.scalars().keys() >= {"mean_iou", "mean_iou_tta"}


def test_the_logits_of_a_whole_image_lie_over_their_places():
    """Means of 32 x 32 pixels of a slope give the slope back, though 32 does not divide the image's height of 116."""
    seen = task_of(model=CNN, decoder="fpn", evaluation="whole", width=4)
    seen._apply = lambda variables, x: x.reshape(1, -1, 32, x.shape[2] // 32, 32, 3).mean(axis=(2, 4))
    slope = np.broadcast_to(np.arange(116, dtype=np.uint8)[None, :, None, None], (1, 116, 70, 3))
    found = np.asarray(seen.predict({}, jnp.asarray(slope)))
    assert found.shape == (1, 116, 70, K)
    expected = np.asarray(augment.eval_view(VIEW, jnp.asarray(slope)))[:, 16:80]
    np.testing.assert_allclose(found[:, 16:80], expected, atol=1e-4)


def test_a_vit_sees_whole_images_as_they_are():
    """Its positions are of a grid, which padding would change."""
    seen, shapes = task_of(evaluation="whole"), []
    seen._apply = lambda variables, x: shapes.append(x.shape) or x[:, ::2, ::2]
    assert seen.predict({}, jnp.asarray(IMAGES[:1])).shape == (1, *SHAPE[:2], K)
    assert shapes == [(1, *SHAPE)]

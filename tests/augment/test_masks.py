"""A mask and its image move alike: where the image shows one label's colour, the mask has this label."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.augment.pictures import PLAIN, keys
from vit_jax import augment
from vit_jax.augment import VOID, Settings, views
from vit_jax.augment.operations import OPERATIONS, WARPS
from vit_jax.augment.policies import apply_policy, apply_policy_to_mask, chosen, draw
from vit_jax.command import UserError

N, H, W, K = 41, 23, 29, 5
RNG = np.random.default_rng(11)
MASKS = RNG.integers(0, K, (N, -(-H // 6), -(-W // 6))).repeat(6, axis=1).repeat(6, axis=2)[:, :H, :W].astype(np.uint8)
COLORS = np.zeros((VOID + 1, 3), np.uint8)  # VOID is black, as is what an image shows beyond its edge
COLORS[:K] = [[250, 10, 30], [20, 240, 60], [40, 70, 230], [220, 200, 15], [160, 90, 200]]
MOVES = dict(rotation=40.0, shear=10.0, zoom=(0.2, 0.4), translation=(0.2,))


def check_aligned(images: np.ndarray, masks: np.ndarray, least: float = 0.3) -> None:
    """Of colours 0..255: at least this share of pixels has one label's colour alone, and all of these its label."""
    distances = np.abs(np.asarray(images, np.float32)[..., None, :] - COLORS[[*range(K), VOID]]).max(axis=-1)
    label = np.array([*range(K), VOID])[distances.argmin(axis=-1)]
    pure = distances.min(axis=-1) < 0.02
    assert pure.mean() > least
    np.testing.assert_array_equal(np.asarray(masks)[pure], label[pure])


@pytest.mark.parametrize(
    "fields",
    [
        dict(resize=(31,)),
        dict(crop_area=(0.2, 1.0), flip=0.5, resize=(19, 37), interpolation="bicubic"),
        dict(crop_area=(0.2, 1.0), interpolation="nearest"),
        *(dict(crop_padding=4, flip=0.5, fill=fill, **MOVES) for fill in ("constant", "nearest", "reflect")),
    ],
    ids=lambda fields: fields.get("fill", "-".join(fields)),
)
def test_geometry_moves_both_alike(fields):
    move = quick.jit(jax.vmap(partial(views.geometry, Settings(**fields))))
    moved = move(keys(N), {"image": COLORS[MASKS], "mask": MASKS})
    assert moved["mask"].dtype == np.uint8 and moved["mask"].shape == moved["image"].shape[:3]
    check_aligned(255 * np.asarray(moved["image"]), moved["mask"])
    assert (np.asarray(moved["mask"]) == VOID).any() == (fields.get("fill") == "constant")
    assert "crop_area" in fields or set(np.unique(moved["mask"])) - {VOID} == set(range(K))


def test_a_policy_moves_both_alike():
    settings, black = Settings(policy="randaugment"), jnp.zeros(3, jnp.uint8)
    images, some_keys = COLORS[MASKS], keys(N)

    def moved(key: jax.Array, image: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
        names, _ = chosen(settings, draw(settings, key), H, W)
        return names, apply_policy(settings, key, image, black), apply_policy_to_mask(settings, key, mask)

    operations, images, masks = map(np.asarray, quick.jit(jax.vmap(moved))(some_keys, images, MASKS))
    only_moved = np.isin(operations, [OPERATIONS.index(name) for name in ("identity", *WARPS)]).all(axis=1)
    changed = (masks != MASKS).any(axis=(1, 2))
    assert (only_moved & changed).sum() > 5 and (masks == VOID).any()
    check_aligned(images[only_moved], masks[only_moved])
    colored = ~np.isin(operations, [OPERATIONS.index(name) for name in WARPS]).any(axis=1)
    assert colored.any() and not changed[colored].any()


def test_examples_keep_their_other_fields_and_a_mask_changes_no_image():
    settings = Settings(crop_padding=2, flip=0.5, mean=(0.5,), std=(0.25,), grey=0.5, cutout=4)
    labels = jnp.arange(N)
    train = quick.jit(partial(augment.train_examples, settings))
    found = train({"image": COLORS[MASKS], "mask": MASKS.astype(np.int32), "label": labels}, keys(N))
    assert set(found) == {"image", "mask", "label"} and found["mask"].dtype == np.int32
    np.testing.assert_array_equal(found["label"], labels)
    alone = quick.jit(partial(augment.train_view, settings))(COLORS[MASKS], keys(N))
    np.testing.assert_allclose(found["image"], alone, atol=1e-5)


def test_with_everything_off_training_and_evaluation_see_the_same_masks():
    settings = Settings(resize=(31, 19), mean=(0.0,), std=(1.0,))
    arrays = {"image": jnp.asarray(COLORS[MASKS]), "mask": jnp.asarray(MASKS)}
    evaluated = quick.jit(partial(augment.eval_examples, settings))(arrays)
    check_aligned(255 * np.asarray(evaluated["image"]), evaluated["mask"])
    trained = quick.jit(partial(augment.train_examples, settings))(arrays, keys(N))
    jax.tree.map(np.testing.assert_array_equal, trained, evaluated)
    same = augment.eval_examples(PLAIN, arrays)["mask"]
    np.testing.assert_array_equal(same, MASKS)


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_masks_are_not_mixed(field):
    augment.check_masks(Settings(policy="randaugment", cutout=4))
    with pytest.raises(UserError, match=rf"augment\.{field}=0\.8: expected 0 \(off\)"):
        augment.check_masks(Settings(**{field: 0.8}))

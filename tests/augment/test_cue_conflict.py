"""Cue conflicts: phases of one image, amplitudes of another."""

import jax.numpy as jnp
import numpy as np

from tests.augment.pictures import pictures
from vit_jax.augment import cue_conflict

# Faint, so that nothing is cut off at 0 or 255; a mean, since a phase of nothing is none.
SHAPES, TEXTURES = (100 + pictures(4, 15, 17)[i : i + 2] // 16 for i in (0, 2))


def spectrum(images) -> np.ndarray:
    return np.fft.fft2(np.asarray(images, np.float64), axes=(1, 2))


def test_phases_are_the_shapes_and_amplitudes_the_textures():
    mixed = spectrum(cue_conflict(SHAPES, TEXTURES))
    luma = np.asarray(SHAPES, np.float64) @ [0.299, 0.587, 0.114]
    expected = np.abs(spectrum(TEXTURES)) * np.exp(1j * np.angle(spectrum(luma[..., None])))
    # Rounded twice: the luma and the result, each by at most 1/2 per pixel.
    strong = np.abs(spectrum(luma[..., None])) > 20
    assert strong.mean() > 0.3
    difference = np.where(strong, np.abs(mixed - expected), 0)
    assert difference.max() < 0.5 * np.abs(expected)[:, 1:, 1:].max() and difference.mean() < 8
    mean = np.asarray(TEXTURES, np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(np.asarray(cue_conflict(SHAPES, TEXTURES)).mean(axis=(1, 2)), mean, atol=0.1)


def test_a_grey_image_with_its_own_texture_is_itself():
    grey = jnp.repeat(SHAPES[:, :, :, :1], 3, axis=3)
    np.testing.assert_array_equal(cue_conflict(grey, grey), grey)
    np.testing.assert_array_equal(cue_conflict(grey[..., :1], grey[..., :1]), grey[..., :1])

"""What TPUs do instead of gathers: against the gathers, and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from vit_jax.augment import operations
from vit_jax.augment.geometry import source_of, warp
from vit_jax.augment.operations import index_of
from vit_jax.augment.shears import slide, warp_square

SIZE = 33
RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
DIAGONAL = np.indices((SIZE, SIZE)).sum(axis=0)[:, :, None]
SMOOTH = (127 + 110 * np.sin(DIAGONAL / np.array([7.0, 9.0, 11.0]))).astype(np.uint8)
matrix_of = quick.jit(lambda operation, argument: operations.matrix_of(operation, argument, SIZE, SIZE))
sheared = quick.jit(warp_square)
gathered = quick.jit(lambda image, matrix: warp(image, matrix, "nearest"))


def differences(name: str, argument: float, image: np.ndarray) -> np.ndarray:
    """Of the values within the image, in units of 1/255."""
    matrix = matrix_of(jnp.asarray(index_of(name)), jnp.float32(argument))
    y, x = source_of(matrix, SIZE, SIZE)
    inside = np.asarray((y >= -0.5) & (y < SIZE - 0.5) & (x >= -0.5) & (x < SIZE - 0.5))
    assert inside.any()
    return np.abs(np.asarray(sheared(image, matrix) - gathered(image, matrix)))[inside]


@pytest.mark.parametrize("name", ["identity", "shear_x", "shear_y", "translate_x", "translate_y"])
@pytest.mark.parametrize("argument", [0.0, 0.27, -0.31, 0.99, 5.3, -7.0])
def test_shears_and_translations_are_bilinear(name: str, argument: float) -> None:
    if not name.startswith("shear") or abs(argument) < 1:
        assert differences(name, argument, NOISE).max() < 1e-3


@pytest.mark.parametrize("degrees", [0.01, 1.0, 12.3, -27.0, 44.0, 46.0, 100.0, -135.0])
def test_rotations_of_a_picture_differ_little(degrees: float) -> None:
    found = differences("rotate", degrees, SMOOTH)
    assert found.max() < 4 and found.mean() < 0.2


@pytest.mark.parametrize("degrees", [0.0, 90.0, -90.0, 180.0])
def test_quarter_turns_are_exact(degrees: float) -> None:
    assert differences("rotate", degrees, NOISE).max() < 0.02


@pytest.mark.parametrize(("first", "width", "reach"), [(0, 9, 9), (-4, 17, 9), (3, 5, 2), (0, 1, 30)])
def test_a_line_slides_as_numpy_interpolates(first: int, width: int, reach: int) -> None:
    x = RNG.standard_normal((6, 9, 2)).astype(np.float32)
    shift = np.array([-reach, -1.75, 0, 0.5, 1.999, reach], np.float32)
    places = first + shift[:, None] + np.arange(width)
    expected = [[np.interp(at, np.arange(9), line[:, c]) for c in range(2)] for at, line in zip(places, x, strict=True)]
    found = slide(jnp.asarray(x), jnp.asarray(shift), first, width, reach)
    np.testing.assert_allclose(found, np.moveaxis(np.array(expected), 1, 2), atol=1e-5)


def test_looking_up_by_products_is_exact() -> None:
    table = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image = np.concatenate([NOISE.reshape(-1, 3), np.repeat(np.arange(256)[:, None], 3, axis=1)])[None].astype(np.uint8)
    found = operations._product_of(jnp.asarray(image), jnp.asarray(table))
    np.testing.assert_array_equal(found, np.stack([table[image[..., c], c] for c in range(3)], axis=-1))


def test_the_tpus_program_has_no_large_gather() -> None:
    """Lowered for it, without one: what is gathered are a few numbers of each image."""
    args = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in
            [((64, 64, 3), jnp.uint8), ((), jnp.int32), ((), jnp.float32), ((3,), jnp.uint8)]]  # fmt: skip
    traced = jax.jit(operations.operate).trace(*args)
    gathers = {
        platform: [line for line in traced.lower(lowering_platforms=(platform,)).as_text().splitlines()
                   if "stablehlo.gather" in line or "dynamic_gather" in line]
        for platform in ("tpu", "cpu")
    }  # fmt: skip
    large = {platform: [line for line in lines if "64x64" in line] for platform, lines in gathers.items()}
    assert large["cpu"] and not large["tpu"]

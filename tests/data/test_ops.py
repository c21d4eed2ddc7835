import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import jpeg, ops

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 11, 3), np.uint8)
GREY = RNG.integers(0, 256, (7, 11, 1), np.uint8)
CORNERS = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)[..., None]  # 2 x 3, all different


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.rint((colour.astype(float) * alpha + 255.0 * (255 - alpha)) / 255)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_decode_to_their_pixels(kind):
    np.testing.assert_array_equal(ops.decode(encoded(Image.fromarray(RGB), kind), 0), RGB)
    np.testing.assert_array_equal(ops.decode(encoded(Image.fromarray(GREY[..., 0]), kind), 0), GREY)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_of_arrays_and_of_files_are_alike_and_pillows(channels):
    for pixels, image in [(RGB, Image.fromarray(RGB)), (GREY, Image.fromarray(GREY[..., 0]))]:
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(7, 11, channels)
        np.testing.assert_array_equal(ops.decode(encoded(image), channels), expected)
        np.testing.assert_array_equal(ops.decode(pixels, channels), expected)


def test_arrays_that_fit_are_not_copied():
    assert ops.decode(RGB, 3) is RGB and ops.decode(RGB, 0) is RGB and ops.decode(GREY, 1) is GREY


def test_alpha_is_composited_on_white():
    alpha = RNG.integers(0, 256, (7, 11, 1), np.uint8)
    rgba = Image.fromarray(np.concatenate([RGB, alpha], -1))
    np.testing.assert_allclose(ops.decode(encoded(rgba), 0), on_white(RGB, alpha), atol=1)
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY[..., 0]), Image.fromarray(alpha[..., 0])])
    found = ops.decode(encoded(grey_alpha), 0)
    assert found.shape == (7, 11, 1)
    np.testing.assert_allclose(found, on_white(GREY, alpha), atol=1)


@pytest.mark.parametrize("mode, transparent", [("L", 20), ("RGB", (20, 20, 20))])
def test_a_transparent_colour_becomes_white(mode, transparent):
    image = Image.fromarray(CORNERS[..., 0]).convert(mode)
    found = ops.decode(encoded(image, transparency=transparent), 1)
    np.testing.assert_array_equal(found[..., 0], [[10, 255, 30], [40, 50, 60]])


def test_palettes_with_and_without_transparency():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("L")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    np.testing.assert_array_equal(ops.decode(encoded(image), 0)[0], [[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    found = ops.decode(encoded(image, transparency=1), 0)
    np.testing.assert_array_equal(found[0], [[255, 0, 0], [255, 255, 255], [0, 0, 255]])


def test_one_bit_images_are_black_and_white():
    bits = np.array([[True, False, True]])
    np.testing.assert_array_equal(ops.decode(encoded(Image.fromarray(bits)), 0)[0, :, 0], [255, 0, 255])


def test_cmyk_becomes_rgb():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    np.testing.assert_allclose(ops.decode(encoded(cyan, "JPEG"), 0)[8, 8], [0, 255, 255], atol=3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_to_8_bits(kind):
    values = np.array([[0, 128, 129, 257, 25700, 65406, 65535]], np.uint16)
    found = ops.decode(encoded(Image.fromarray(values), kind), 0)
    np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 1, 100, 254, 255])


def test_pixels_without_a_range_are_refused():
    with pytest.raises(ops.BrokenImage, match="floating-point"):
        ops.decode(encoded(Image.fromarray(np.zeros((2, 3), np.float32)), "TIFF"), 0)
    with pytest.raises(ops.BrokenImage, match="-1..70000"):
        ops.decode(encoded(Image.fromarray(np.array([[-1, 70000]], np.int32)), "TIFF"), 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (5, 3), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    found = ops.decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options), 3)
    np.testing.assert_array_equal(found, np.broadcast_to(np.array([255, 0, 0], np.uint8), (3, 5, 3)))


# EXIF 2.32, tag 0x0112: where row 0 and column 0 of the stored image lie when it is shown.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once_and_known_from_the_header(tmp_path, kind, orientation):
    stored = np.kron(CORNERS, np.ones((8, 8, 1), np.uint8))  # in JPEG's blocks, so that it hardly loses
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(stored[..., 0]), kind, exif=exif)
    found = ops.decode(data, 0)
    np.testing.assert_allclose(found, UPRIGHT[orientation](stored), atol=2)
    (tmp_path / "image").write_bytes(data)
    assert ops.header_shape(tmp_path / "image") == found.shape


@pytest.mark.parametrize(
    "mode, channels", [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)]
)
def test_the_header_says_what_decode_returns(tmp_path, mode, channels):
    Image.new(mode, (11, 7)).save(tmp_path / "x.png")
    assert ops.header_shape(tmp_path / "x.png") == (7, 11, channels)
    assert ops.decode((tmp_path / "x.png").read_bytes(), 0).shape == (7, 11, channels)


@pytest.mark.parametrize("options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})])
def test_a_truncated_file_never_gives_half_an_image(options):
    kind, more = options
    data = encoded(Image.fromarray(np.kron(RGB, np.ones((3, 3, 1), np.uint8))), kind, **more)
    whole, refused = ops.decode(data, 0), 0
    cuts = range(0, len(data), 17)
    for cut in cuts:
        try:
            np.testing.assert_array_equal(ops.decode(data[:cut], 0), whole)
        except ops.BrokenImage:
            refused += 1
    assert refused >= len(cuts) - 2  # a PNG's last chunk holds no pixels


@pytest.mark.parametrize("data, reason", [(b"", "empty"), (b"not an image at all\n" * 9, "not an image that Pillow")])
def test_what_is_no_image_is_named_so(tmp_path, data, reason):
    with pytest.raises(ops.BrokenImage, match=reason):
        ops.decode(data, 3)
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(ops.BrokenImage, match=r"x\.jpg: not an image"):
        ops.header_shape(Path(tmp_path / "x.jpg"))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="channels=2"):
        ops.decode(RGB, 2)
    with pytest.raises(ValueError, match=r"1 or 3 channels, not 4.*\(2, 3, 4\)"):
        ops.decode(np.zeros((2, 3, 4), np.uint8), 3)


def test_resize_leaves_what_fits():
    assert ops.resize(RGB, (7, 11), "crop") is RGB and ops.resize(RGB, (7, 11), "stretch") is RGB


@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("size", [(5, 3), (13, 17)], ids=["smaller", "larger"])
def test_stretch_is_pillows_antialiased_bilinear(pixels, size):
    expected = Image.fromarray(pixels.squeeze()).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(ops.resize(pixels, size, "stretch").squeeze(), np.asarray(expected))


def test_downscaling_averages_what_it_covers():
    stripes = np.tile(np.array([0, 200], np.uint8)[:, None], (32, 1, 1)).reshape(64, 1, 1).repeat(64, 1)
    np.testing.assert_allclose(ops.resize(stripes, (8, 8), "stretch"), 100, atol=4)  # sampled alone: 0 or 200


@pytest.mark.parametrize("given", [(37, 53), (53, 37), (41, 41), (11, 97)])
@pytest.mark.parametrize("size", [(19, 19), (23, 17), (61, 67)])
def test_crop_is_scaling_the_whole_image_and_then_cutting_the_centre(given, size):
    image = RNG.integers(0, 256, (*given, 3), np.uint8)
    scale = max(size[0] / given[0], size[1] / given[1])
    tall, wide = (max(wanted, round(side * scale)) for wanted, side in zip(size, given, strict=True))
    whole = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BILINEAR))
    top, left = (tall - size[0]) // 2, (wide - size[1]) // 2
    expected = whole[top : top + size[0], left : left + size[1]].astype(int)
    np.testing.assert_allclose(ops.resize(image, size, "crop").astype(int), expected, atol=1)


def test_crop_of_one_side_cuts_the_centre_exactly():
    np.testing.assert_array_equal(ops.resize(RGB, (7, 5), "crop"), RGB[:, 3:8])


def published(image: np.ndarray, size: int, fraction: float, interpolation: str) -> np.ndarray:
    """Shorter side to int(size / fraction), the longer in proportion and cut down to a whole pixel; then the centre."""
    short = int(size / fraction)
    tall, wide = (int(short * side / min(image.shape[:2])) for side in image.shape[:2])
    whole = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling[interpolation.upper()]))
    top, left = (tall - size) // 2, (wide - size) // 2
    return whole[top : top + size, left : left + size]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fraction", [1.0, 0.875, 0.9, 0.5])
@pytest.mark.parametrize("given", [(37, 53), (61, 43), (41, 41), (11, 97), (150, 300), (28, 28)])
def test_a_crop_fraction_is_resizing_and_cropping_as_published_code_does(given, fraction, interpolation):
    image = RNG.integers(0, 256, (*given, 3), np.uint8)
    for size in (28, 19):
        if (fraction, interpolation) != (1.0, "bilinear"):  # which rounds the longer side
            found = ops.resize(image, (size, size), "crop", fraction, interpolation)
            np.testing.assert_array_equal(found, published(image, size, fraction, interpolation))


def test_a_crop_fraction_of_a_rectangle_covers_it():
    image = np.zeros((40, 80, 1), np.uint8)
    image[10:30, 20:60] = 255  # the half in the middle
    np.testing.assert_array_equal(ops.resize(image, (20, 40), "crop", 0.5), np.full((20, 40, 1), 255))


def test_a_crop_fraction_of_a_stretched_image_is_its_centre():
    image = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    whole = Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((3, 3, 17, 17)))
    np.testing.assert_array_equal(ops.resize(image, (14, 14), "stretch", 0.7, "bicubic"), expected)


def test_a_crop_fraction_of_a_strip_does_not_build_the_strip(monkeypatch):
    strip, built = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 2, 3)), []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest, **more: built.append(size) or resize(self, size, *rest, **more)
    )
    expected = ops.resize(strip, (20, 20), "crop", 0.5)
    monkeypatch.setattr(ops, "_MOST_PIXELS", 40 * 4000 - 1)
    np.testing.assert_allclose(ops.resize(strip, (20, 20), "crop", 0.5).astype(int), expected, atol=1)
    assert built == [(40, 4000), (20, 20)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_stretching_is_pillows_filter(interpolation):
    expected = Image.fromarray(RGB).resize((3, 5), Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(ops.resize(RGB, (5, 3), "stretch", interpolation=interpolation), np.asarray(expected))


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without much detail, as JPEG likes it: three waves."""
    y, x = np.mgrid[:height, :width] / 37
    waves = np.stack([np.sin(y + 0.3 * x), np.cos(0.7 * x - y), np.sin(1.3 * y)], -1)
    return np.rint(127.5 + 120 * waves).astype(np.uint8)


@pytest.mark.parametrize("shape", [(320, 480), (317, 475)])
@pytest.mark.parametrize(
    ("at_least", "divisor"),
    [((40, 20), 8), ((39, 59), 8), ((41, 60), 4), ((70, 118), 4), ((150, 100), 2), ((161, 9), 1)],
)
def test_a_reduced_jpeg_is_no_smaller_than_asked_for_and_knows_what_it_fills(shape, at_least, divisor):
    if shape == (317, 475) and at_least == (40, 20):
        divisor = 4  # 317 / 8 is 39.6
    data = encoded(Image.fromarray(smooth(*shape)), "JPEG", quality=95)
    image, extent = ops.decode_reduced(data, 3, at_least)
    assert extent == (shape[0] / divisor, shape[1] / divisor)
    assert image.shape == (-(-shape[0] // divisor), -(-shape[1] // divisor), 3)


@pytest.mark.parametrize("at_least", [None, (3, 3), (40, 60), (80, 100)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("shape", [(161, 213), (160, 216), (9, 300), (1, 1)])
def test_a_jpeg_has_the_pixels_that_pillow_gives(shape, mode, subsampling, progressive, at_least, monkeypatch):
    image = Image.fromarray(smooth(*shape)).convert(mode)
    data = encoded(image, "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
    given = (ops.decode(data, 0),) if at_least is None else ops.decode_reduced(data, 0, at_least)
    assert jpeg.shape(data) == shape and jpeg.decode(data) is not None  # not Pillow itself
    monkeypatch.setattr(jpeg, "shape", lambda data: None)
    pillows = (ops.decode(data, 0),) if at_least is None else ops.decode_reduced(data, 0, at_least)
    np.testing.assert_array_equal(given[0], pillows[0])
    assert given[1:] == pillows[1:]


def test_damaged_jpegs_are_read_or_refused_as_pillow_does(monkeypatch):
    """A byte changed somewhere: most such files still decode, to other pixels."""
    whole = bytearray(encoded(Image.fromarray(smooth(40, 56)), "JPEG"))
    rng, outcomes = np.random.default_rng(0), []
    for place in rng.integers(2, len(whole), 200):
        data = bytes(whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :])
        with monkeypatch.context() as patch:
            given = outcome(data)
            patch.setattr(jpeg, "shape", lambda data: None)
            assert given == outcome(data)
        outcomes.append(given)
    assert {type(o) for o in outcomes} == {bytes, str}


def outcome(data: bytes) -> bytes | str:
    try:
        return ops.decode(data, 0).tobytes()
    except ops.BrokenImage as error:
        return str(error)


@pytest.mark.parametrize("how", ["crop", "stretch"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("shape", [(320, 480), (317, 475)])
def test_a_reduced_jpeg_shows_the_same_picture_in_the_same_place(shape, orientation, how):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(smooth(*shape)), "JPEG", quality=95, exif=exif)
    image, extent = ops.decode_reduced(data, 3, (38, 38))
    assert (image.shape[0] < 100) == (shape == (320, 480) or orientation == 1)
    for size in ((19, 19), (13, 17)):
        found = ops.resize(image, size, how, extent=extent).astype(int)
        np.testing.assert_allclose(found, ops.resize(ops.decode(data, 3), size, how).astype(int), atol=4)


def test_only_jpeg_files_come_reduced_and_broken_ones_are_refused():
    data = encoded(Image.fromarray(smooth(320, 480)))
    image, extent = ops.decode_reduced(data, 0, (10, 10))
    assert extent == image.shape[:2] == (320, 480)
    half = encoded(Image.fromarray(smooth(320, 480)), "JPEG")
    with pytest.raises(ops.BrokenImage):
        ops.decode_reduced(half[: len(half) // 2], 3, (10, 10))

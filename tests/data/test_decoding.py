"""Decoding files of every kind: their pixels, channels, orientation, and what is refused; masks."""

import io
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.images import encoded
from tests.data.images import photo as smooth
from vit_jax.data import decoding, jpeg, resizing

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 11, 3), np.uint8)
GREY = RNG.integers(0, 256, (7, 11, 1), np.uint8)
CORNERS = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)[..., None]  # 2 x 3, all different


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.rint((colour.astype(float) * alpha + 255.0 * (255 - alpha)) / 255)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_decode_to_their_pixels(kind):
    np.testing.assert_array_equal(decoding.decode(encoded(RGB, kind), 0), RGB)
    np.testing.assert_array_equal(decoding.decode(encoded(GREY[..., 0], kind), 0), GREY)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_of_arrays_and_of_files_are_alike_and_pillows(channels):
    for pixels, image in [(RGB, Image.fromarray(RGB)), (GREY, Image.fromarray(GREY[..., 0]))]:
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(7, 11, channels)
        np.testing.assert_array_equal(decoding.decode(encoded(image), channels), expected)
        np.testing.assert_array_equal(decoding.decode(pixels, channels), expected)


def test_arrays_that_fit_are_not_copied():
    assert decoding.decode(RGB, 3) is RGB and decoding.decode(RGB, 0) is RGB and decoding.decode(GREY, 1) is GREY


def test_alpha_is_composited_on_white():
    alpha = RNG.integers(0, 256, (7, 11, 1), np.uint8)
    rgba = Image.fromarray(np.concatenate([RGB, alpha], -1))
    np.testing.assert_allclose(decoding.decode(encoded(rgba), 0), on_white(RGB, alpha), atol=1)
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY[..., 0]), Image.fromarray(alpha[..., 0])])
    found = decoding.decode(encoded(grey_alpha), 0)
    assert found.shape == (7, 11, 1)
    np.testing.assert_allclose(found, on_white(GREY, alpha), atol=1)


@pytest.mark.parametrize("mode, transparent", [("L", 20), ("RGB", (20, 20, 20))])
def test_a_transparent_colour_becomes_white(mode, transparent):
    image = Image.fromarray(CORNERS[..., 0]).convert(mode)
    found = decoding.decode(encoded(image, transparency=transparent), 1)
    np.testing.assert_array_equal(found[..., 0], [[10, 255, 30], [40, 50, 60]])


def test_palettes_with_and_without_transparency():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("L")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    np.testing.assert_array_equal(decoding.decode(encoded(image), 0)[0], [[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    found = decoding.decode(encoded(image, transparency=1), 0)
    np.testing.assert_array_equal(found[0], [[255, 0, 0], [255, 255, 255], [0, 0, 255]])


def test_one_bit_images_are_black_and_white():
    bits = np.array([[True, False, True]])
    np.testing.assert_array_equal(decoding.decode(encoded(bits), 0)[0, :, 0], [255, 0, 255])


def test_cmyk_becomes_rgb():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    np.testing.assert_allclose(decoding.decode(encoded(cyan, "JPEG"), 0)[8, 8], [0, 255, 255], atol=3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_to_8_bits(kind):
    values = np.array([[0, 128, 129, 257, 25700, 65406, 65535]], np.uint16)
    found = decoding.decode(encoded(values, kind), 0)
    np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 1, 100, 254, 255])


def test_pixels_without_a_range_are_refused():
    with pytest.raises(decoding.BrokenImage, match="floating-point"):
        decoding.decode(encoded(np.zeros((2, 3), np.float32), "TIFF"), 0)
    with pytest.raises(decoding.BrokenImage, match="-1..70000"):
        decoding.decode(encoded(np.array([[-1, 70000]], np.int32), "TIFF"), 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (5, 3), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decoding.decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options), 3)
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
    data = encoded(stored[..., 0], kind, orientation)
    found = decoding.decode(data, 0)
    np.testing.assert_allclose(found, UPRIGHT[orientation](stored), atol=2)
    (tmp_path / "image").write_bytes(data)
    assert decoding.header_shape(tmp_path / "image") == found.shape


@pytest.mark.parametrize(
    "mode, channels", [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)]
)
def test_the_header_says_what_decode_returns(tmp_path, mode, channels):
    Image.new(mode, (11, 7)).save(tmp_path / "x.png")
    assert decoding.header_shape(tmp_path / "x.png") == (7, 11, channels)
    assert decoding.decode((tmp_path / "x.png").read_bytes(), 0).shape == (7, 11, channels)


@pytest.mark.parametrize("options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})])
def test_a_truncated_file_never_gives_half_an_image(options):
    kind, more = options
    data = encoded(np.kron(RGB, np.ones((3, 3, 1), np.uint8)), kind, **more)
    whole, refused = decoding.decode(data, 0), 0
    cuts = range(0, len(data), 17)
    for cut in cuts:
        try:
            np.testing.assert_array_equal(decoding.decode(data[:cut], 0), whole)
        except decoding.BrokenImage:
            refused += 1
    assert refused >= len(cuts) - 2  # a PNG's last chunk holds no pixels


@pytest.mark.parametrize("data, reason", [(b"", "empty"), (b"not an image at all\n" * 9, "not an image that Pillow")])
def test_what_is_no_image_is_named_so(tmp_path, data, reason):
    with pytest.raises(decoding.BrokenImage, match=reason):
        decoding.decode(data, 3)
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(decoding.BrokenImage, match=r"x\.jpg: not an image"):
        decoding.header_shape(Path(tmp_path / "x.jpg"))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="channels=2"):
        decoding.decode(RGB, 2)
    with pytest.raises(ValueError, match=r"1 or 3 channels, not 4.*\(2, 3, 4\)"):
        decoding.decode(np.zeros((2, 3, 4), np.uint8), 3)


@pytest.mark.parametrize("shape", [(320, 480), (317, 475)])
@pytest.mark.parametrize(
    ("at_least", "divisor"),
    [((40, 20), 8), ((39, 59), 8), ((41, 60), 4), ((70, 118), 4), ((150, 100), 2), ((161, 9), 1)],
)
def test_a_reduced_jpeg_is_no_smaller_than_asked_for_and_knows_what_it_fills(shape, at_least, divisor):
    if shape == (317, 475) and at_least == (40, 20):
        divisor = 4  # 317 / 8 is 39.6
    data = encoded(smooth(*shape), "JPEG", quality=95)
    image, extent = decoding.decode_reduced(data, 3, at_least)
    assert extent == (shape[0] / divisor, shape[1] / divisor)
    assert image.shape == (-(-shape[0] // divisor), -(-shape[1] // divisor), 3)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("shape", [(161, 213), (160, 216), (9, 300), (1, 1)])
def test_a_jpeg_has_the_pixels_that_pillow_gives(shape, mode, monkeypatch):
    def ways(data: bytes) -> list:
        sizes = ((3, 3), (40, 60), (80, 100))
        return [(decoding.decode(data, 0), None), *(decoding.decode_reduced(data, 0, size) for size in sizes)]

    image = Image.fromarray(smooth(*shape)).convert(mode)
    for subsampling, progressive in itertools.product(("4:4:4", "4:2:2", "4:2:0"), (False, True)):
        data = encoded(image, "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
        assert jpeg.shape(data) == shape and jpeg.decode(data) is not None  # not Pillow itself
        given = ways(data)
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "shape", lambda data: None)
            for (pixels, extent), (pillows, its_extent) in zip(given, ways(data), strict=True):
                np.testing.assert_array_equal(pixels, pillows)
                assert extent == its_extent


def test_damaged_jpegs_are_read_or_refused_as_pillow_does(monkeypatch):
    """A byte changed somewhere: most such files still decode, to other pixels."""
    whole = bytearray(encoded(smooth(40, 56), "JPEG"))
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
        return decoding.decode(data, 0).tobytes()
    except decoding.BrokenImage as error:
        return str(error)


@pytest.mark.parametrize("how", ["crop", "stretch"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("shape", [(320, 480), (317, 475)])
def test_a_reduced_jpeg_shows_the_same_picture_in_the_same_place(shape, orientation, how):
    data = encoded(smooth(*shape), "JPEG", orientation, quality=95)
    image, extent = decoding.decode_reduced(data, 3, (38, 38))
    assert (image.shape[0] < 100) == (shape == (320, 480) or orientation == 1)
    for size in ((19, 19), (13, 17)):
        found = resizing.resize(image, size, how, extent=extent).astype(int)
        np.testing.assert_allclose(found, resizing.resize(decoding.decode(data, 3), size, how).astype(int), atol=4)


def test_only_jpeg_files_come_reduced_and_broken_ones_are_refused():
    data = encoded(smooth(320, 480))
    image, extent = decoding.decode_reduced(data, 0, (10, 10))
    assert extent == image.shape[:2] == (320, 480)
    half = encoded(smooth(320, 480), "JPEG")
    with pytest.raises(decoding.BrokenImage):
        decoding.decode_reduced(half[: len(half) // 2], 3, (10, 10))


def test_a_mask_is_the_class_of_each_pixel():
    classes = np.array([[0, 1, 20], [255, 2, 1]], np.uint8)
    grey, palette = Image.fromarray(classes), Image.fromarray(classes)
    palette.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
    for image, options in ((grey, {}), (palette, {}), (palette, {"transparency": 0})):
        np.testing.assert_array_equal(decoding.decode_mask(encoded(image, **options)), classes)
    few = Image.fromarray(classes % 3)
    few.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    np.testing.assert_array_equal(decoding.decode_mask(encoded(few, bits=2)), classes % 3)
    bits = classes > 1
    np.testing.assert_array_equal(decoding.decode_mask(encoded(bits)), bits)
    assert decoding.decode_mask(classes) is classes


def test_what_is_no_mask_is_refused():
    for image, mode in ((Image.fromarray(RGB), "RGB"), (Image.fromarray(np.zeros((2, 3), np.uint16)), "I;16")):
        with pytest.raises(decoding.BrokenImage, match=f"a mask of mode {mode}; expected 8-bit grey values or a pal"):
            decoding.decode_mask(encoded(image))
    with pytest.raises(decoding.BrokenImage, match="not an image"):
        decoding.decode_mask(b"hello")


def jpeg2000(pixels: np.ndarray, orientation: int, *, long: bool = False) -> bytes:
    """A JP2 file with an EXIF block in its box, as ExifTool and cameras write it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = b"JpgTiffExif->JP2" + exif.tobytes().removeprefix(b"Exif\0\0")
    size = (
        struct.pack(">I4sQ", 1, b"uuid", 16 + len(content)) if long else struct.pack(">I4s", 8 + len(content), b"uuid")
    )
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG2000", irreversible=False)
    plain = file.getvalue()
    header = plain.index(b"jp2c") - 4
    return plain[:header] + size + content + plain[header:]


@pytest.mark.parametrize("long", [False, True])
def test_a_jpeg_2000_file_is_turned_as_its_exif_says(tmp_path, long):
    pixels = np.random.default_rng(3).integers(0, 256, (17, 11, 3), np.uint8)
    for orientation, turned in ((1, pixels), (6, np.rot90(pixels, -1)), (3, np.rot90(pixels, 2))):
        file = jpeg2000(pixels, orientation, long=long)
        np.testing.assert_array_equal(decoding.decode(file, 0), turned)
        (tmp_path / "x.jp2").write_bytes(file)
        assert decoding.header_shape(file) == decoding.header_shape(tmp_path / "x.jp2") == turned.shape

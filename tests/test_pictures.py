from __future__ import annotations

import io
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from sslnlp.pictures import BrokenPicture, decode, whole

RNG = np.random.default_rng(0)
RGB_HWC = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, body: bytes, bits: int = 1) -> bytes:
    """A grey PNG whose header claims this size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_what_was_saved_is_what_is_read(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    got = decode(saved(RGB_HWC, kind, **options))
    assert got.dtype == np.uint8
    assert np.array_equal(got, RGB_HWC)
    got[0, 0] = 0  # it is the caller's own


def test_grey_one_bit_and_one_pixel():
    grey = RNG.integers(0, 256, (3, 4), dtype=np.uint8)
    assert np.array_equal(decode(saved(grey)), np.repeat(grey[..., None], 3, 2))
    assert decode(saved(Image.new("1", (2, 2), 1))).tolist() == [[[255] * 3] * 2] * 2
    assert decode(saved(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


def test_cmyk_is_mixed_to_colours():
    got = decode(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(got.astype(int) - [255, 0, 0]).max() < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert decode(saved(grey, kind))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_are_stretched(dtype):
    grey = np.array([[-1000, 0, 1000]], dtype)
    assert decode(saved(grey, "TIFF"))[0, :, 1].tolist() in ([0, 128, 255], [0, 127, 255])
    assert decode(saved(np.full((2, 2), 7, dtype), "TIFF")).max() == 0  # no contrast at all: no division by 0


def test_transparent_parts_are_white():
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    assert decode(saved(rgba)).tolist() == [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]
    grey = np.array([[[10, 255], [10, 0]]], np.uint8)
    assert decode(saved(grey)).tolist() == [[[10] * 3, [255] * 3]]


def test_a_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 128, 0, 9, 9, 9])
    image.putdata([0, 1])
    assert decode(saved(image)).tolist() == [[[0, 128, 0], [9, 9, 9]]]
    assert decode(saved(image, transparency=1)).tolist() == [[[0, 128, 0], [255, 255, 255]]]
    assert decode(saved(image, transparency=bytes([255, 0]))).tolist() == [[[0, 128, 0], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_put_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(RGB_HWC, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.array_equal(decode(content), upright)
    assert upright.shape == ((5, 7, 3) if orientation < 5 else (7, 5, 3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_bad_exif_says_nothing():
    assert np.array_equal(decode(saved(RGB_HWC, exif=b"Exif\0\0MM\0*\0\0\xff\xff")), RGB_HWC)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert decode(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])).tolist() == [[[255, 0, 0]] * 4] * 4


def test_a_jpeg_is_halved_while_it_is_read():
    smooth = Image.fromarray(RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((1000, 800))
    content = saved(smooth, "JPEG", quality=95)
    assert decode(content).shape == (800, 1000, 3)
    small = decode(content, size=100)
    assert small.shape == (100, 125, 3)
    assert decode(content, size=101).shape == (200, 250, 3)
    exact = np.asarray(smooth.resize((125, 100), Image.Resampling.BOX), int)
    assert np.abs(small - exact).mean() < 2
    assert decode(saved(RGB_HWC), size=2).shape == (5, 7, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"GIF", "not an image"),
        (b"<html>404 Not Found</html>", "not an image"),
        (saved(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")[:900], "truncated"),
        (saved(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))[:900], "truncated"),
        (png(8, 8, b"not zlib"), "damaged|truncated"),
        (saved(RGB_HWC, "EPS"), "a format that is not read"),  # a program, which Pillow would have run
        (png(20_000, 20_000, b""), "too large"),
        (png(8_200, 8_200, b""), "too large"),  # below Pillow's own bound
        (png(1 << 30, 1 << 30, b""), "too large"),
    ],
    ids=["empty", "short", "html", "jpeg", "png", "zlib", "eps", "bomb", "large", "vast"],
)
def test_broken_pictures_have_a_short_reason(content, reason):
    for size in (None, 32):
        with pytest.raises(BrokenPicture, match=f"^({reason})$"):
            decode(content, size=size)


def test_a_bomb_costs_neither_memory_nor_time():
    packer = zlib.compressobj(1)
    line = bytes(1 + 20_000 // 8)
    content = png(20_000, 20_000, b"".join(packer.compress(line) for _ in range(20_000)) + packer.flush())
    assert len(content) < 1 << 20  # and 400 million pixels
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BrokenPicture, match="too large"):
        decode(content)
    assert time.process_time() - start < 0.2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_the_whole_view_is_the_centre():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = RNG.integers(0, 256, (10, 10, 3), dtype=np.uint8)
    assert np.array_equal(whole(wide, 10), wide[:, 10:20])
    assert np.array_equal(whole(wide.transpose(1, 0, 2), 10), wide[:, 10:20].transpose(1, 0, 2))
    assert whole(np.full((1, 1, 3), 9, np.uint8), 4).tolist() == [[[9] * 3] * 4] * 4
    assert whole(np.full((1, 400, 3), 9, np.uint8), 3).shape == (3, 3, 3)


def test_the_whole_view_of_a_large_picture_is_smooth():
    large = np.asarray(Image.fromarray(RGB_HWC).resize((1400, 1000), Image.Resampling.BILINEAR))
    exact = Image.fromarray(large[:, 200:1200]).resize((50, 50), Image.Resampling.BICUBIC)
    assert np.abs(whole(large, 50).astype(int) - np.asarray(exact)).max() <= 2

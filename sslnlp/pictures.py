"""Pictures out of bytes, whatever kind of file they are, and the plain view of one that a model is measured on.

Shapes use H, W = height and width in pixels, 3 = red, green, blue.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

Pixels = npt.NDArray[np.uint8]
"""uint8 [H, W, 3], sRGB as it is written in the file; colour profiles are not applied."""

MAX_PIXELS = 64 << 20
"""A larger picture is refused by what its header says, before memory is taken: 64 Mi pixels are 192 MB as RGB."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Those read of the ones that Pillow knows. The rest are icons, rare, or documents: EPS would run a program."""
WHITE = (255, 255, 255, 255)
REDUCING_GAP = 3.0
"""Much larger pictures are first averaged over whole pixels, to this many times the size: three times quicker at 6 MP,
and hardly to be told from the slow way."""

MEAN, DEVIATION = 0.5, 0.5
"""Pixels from 0 to 1 become (x - MEAN) / DEVIATION, as for every stock ViT."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts a picture upright, for each orientation that EXIF knows but 1, which is upright already."""


class BrokenPicture(ValueError):
    """Bytes that are no picture. The message is a reason in a few words, few enough of them to count by."""


def decode(content: bytes, *, size: int | None = None) -> Pixels:
    """The picture as RGB, upright: uint8 [H, W, 3]. Transparent parts show white, of an animation the first frame.

    Args:
        content: the bytes of a file of one of `FORMATS`.
        size: a JPEG may be halved while it is read, up to three times, as long as its shorter side has at least
            `size` pixels: several times quicker where only a small picture is needed.

    Raises:
        BrokenPicture: `empty`, `not an image`, `truncated`, `damaged`, `too large`, `a format that is not read`.
    """
    if not content:
        raise BrokenPicture("empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format not in FORMATS:
                raise BrokenPicture("a format that is not read")
            if image.width * image.height > MAX_PIXELS:
                raise BrokenPicture("too large")
            if size is not None:
                image.draft(None, (size, size))
            image.load()
            return np.array(_upright(_rgb(image), image))
    except (BrokenPicture, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BrokenPicture("too large") from None
    except UnidentifiedImageError:
        raise BrokenPicture("not an image") from None
    except Exception as error:  # readers of damaged files fail in every way there is: struct, zlib, index, syntax
        raise BrokenPicture("truncated" if "truncated" in str(error).lower() else "damaged") from None


def whole(picture_HWC: Pixels, size: int) -> Pixels:
    """The largest centred square of the picture, resized (bicubic): uint8 [size, size, 3]. What is measured on."""
    height, width = picture_HWC.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return np.array(cut(picture_HWC, size, (left, top, left + side, top + side)))


def cut(picture_HWC: Pixels, size: int, box: tuple[float, float, float, float]) -> Image.Image:
    """The part `box` (left, top, right, bottom; pixels, fractions too), as a Pillow image of `size` × `size`."""
    return Image.fromarray(picture_HWC).resize((size, size), Image.Resampling.BICUBIC, box, REDUCING_GAP)


def normalised(pixels_BHWC: Pixels) -> Tensor:
    """uint8 [B, H, W, 3] as float32 [B, 3, H, W], the way stock ViTs read pictures."""
    pixels_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_BHWC.transpose(0, 3, 1, 2)))
    return (pixels_BCHW.float() / 255 - MEAN) / DEVIATION


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image) -> Pixels:
    """More than 8 bits of grey as 8: [H, W]. Pillow's own conversion would clip them at 255."""
    grey: npt.NDArray[Any] = np.nan_to_num(np.asarray(image).astype(np.float64))
    black, white = 0.0, 65535.0
    if not (image.mode.startswith("I;16") or image.format in ("PNG", "PPM")):  # TIFF: 32 bits, no white of their own
        black, white = float(grey.min()), float(grey.max())
    scaled = (grey - black) * (255 / max(white - black, 1e-9))
    return np.rint(scaled).astype(np.uint8)


def _upright(picture: Image.Image, image: Image.Image) -> Image.Image:
    """`picture` turned as the EXIF of `image` says; EXIF that cannot be read says nothing."""
    try:
        how = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        how = None
    return picture if how is None else picture.transpose(how)

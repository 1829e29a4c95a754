"""Views of a picture for training: each a pure function of (seed, position, view), so nothing is stored or replayed.

Shapes use H, W = height and width in pixels, 3 = red, green, blue. All of it is Pillow on 8-bit pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from sslnlp.errors import UserError
from sslnlp.pictures import Pixels, cut
from sslnlp.rng import uniform

Draws = npt.NDArray[np.float64]

BLUR_AT = 224
"""The size in pixels for which `blur_sigma` is said; smaller views are blurred less, in proportion."""

# Which of a view's draws decides what. A new step takes new places behind, so that the others draw as they did.
_CROP, _FLIP, _JITTER, _GREY, _BLUR, _SOLARISE, _DRAWS = 0, 4, 5, 14, 15, 17, 18


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Crops, flips and recolours a picture: `augment(picture, size, seed, position, view)`.

    Every strength is of the whole picture or of 1; a strength of 0 leaves the step out. The order is crop, flip,
    colours (in random order), grey, blur, solarise, as in SimCLR (Chen et al., 2020, arXiv:2002.05709).

    Raises:
        UserError: a value that is out of bounds, when made.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    """Bounds of the share of the area that a crop keeps; uniform between them."""
    ratio: tuple[float, float] = (1.0, 1.0)
    """Bounds of width / height of a crop; its logarithm is uniform between them, as far as the picture allows."""
    flip: float = 0.0
    """Probability of mirroring left and right. Wrong where texts say left and right, or pictures show writing."""
    jitter: float = 0.0
    """Probability that the colours change at all; each of the next four then does."""
    brightness: float = 0.0
    """A factor from 1 - this to 1 + this."""
    contrast: float = 0.0
    """A factor from 1 - this to 1 + this, about the mean grey of the picture."""
    saturation: float = 0.0
    """A factor from 1 - this to 1 + this, about the picture in grey."""
    hue: float = 0.0
    """Turns the colour circle by this share of it at most, to either side; at most 0.5."""
    grey: float = 0.0
    """Probability of a grey picture."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Bounds of its standard deviation in pixels, for a view of 224 × 224."""
    solarise: float = 0.0
    """Probability that pixels brighter than half are inverted."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a probability, from 0 to 1; got {getattr(self, name)}")
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{name} is a strength, from 0 to {most:g}; got {getattr(self, name)}")
        for name, most in (("scale", 1.0), ("ratio", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most or math.isinf(high):
                bound = f" and at most {most:g}" if math.isfinite(most) else ""
                raise UserError(f"{name} is a lower and an upper bound, both above 0{bound}; got {low}, {high}")

    def __call__(self, picture_HWC: Pixels, size: int, seed: int, position: int, view: int = 0) -> Pixels:
        """One view of the picture (an array or a tensor of the CPU): uint8 [size, size, 3]."""
        draws = uniform(seed, f"augment{view}", [position], _DRAWS)[0]
        pixels: Pixels = np.asarray(picture_HWC)
        height, width = pixels.shape[:2]
        box = crop_box(height, width, self.scale, self.ratio, draws[_CROP : _CROP + 4])
        image = cut(pixels, size, box)
        if draws[_FLIP] < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if draws[_JITTER] < self.jitter:
            image = self._recoloured(image, draws[_JITTER + 1 : _JITTER + 5], draws[_JITTER + 5 : _JITTER + 9])
        if draws[_GREY] < self.grey:
            image = image.convert("L").convert("RGB")
        if draws[_BLUR] < self.blur:
            sigma = _between(self.blur_sigma, draws[_BLUR + 1]) * size / BLUR_AT
            image = image.filter(ImageFilter.GaussianBlur(sigma))
        if draws[_SOLARISE] < self.solarise:
            image = ImageOps.solarize(image)
        return np.array(image)

    def _recoloured(self, image: Image.Image, strength_4: Draws, order_4: Draws) -> Image.Image:
        """The four changes of colour, in the order of `order_4`."""
        for step in np.argsort(order_4).tolist():
            name = ("brightness", "contrast", "saturation", "hue")[step]
            strength, by = getattr(self, name), 2 * float(strength_4[step]) - 1  # from -1 to 1
            if strength == 0:
                continue
            if name == "hue":
                hue, saturation, value = image.convert("HSV").split()
                turn = Image.new("L", image.size, round(by * strength * 255) % 256)
                hue = ImageChops.add_modulo(hue, turn)
                image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
            else:
                image = _ENHANCE[name](image).enhance(1 + by * strength)
        return image


_ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}

IMAGE_TEXT = Augment(scale=(0.6, 1.0), ratio=(3 / 4, 4 / 3))
"""For pictures with captions: a mild crop only, since the text may name colours, sides, and what stands at the edge."""
VIEWS = Augment(
    scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8,
    hue=0.2, grey=0.2, blur=0.5,
)  # fmt: skip
"""For two views of one picture: that of SimCLR at its strength 1 (Chen et al., 2020, appendix A)."""


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draws_4: Draws
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a random crop, in fractions of pixels, inside the picture.

    The share of the area is exactly uniform in `scale` wherever some shape within `ratio` fits: the shape is drawn from
    those that fit, instead of again and again until one does. Where none fits, the largest of the nearest shape.
    """
    share = _between(scale, draws_4[0])
    own = width / height
    # A crop of this share fits when its width / height lies from own × share to own / share.
    low, high = max(ratio[0], own * share), min(ratio[1], own / share)
    if low <= high:
        shape = math.exp(_between((math.log(low), math.log(high)), draws_4[1]))
        area = share * height * width
    else:
        shape = ratio[1] if own > ratio[1] else ratio[0]
        area = height * width * min(own / shape, shape / own)
    w = min(width, max(1.0, math.sqrt(area * shape)))
    h = min(height, max(1.0, math.sqrt(area / shape)))
    left, top = float(draws_4[2]) * (width - w), float(draws_4[3]) * (height - h)
    return left, top, min(width, left + w), min(height, top + h)


def quarter_turn(picture_HWC: Pixels, seed: int, position: int) -> tuple[Pixels, int]:
    """The picture turned left by 0 to 3 quarters, and by how many: what rotation prediction asks for
    (Gidaris et al., 2018, arXiv:1803.07728). A picture that is not square comes out [W, H, 3] for 1 and 3."""
    turns = int(uniform(seed, "quarter_turn0", [position], 1)[0, 0] * 4)
    return np.ascontiguousarray(np.rot90(np.asarray(picture_HWC), turns)), turns


def _between(bounds: tuple[float, float], draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(draw)

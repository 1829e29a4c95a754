from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sslnlp.augment import IMAGE_TEXT, VIEWS, Augment, crop_box, quarter_turn
from sslnlp.errors import UserError
from sslnlp.pictures import whole
from sslnlp.rng import uniform

RNG = np.random.default_rng(0)
PICTURE_HWC = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
SQUARE_HWC = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
DRAWS = 2000


@pytest.mark.parametrize("augment", [IMAGE_TEXT, VIEWS, replace(VIEWS, solarise=0.5, blur=1.0)])
def test_a_view_is_a_function_of_seed_position_and_view(augment):
    forward = {(p, v): augment(PICTURE_HWC, 12, 0, p, v) for p in range(12) for v in (0, 1)}
    for place in reversed(forward):  # in any order, alone or among others
        assert np.array_equal(augment(PICTURE_HWC, 12, 0, *place), forward[place])
    assert all(view.shape == (12, 12, 3) and view.dtype == np.uint8 for view in forward.values())
    assert len({view.tobytes() for view in forward.values()}) == 24
    assert not np.array_equal(augment(PICTURE_HWC, 12, 1, 0), forward[0, 0])


def test_nothing_asked_for_changes_nothing():
    assert np.array_equal(Augment()(SQUARE_HWC, 16, 0, 0), SQUARE_HWC)


def test_a_tensor_is_taken_too():
    assert np.array_equal(VIEWS(torch.from_numpy(PICTURE_HWC), 12, 0, 3), VIEWS(PICTURE_HWC, 12, 0, 3))


def test_a_step_draws_the_same_whatever_else_is_done():
    crops = Augment(scale=(0.3, 1.0))
    flips = replace(crops, flip=1.0)
    for position in range(5):
        assert np.array_equal(crops(SQUARE_HWC, 8, 0, position)[:, ::-1], flips(SQUARE_HWC, 8, 0, position))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_pictures_are_flipped_as_often_as_asked_for(probability):
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[:, 1] = 255
    draws = 1500 if 0 < probability < 1 else 100
    flipped = [Augment(flip=probability)(picture, 2, 0, p)[0, 0, 0] == 255 for p in range(draws)]
    assert np.mean(flipped) == pytest.approx(probability, abs=4 * np.sqrt(probability * (1 - probability) / draws))


@pytest.mark.parametrize(("height", "width"), [(100, 100), (80, 120)])
def test_the_area_of_crops_is_uniform_and_their_shape_within_bounds(height, width):
    draws = uniform(0, "crops", np.arange(DRAWS), 4)
    boxes = np.array([crop_box(height, width, (0.2, 0.6), (0.5, 2.0), draw) for draw in draws])
    left, top, right, bottom = boxes.T
    w, h = right - left, bottom - top
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    share = w * h / (height * width)
    assert share.min() >= 0.2 - 1e-9
    assert share.max() <= 0.6 + 1e-9
    quartiles = np.quantile(share, [0.25, 0.5, 0.75])
    assert quartiles == pytest.approx([0.3, 0.4, 0.5], abs=0.02)
    shape = w / h
    assert shape.min() >= 0.5 - 1e-9
    assert shape.max() <= 2 + 1e-9
    assert shape.max() > 1.8
    assert shape.min() < 0.56
    # Every part of the picture is looked at: crops reach both edges.
    assert left.min() < 1
    assert right.max() > width - 1


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(10, 100, (13.333, 10)), (100, 10, (10, 13.333)), (1, 1, (1, 1))]
)
def test_a_picture_too_long_for_any_shape_gives_the_nearest(height, width, expected):
    left, top, right, bottom = crop_box(height, width, (0.9, 1.0), (3 / 4, 4 / 3), np.full(4, 0.5))
    assert (right - left, bottom - top) == pytest.approx(expected, abs=1e-3)
    assert (left + right, top + bottom) == pytest.approx((width, height))
    assert VIEWS(np.full((height, width, 3), 9, np.uint8), 8, 0, 0).shape == (8, 8, 3)


def test_brightness_is_a_factor():
    grey = np.full((2, 2, 3), 100, np.uint8)
    seen = np.array([Augment(jitter=1.0, brightness=0.4)(grey, 2, 0, p)[0, 0, 0] for p in range(500)])
    assert 60 <= seen.min() < 64
    assert 136 < seen.max() <= 140
    assert seen.mean() == pytest.approx(100, abs=4)


def test_contrast_and_saturation_keep_the_mean_and_the_grey():
    grey = np.repeat(RNG.integers(80, 170, (8, 8, 1), dtype=np.uint8), 3, 2)
    for position in range(20):
        changed = Augment(jitter=1.0, contrast=0.5)(grey, 8, 0, position)
        assert changed.mean() == pytest.approx(grey.mean(), abs=1.5)
        assert np.array_equal(Augment(jitter=1.0, saturation=0.9)(grey, 8, 0, position), grey)
    spread = [Augment(jitter=1.0, contrast=0.5)(grey, 8, 0, p).std() / grey.std() for p in range(200)]
    assert min(spread) == pytest.approx(0.5, abs=0.05)
    assert max(spread) == pytest.approx(1.5, abs=0.05)


def test_hue_turns_the_colours_and_leaves_their_brightness():
    red = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    seen = {tuple(Augment(jitter=1.0, hue=0.5)(red, 2, 0, p)[0, 0].tolist()) for p in range(300)}
    assert {max(colour) for colour in seen} <= {199, 200}
    assert {int(np.argmax(colour)) for colour in seen} == {0, 1, 2}
    mild = [Augment(jitter=1.0, hue=0.1)(red, 2, 0, p)[0, 0] for p in range(200)]
    assert all(np.argmax(colour) == 0 for colour in mild)


def test_the_order_of_the_colour_changes_is_drawn():
    augment = Augment(jitter=1.0, brightness=0.8, contrast=0.8)
    dark = np.array([[[0] * 3, [250] * 3]], np.uint8)
    # Brightness first moves the mean that contrast is taken about: with both orders, black pixels become both.
    blacks = {int(augment(dark, 2, 0, p).min()) > 0 for p in range(200)}
    assert blacks == {True, False}


def test_grey_blur_and_solarise():
    grey = Augment(grey=1.0)(SQUARE_HWC, 16, 0, 0)
    assert (grey[..., :1] == grey).all()
    blurred = Augment(blur=1.0, blur_sigma=(14.0, 14.0))(SQUARE_HWC, 16, 0, 0)  # 1 pixel at this size
    assert 0.1 < blurred.std() / SQUARE_HWC.std() < 0.6
    assert blurred.mean() == pytest.approx(SQUARE_HWC.mean(), abs=4)
    ends = np.array([[[10] * 3, [250] * 3]] * 2, np.uint8)
    assert Augment(solarise=1.0)(ends, 2, 0, 0)[0, :, 0].tolist() == [10, 5]


def test_quarter_turns_are_told_and_equally_likely():
    counts = np.zeros(4)
    for position in range(DRAWS):
        turned, turns = quarter_turn(PICTURE_HWC, 0, position)
        counts[turns] += 1
        if position < 20:
            assert np.array_equal(turned, np.rot90(PICTURE_HWC, turns))
            assert turned.flags.c_contiguous
    assert np.abs(counts / DRAWS - 0.25).max() < 0.04


def test_the_mild_crop_leaves_most_of_the_picture():
    smooth = np.asarray(whole(RNG.integers(0, 256, (3, 3, 3), dtype=np.uint8), 64), int)
    near = [np.abs(IMAGE_TEXT(smooth.astype(np.uint8), 64, 0, p) - smooth).mean() for p in range(50)]
    assert max(near) < 60
    assert np.mean(near) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip is a probability"),
        ({"blur": -0.1}, "blur is a probability"),
        ({"hue": 0.6}, "hue is a strength, from 0 to 0.5"),
        ({"contrast": 2.0}, "contrast is a strength"),
        ({"scale": (0.0, 1.0)}, "scale is a lower and an upper bound, both above 0 and at most 1"),
        ({"scale": (0.5, 1.2)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio is a lower and an upper bound"),
        ({"blur_sigma": (0.1, float("inf"))}, "blur_sigma"),
    ],
)
def test_wrong_strengths(options, message):
    with pytest.raises(UserError, match=message) as caught:
        Augment(**options)
    assert "\n" not in str(caught.value)

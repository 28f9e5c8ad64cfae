from __future__ import annotations

import colorsys
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from torch import Tensor

from sthyper.selftuning import Hyperparameters, _colour
from sthyper.selftuning.augmentation import (
    Augmentation,
    adjust_colour,
    affine_transform,
    augment,
    colour_jitter,
    cut_boxes,
    cutout,
    random_affine,
    random_flip,
    strengths,
    two_views,
)
from sthyper.selftuning.defaults import AUGMENTATIONS, default_space, default_start

LUMA = (0.299, 0.587, 0.114)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(n: int = 4, channels: int = 3, height: int = 5, width: int = 6, dtype: Any = torch.float64) -> Tensor:
    return torch.rand(n, channels, height, width, generator=generator(7), dtype=dtype)


# ---- colour against loops over pixels ------------------------------------------------------------------------


def cut(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def reference_colour(image: np.ndarray, amounts: dict[str, float], order: tuple[str, ...]) -> np.ndarray:
    result = image.copy()
    _, height, width = image.shape
    pixels = list(itertools.product(range(height), range(width)))
    for name in order:
        if name not in amounts:
            continue
        amount = amounts[name]
        gray = {(i, j): sum(part * result[c, i, j] for c, part in enumerate(LUMA)) for i, j in pixels}
        mean = sum(gray.values()) / len(gray)
        for i, j in pixels:
            if name == "hue":
                h, s, v = colorsys.rgb_to_hsv(*result[:, i, j])
                result[:, i, j] = colorsys.hsv_to_rgb((h + amount) % 1.0, s, v)
                continue
            other = {"brightness": 0.0, "contrast": mean, "saturation": gray[i, j]}[name]
            for c in range(3):
                result[c, i, j] = cut(amount * result[c, i, j] + (1 - amount) * other)
    return result


AMOUNTS = {
    "brightness": [0.0, 0.6, 1.9, 1.0],
    "contrast": [2.0, 1.0, 0.3, 0.0],
    "saturation": [0.5, 0.0, 1.0, 1.8],
    "hue": [0.3, -0.45, 0.0, 0.11],
}
ORDERS = [
    ("brightness", "contrast", "saturation", "hue"),
    ("hue", "saturation", "contrast", "brightness"),
    ("saturation", "hue", "brightness", "contrast"),
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_colours_are_those_of_a_loop_over_pixels(order: tuple[str, ...], dtype: torch.dtype, tolerance: float) -> None:
    images = some_images(dtype=dtype)
    changed = adjust_colour(images, **{name: torch.tensor(v) for name, v in AMOUNTS.items()}, order=order)
    assert changed.dtype == dtype
    for b, image in enumerate(images):
        wanted = reference_colour(image.double().numpy(), {n: float(v[b]) for n, v in AMOUNTS.items()}, order)
        # (Amounts are rounded to float32 when they are made.)
        np.testing.assert_allclose(changed[b].numpy(), wanted, atol=max(tolerance, 2e-7), rtol=0)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_alone(name: str) -> None:
    images = some_images()
    amounts: dict[str, Any] = {name: torch.tensor(AMOUNTS[name], dtype=torch.float64)}
    changed = adjust_colour(images, **amounts)
    for b, image in enumerate(images):
        wanted = reference_colour(image.numpy(), {name: AMOUNTS[name][b]}, (name,))
        np.testing.assert_allclose(changed[b].numpy(), wanted, atol=1e-12, rtol=0)
    alone: dict[str, Any] = {name: AMOUNTS[name][1]}
    torch.testing.assert_close(adjust_colour(images, **alone)[1], changed[1])


def test_hue_of_gray_black_and_pure_colours() -> None:
    colours = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.4, 0.4, 0.4), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)]
    images = torch.tensor(colours, dtype=torch.float64).reshape(-1, 3, 1, 1)
    for shift in (-0.5, -1 / 6, 0.25, 1 / 3, 0.5):
        turned = adjust_colour(images, hue=shift).reshape(-1, 3)
        for colour, got in zip(colours, turned, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*colour)
            np.testing.assert_allclose(got, colorsys.hsv_to_rgb((h + shift) % 1.0, s, v), atol=1e-12)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colour_strength_of_zero_is_the_identity_among_others(name: str) -> None:
    images = some_images(64, dtype=torch.float32)
    v = torch.rand(64, generator=generator()) * 0.5
    v[::2] = 0.0
    options: dict[str, Any] = {name: v}
    changed = colour_jitter(images, **options, generator=generator(1))
    assert torch.equal(changed[::2], images[::2])
    assert (changed[1::2] != images[1::2]).flatten(1).any(1).all()


@pytest.mark.parametrize("v", [0.3, 1.0, 1.5])
def test_factors_of_brightness_are_uniform(v: float) -> None:
    n = 4000
    images = torch.full((n, 3, 1, 1), 0.1, dtype=torch.float64)
    per_image = torch.full((n,), v, dtype=torch.float64)
    factors = colour_jitter(images, per_image, generator=generator())[:, 0, 0, 0] / 0.1
    low = max(0.0, 1 - v)
    assert scipy.stats.kstest(factors.numpy(), scipy.stats.uniform(low, 1 + v - low).cdf).pvalue > 1e-3
    # One number for all images means one for each draw, not one draw for all.
    one = colour_jitter(images, v, generator=generator())[:, 0, 0, 0] / 0.1
    torch.testing.assert_close(one, factors)


@pytest.mark.parametrize("name", ["contrast", "saturation"])
def test_factors_of_contrast_and_saturation_are_uniform(name: str) -> None:
    n, v = 4000, 0.8
    images = torch.tensor([[0.4, 0.5, 0.45], [0.5, 0.4, 0.55]], dtype=torch.float64).T.reshape(1, 3, 1, 2)
    options: dict[str, Any] = {name: torch.full((n,), v, dtype=torch.float64)}
    changed = colour_jitter(images.expand(n, 3, 1, 2), **options, generator=generator())
    gray = sum(part * images[0, c, 0] for c, part in enumerate(LUMA))
    assert isinstance(gray, Tensor)
    middle = gray.mean() if name == "contrast" else gray[0]
    factors = (changed[:, 0, 0, 0] - middle) / (images[0, 0, 0, 0] - middle)
    assert scipy.stats.kstest(factors.numpy(), scipy.stats.uniform(1 - v, 2 * v).cdf).pvalue > 1e-3


def test_shifts_of_the_hue_are_uniform_and_at_most_half_a_turn() -> None:
    n = 3000
    red = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).reshape(1, 3, 1, 1).expand(n, 3, 1, 1)
    for v, reach in ((0.2, 0.2), (0.9, 0.5)):
        turned = colour_jitter(red, hue=torch.full((n,), v), generator=generator())
        hues = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in turned.reshape(n, 3).tolist()])
        shifts = (hues + 0.5) % 1.0 - 0.5
        assert scipy.stats.kstest(shifts, scipy.stats.uniform(-reach, 2 * reach).cdf).pvalue > 1e-3


def test_each_call_draws_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    monkeypatch.setattr(_colour, "adjust_colour", lambda images, *, order, **_: orders.append(tuple(order)) or images)
    source = generator()
    for _ in range(400):
        colour_jitter(some_images(1), 0.1, generator=source)
    counts = {order: orders.count(order) for order in itertools.permutations(_colour.COLOUR_OPERATIONS)}
    assert sum(counts.values()) == 400
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_colour_errors() -> None:
    images = some_images()
    with pytest.raises(ValueError, match=r"three channels"):
        colour_jitter(images[:, :1], 0.1)
    with pytest.raises(ValueError, match=r"brightness must be at least 0, got -0.1"):
        colour_jitter(images, -0.1)
    with pytest.raises(ValueError, match=r"contrast has 3 numbers"):
        colour_jitter(images, contrast=torch.zeros(3))
    with pytest.raises(ValueError, match=r"hue has 3 numbers for 4 images"):
        adjust_colour(images, hue=torch.zeros(3))
    with pytest.raises(ValueError, match=r"no operation 'hew' \(did you mean 'hue'\?\)"):
        adjust_colour(images, hue=0.1, order=["hew"])
    with pytest.raises(ValueError, match=r"missing: \['hue'\]"):
        adjust_colour(images, hue=0.1, order=["contrast"])
    with pytest.raises(ValueError, match=r"once"):
        adjust_colour(images, hue=0.1, order=["hue", "hue"])
    with pytest.raises(TypeError, match=r"images.float\(\) / 255"):
        colour_jitter(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 0.1)
    with pytest.raises(TypeError, match=r"brightness must be a number"):
        colour_jitter(images, "0.1")  # type: ignore[arg-type]


# ---- geometry ------------------------------------------------------------------------------------------------


def reference_affine(
    image: np.ndarray, degrees: float, move: tuple[float, float], size: float, shear: float, order: int, fill: float
) -> np.ndarray:
    """Transform one image by the inverse map, in rows and columns."""
    _, height, width = image.shape
    a, k = math.radians(degrees), math.tan(math.radians(shear))
    turn = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    forward = size * turn @ np.array([[1.0, -k], [0.0, 1.0]])  # of (x, y), from the middle
    back = np.linalg.inv(forward)[::-1, ::-1]  # of (row, column)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    shift = np.array([move[1] * height, move[0] * width])
    offset = middle - back @ (middle + shift)
    if order:
        options = {"order": 1, "mode": "grid-constant", "cval": fill}
        return np.stack([scipy.ndimage.affine_transform(plane, back, offset, **options) for plane in image])
    result = np.full_like(image, fill)
    for i, j in itertools.product(range(height), range(width)):
        row, column = np.rint(back @ np.array([i, j]) + offset).astype(int)
        if 0 <= row < height and 0 <= column < width:
            result[:, i, j] = image[:, row, column]
    return result


DEGREES = [0.0, 30.0, -75.0, 10.0]
SIZES = [1.0, 1.4, 0.7, 0.05]
SHEARS = [20.0, 0.0, -40.0, 5.0]
MOVES = ([0.2, 0.0, -0.31, 0.05], [0.0, -0.15, 0.22, 0.4])


@pytest.mark.parametrize(("interpolation", "order"), [("bilinear", 1), ("nearest", 0)])
@pytest.mark.parametrize("shape", [(9, 9), (8, 11)])
def test_affine_transformation_is_that_of_scipy(interpolation: Any, order: int, shape: tuple[int, int]) -> None:
    images = some_images(4, 2, *shape)
    d, s, k = (torch.tensor(v, dtype=torch.float64) for v in (DEGREES, SIZES, SHEARS))
    x, y = (torch.tensor(v, dtype=torch.float64) for v in MOVES)
    fill = 0.25
    moved = affine_transform(images, d, (x, y), s, k, interpolation=interpolation, fill=fill)
    for b, image in enumerate(images):
        move = (MOVES[0][b], MOVES[1][b])
        wanted = reference_affine(image.numpy(), DEGREES[b], move, SIZES[b], SHEARS[b], order, fill)
        differs = np.abs(moved[b].numpy() - wanted) > 1e-9
        # Where the nearest pixel is a tie, rounding decides.
        assert differs.mean() <= (0.0 if order else 0.02), (b, differs)


def test_affine_directions() -> None:
    image = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    image[0, 0, 0, 2] = 1.0  # above the middle
    assert affine_transform(image, degrees=90.0)[0, 0, 2, 4] == pytest.approx(1.0)  # clockwise: now at the right
    assert affine_transform(image, translate=(0.2, 0.4))[0, 0, 2, 3] == pytest.approx(1.0)
    assert affine_transform(image, scale=0.5)[0, 0, 1, 2] == pytest.approx(1.0)
    assert affine_transform(image, shear=45.0)[0, 0, 0, 4] == pytest.approx(1.0)


def recovered(n: int, **given: Any) -> dict[str, np.ndarray]:
    """Return what random_affine drew, read off two ramps, which linear interpolation keeps exact."""
    size = 65
    ramp = torch.arange(size, dtype=torch.float64) - size // 2
    images = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)]).expand(n, 2, size, size)
    moved = random_affine(images, **given, generator=generator())
    c = size // 2
    at = moved[:, :, c, c].numpy()  # (x, y) where the middle came from
    columns = moved[:, :, c, c + 1].numpy() - at, moved[:, :, c + 1, c].numpy() - at
    back = np.stack(columns, axis=2)
    forward = np.linalg.inv(back)
    move = -np.einsum("nij,nj->ni", forward, at) / size
    area = np.sqrt(np.linalg.det(forward))
    angle = np.degrees(np.arctan2(forward[:, 1, 0], forward[:, 0, 0]))
    turned_back = np.stack([np.linalg.inv(_turn(a)) @ f for a, f in zip(angle, forward, strict=True)])
    shear = -np.degrees(np.arctan2(turned_back[:, 0, 1], turned_back[:, 1, 1]))
    return {"degrees": angle, "x": move[:, 0], "y": move[:, 1], "scale": area - 1.0, "shear": shear}


def _turn(degrees: float) -> np.ndarray:
    a = math.radians(degrees)
    return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])


@pytest.mark.parametrize("name", ["degrees", "translate", "scale", "shear"])
def test_affine_amounts_are_uniform_and_of_each_image(name: str) -> None:
    n = 1200
    reach = {"degrees": 40.0, "translate": 0.3, "scale": 0.4, "shear": 35.0}[name]
    v = torch.full((n,), reach, dtype=torch.float64)
    v[: n // 2] = reach / 4
    found = recovered(n, **{name: v})
    wanted = ["x", "y"] if name == "translate" else [name]
    for key, values in found.items():
        if key not in wanted:
            np.testing.assert_allclose(values, 0.0, atol=1e-6)
            continue
        for part, r in ((values[: n // 2], reach / 4), (values[n // 2 :], reach)):
            assert scipy.stats.kstest(part, scipy.stats.uniform(-r, 2 * r).cdf).pvalue > 1e-3, key
    if name == "translate":
        assert abs(np.corrcoef(found["x"], found["y"])[0, 1]) < 0.15


def test_affine_strength_of_zero_is_the_identity_among_others() -> None:
    images = some_images(20, 3, 7, 6, torch.float32)
    v = torch.zeros(20)
    v[::2] = 0.3
    for interpolation in ("bilinear", "nearest"):
        moved = random_affine(images, 90 * v, v, v, 60 * v, interpolation=interpolation, generator=generator())
        assert torch.equal(moved[1::2], images[1::2])
        assert (moved[::2] != images[::2]).flatten(1).any(1).all()


def test_sizes_stay_positive() -> None:
    images = some_images(50)
    assert random_affine(images, scale=torch.full((50,), 3.0), generator=generator()).isfinite().all()


def test_flip() -> None:
    images = some_images(3000, 1, 1, 3)
    p = torch.full((3000,), 0.2)
    p[:1000], p[1000:2000] = 0.0, 1.0
    flipped = random_flip(images, p, generator=generator())
    assert torch.equal(flipped[:1000], images[:1000])
    assert torch.equal(flipped[1000:2000], images[1000:2000].flip(-1))
    mirrored = (flipped[2000:] != images[2000:]).flatten(1).any(1)
    assert torch.equal(flipped[2000:][mirrored], images[2000:][mirrored].flip(-1))
    assert 150 < int(mirrored.sum()) < 250
    assert 1350 < int((random_flip(images, generator=generator()) != images).flatten(1).any(1).sum()) < 1650


def test_geometry_errors() -> None:
    images = some_images()
    with pytest.raises(ValueError, match=r"'bilinear' or 'nearest', got 'bilinar' \(did you mean 'bilinear'\?\)"):
        affine_transform(images, interpolation="bilinar")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shear must be at least 0, got -1"):
        random_affine(images, shear=-1.0)
    with pytest.raises(ValueError, match=r"degrees has 3 numbers"):
        random_affine(images, degrees=torch.zeros(3))
    with pytest.raises(ValueError, match=r"scale has 3 numbers for 4 images"):
        affine_transform(images, scale=torch.ones(3))
    with pytest.raises(ValueError, match=r"B x C x H x W, got \(3, 5, 6\)"):
        random_affine(images[0])
    with pytest.raises(ValueError, match=r"p must be from 0 to 1, got 1.5"):
        random_flip(images, 1.5)
    with pytest.raises(ValueError, match=r"translate must be two"):
        affine_transform(images, translate=(0.1,))  # type: ignore[arg-type]


# ---- cutout --------------------------------------------------------------------------------------------------


def reference_boxes(image: np.ndarray, holes: list[tuple[float, float, float]], fill: float) -> np.ndarray:
    result = image.copy()
    _, height, width = image.shape
    for y, x, length in holes:
        if length <= 0:
            continue
        y1, y2 = (int(np.clip(v, 0, height)) for v in (y - length / 2, y + length / 2))
        x1, x2 = (int(np.clip(v, 0, width)) for v in (x - length / 2, x + length / 2))
        result[:, y1:y2, x1:x2] = fill
    return result


@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_boxes_are_those_of_a_loop(fill: float) -> None:
    source = generator()
    images = some_images(40, 2, 9, 12)
    y = torch.randint(9, (40, 3), generator=source).double()
    x = torch.randint(12, (40, 3), generator=source).double()
    length = torch.randint(-1, 9, (40, 3), generator=source).double()
    got = cut_boxes(images, y, x, length, fill=fill)
    for b in range(40):
        holes = list(zip(y[b].tolist(), x[b].tolist(), length[b].tolist(), strict=True))
        np.testing.assert_array_equal(got[b].numpy(), reference_boxes(images[b].numpy(), holes, fill))


def test_centres_of_holes_are_uniform_over_the_pixels() -> None:
    n, height, width = 6000, 3, 4
    # Holes of one pixel are rounded to [c - 0.5, c + 0.5) cut down: the pixel before the centre.
    blank = torch.ones(n, 1, height, width)
    one = cutout(blank, 1, torch.full((n,), 2.0), generator=generator())
    seen = {tuple(row) for row in (one == 0).flatten(1).int().tolist()}
    wanted = [
        reference_boxes(np.ones((1, height, width)), [(y, x, 2.0)], 0.0) for y in range(height) for x in range(width)
    ]
    masks = [tuple((w == 0).astype(int).ravel().tolist()) for w in wanted]
    assert seen == set(masks)
    counts = [int(((one == 0).flatten(1).int() == torch.tensor(m)).all(1).sum()) for m in masks]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_holes_and_length_are_rounded_down_and_counted() -> None:
    n = 1200
    images = torch.ones(n, 2, 90, 90)
    holes = torch.tensor([0.99, 1.0, 2.9, 0.0]).repeat(n // 4)
    cut_out = cutout(images, holes, 5.7, generator=generator()) == 0
    assert torch.equal(cut_out[:, 0], cut_out[:, 1])
    area = cut_out[:, 0].flatten(1).sum(1).reshape(-1, 4)
    assert (area[:, 0] == 0).all()
    assert (area[:, 3] == 0).all()
    assert int(area[:, 1].max()) == 25
    assert area[:, 1].double().mean() == pytest.approx(25, rel=0.05)  # (Some are over the border.)
    assert int(area[:, 2].max()) == 50
    assert area[:, 2].double().mean() == pytest.approx(50, rel=0.06)


def test_cutout_without_holes_or_length_is_the_identity_among_others() -> None:
    images = some_images(30, dtype=torch.float32) + 1.0
    holes = torch.tensor([0.0, 1.0, 2.0]).repeat(10)
    length = torch.tensor([3.0, 0.0, 4.0]).repeat(10)
    got = cutout(images, holes, length, generator=generator())
    same = torch.tensor([True, True, False]).repeat(10)
    assert torch.equal(got[same], images[same])
    assert (got[~same] == 0).flatten(1).any(1).all()


def test_max_holes_limits_tensors_and_refuses_numbers() -> None:
    images = torch.ones(200, 1, 100, 100)
    many = cutout(images, torch.full((200,), 50.0), 2.0, max_holes=3, generator=generator())
    assert int((many == 0).flatten(1).sum(1).max()) == 12
    with pytest.raises(ValueError, match=r"holes must be from 0 to 3, got 4"):
        cutout(images, 4, 2.0, max_holes=3)
    with pytest.raises(ValueError, match=r"max_holes must be a whole number of at least 1, got 0"):
        cutout(images, 1, 2.0, max_holes=0)
    with pytest.raises(ValueError, match=r"length must have the shape 200 x holes"):
        cut_boxes(images, torch.zeros(200, 1), torch.zeros(200, 1), torch.zeros(200, 2))


# ---- the composition -----------------------------------------------------------------------------------------

ALL: dict[str, float] = {
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 0.2,
    "degrees": 20.0,
    "translate": 0.2,
    "scale": 0.2,
    "shear": 20.0,
    "cutout_holes": 2.0,
    "cutout_length": 4.0,
}


def test_every_name_of_the_table_is_understood_and_changes_images() -> None:
    images = some_images(16, 3, 16, 16)
    assert set(ALL) == set(AUGMENTATIONS)
    plain = Augmentation(flip=0.0)
    assert torch.equal(plain(images), images)
    for name, value in ALL.items():
        given = {name: value} if name != "cutout_holes" else {"cutout_holes": value, "cutout_length": 4.0}
        assert not torch.equal(plain(images, given, generator=generator()), images), name


def test_operations_come_in_the_order_of_the_papers() -> None:
    images = some_images(8, 3, 16, 16)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    options = Augmentation(0.7, mean, std, "nearest", 0.3, -1.0, 5)
    got = options(images, ALL, generator=generator())
    source = generator()
    x = random_flip(images, 0.7, generator=source)
    x = random_affine(
        x,
        ALL["degrees"],
        ALL["translate"],
        ALL["scale"],
        ALL["shear"],
        interpolation="nearest",
        fill=0.3,
        generator=source,
    )
    x = colour_jitter(x, ALL["brightness"], ALL["contrast"], ALL["saturation"], ALL["hue"], generator=source)
    x = (x - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    x = cutout(x, 2.0, 4.0, max_holes=5, fill=-1.0, generator=source)
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)
    assert torch.equal(augment(images, ALL, options=options, generator=generator()), got)


@pytest.mark.parametrize(
    "other",
    [
        {"flip": 0.0},
        {"mean": (0.1, 0.1, 0.1), "std": (1.0, 1.0, 1.0)},
        {"interpolation": "nearest"},
        {"fill": 0.5},
        {"cutout_fill": 0.7},
        {"max_holes": 1},
    ],
)
def test_each_option_counts(other: dict[str, Any]) -> None:
    images = some_images(16, 3, 16, 16)
    given = {name: torch.tensor(value) for name, value in ALL.items()}
    changed = augment(images, given, options=Augmentation(**other), generator=generator())
    assert not torch.equal(changed, augment(images, given, generator=generator()))


def test_validation_images_are_normalised_only() -> None:
    images = some_images()
    options = Augmentation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    wanted = np.stack(
        [(images[:, c].numpy() - m) / s for c, (m, s) in enumerate([(0.5, 0.2), (0.4, 0.3), (0.3, 0.4)])], 1
    )
    np.testing.assert_allclose(options.normalised(images).numpy(), wanted, rtol=1e-12)
    assert torch.equal(Augmentation().normalised(images), images)


def test_two_views_share_the_flip_and_nothing_else() -> None:
    images = some_images(64, 3, 8, 8)
    first, second = two_views(images, {}, {}, generator=generator())
    assert torch.equal(first, second)
    flipped = (first != images).flatten(1).any(1)
    assert 10 < int(flipped.sum()) < 54
    half = torch.zeros(64)
    half[::2] = 0.4
    first, second = two_views(images, {"brightness": half}, {"brightness": 0.4 - half}, generator=generator())
    source = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    assert torch.equal(first[1::2], source[1::2])
    assert torch.equal(second[::2], source[::2])
    assert (first[::2] != source[::2]).flatten(1).any(1).all()
    never = two_views(images, {}, {}, options=Augmentation(flip=0.0))
    assert torch.equal(never[0], images)
    with pytest.raises(ValueError, match=r"no augmentation 'hues' \(did you mean 'hue'\?\)"):
        two_views(images, {}, {"hues": 0.1})


def test_strengths_come_from_hyperparameters() -> None:
    names = list(AUGMENTATIONS)
    h = Hyperparameters(default_space([*names, "dropout0"]), start=default_start(names))
    images = some_images(6, 3, 16, 16, torch.float32)
    with h.perturbed(6):
        now = strengths(h)
        assert list(now) == names
        assert all(value.shape == (6,) and not value.requires_grad for value in now.values())
        assert torch.equal(augment(images, h, generator=generator()), augment(images, now, generator=generator()))
    with h.centred():
        assert all(value.dim() == 0 for value in strengths(h).values())
        assert augment(images, h).shape == images.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_type_follows_and_nothing_has_gradients(dtype: torch.dtype) -> None:
    images = some_images(4, 3, 16, 16).to(dtype).requires_grad_()
    given = {name: torch.full((4,), value, requires_grad=True) for name, value in ALL.items()}
    got = augment(images, given, options=Augmentation(mean=(0.5,) * 3, std=(0.2,) * 3), generator=generator())
    assert got.dtype == dtype
    assert not got.requires_grad
    assert got.isfinite().all()
    exact = augment(
        images.double(), given, options=Augmentation(mean=(0.5,) * 3, std=(0.2,) * 3), generator=generator()
    )
    if dtype == torch.float64:
        assert torch.equal(got, exact)


ROUTES: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "colour": lambda x, g: colour_jitter(x, 0.5, 0.5, 0.5, 0.3, generator=g),
    "affine": lambda x, g: random_affine(x, 30.0, 0.2, 0.2, 20.0, generator=g),
    "flip": lambda x, g: random_flip(x, generator=g),
    "cutout": lambda x, g: cutout(x, 2, 3, generator=g),
    "all": lambda x, g: augment(x, ALL, generator=g),
}


@pytest.mark.parametrize("route", ROUTES)
def test_generator_decides(route: str) -> None:
    images = some_images(8, 3, 16, 16)
    original = images.clone()
    state = torch.get_rng_state()
    first = ROUTES[route](images, generator(1))
    assert torch.equal(first, ROUTES[route](images, generator(1)))
    assert not torch.equal(first, ROUTES[route](images, generator(2)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    free = ROUTES[route](images, None)
    assert not torch.equal(free, ROUTES[route](images, None))
    torch.manual_seed(3)
    assert torch.equal(free, ROUTES[route](images, None))
    torch.set_rng_state(state)
    assert torch.equal(images, original)  # operations in place work on a copy


def test_bad_options_and_strengths() -> None:
    images = some_images()
    with pytest.raises(ValueError, match=r"no augmentation 'brightnes' \(did you mean 'brightness'\?\)"):
        augment(images, {"brightnes": 0.1})
    with pytest.raises(ValueError, match=r"cutout_holes needs a cutout_length"):
        augment(images, {"cutout_holes": 1})
    for options, message in (
        ({"flip": 1.1}, "flip must be a probability"),
        ({"mean": (0.5,)}, "belong together"),
        ({"mean": (0.5,), "std": (0.0,)}, "std must hold a positive number"),
        ({"mean": (0.5,), "std": (0.1, 0.2)}, "std must hold a positive number"),
        ({"interpolation": "cubic"}, "'bilinear' or 'nearest', got 'cubic'"),
        ({"max_holes": 0}, "max_holes must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Augmentation(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mean has 1 numbers"):
        Augmentation(mean=(0.5,), std=(0.5,))(images)
    with pytest.raises(ValueError, match=r"B x C x H x W"):
        augment(images[0])
    with pytest.raises(ValueError, match=r"hue must be finite, got nan"):
        augment(images, {"hue": float("nan")})


@pytest.mark.slow
def test_512_images_take_less_than_100_ms() -> None:
    images = torch.rand(512, 3, 32, 32)
    given = {name: torch.full((512,), value) for name, value in ALL.items()}
    options = Augmentation(mean=(0.5,) * 3, std=(0.2,) * 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    for _ in range(12):
        start = time.process_time()
        options(images, given)
        times.append(time.process_time() - start)
    torch.set_num_threads(threads)
    # Process CPU time of one thread: other work on the machine does not count, and two cores are no slower.
    assert min(times) < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_same_numbers_as_on_the_cpu() -> None:
    images = some_images(16, 3, 16, 16, torch.float32)
    for interpolation in ("bilinear", "nearest"):
        options = Augmentation(mean=(0.5,) * 3, std=(0.2,) * 3, interpolation=interpolation)
        given = {name: torch.full((16,), value) for name, value in ALL.items()}
        wanted = options(images, given, generator=generator())
        # A generator on the CPU draws the same numbers for images on the GPU.
        got = options(images.cuda(), {n: v.cuda() for n, v in given.items()}, generator=generator())
        assert got.is_cuda
        close = (got.cpu() - wanted).abs() < 1e-3
        assert close.double().mean() > (0.99 if interpolation == "nearest" else 0.999)
    on_gpu = torch.Generator("cuda").manual_seed(0)
    assert options(images.cuda(), given, generator=on_gpu).is_cuda
    assert options(images.cuda(), given).is_cuda

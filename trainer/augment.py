"""Varying training films: saved copies (Holste et al.; Wang et al.), and what may vary each time a film is seen.

Both functions take one film, preprocessed to the network's grid, and its label map, and depend on
nothing but their arguments: same generator state, same result. Pictures are float32
(channels, height, width) in 0..1 and stay so; labels are uint8 (height, width): label values, or
bit fields where regions overlap (``data.overlapping``), which move the same way. Inputs are never
changed; where a setting asks for nothing the input itself comes back.

Geometry is put together into a single map from the new picture to the old one, so every pixel
is interpolated once: bilinear for the picture, nearest for labels. What lies outside the film
becomes 0 in the picture (unexposed, as beside a collimator) and 0, background, in the labels.
Lengths are pixels of the network's grid: a film stretched to that grid is turned and
deformed as it stands there.

What Holste's section 2.2 leaves open ("an elastic deformation [U-Net; Simard et al.] with sigma = 5
followed by a random rotation within 15 and -15 degrees"), decided here:

* The field is Simard's: for every pixel a displacement drawn uniformly from -1..1 in x and in
  y, smoothed by a Gaussian of ``elastic_sigma`` pixels and multiplied by ``elastic_alpha``. The
  smoothed field is *not* normalised, so displacements have a standard deviation of
  alpha / (2 sigma sqrt(3 pi)) pixels. With sigma 5 and alpha 30 that is 0.98 pixels at 256 x 256,
  rarely more than 3: ribs and borders waver as in a breathing child, and no two
  neighbouring points change places (that takes a slope of -1, seven standard deviations away).
* Deforming first and turning second makes the new pixel p show the old pixel
  R^-1 p + d(R^-1 p). A smoothed field of independent displacements looks the same from every
  direction, so d is drawn on the new grid instead: R^-1 p + d(p), of the same distribution.
* The angle is drawn uniformly; the centre is the grid's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from trainer.errors import RecipeError
from trainer.recipe import LiveTable, SavedCopiesTable
from worker.findings.flag_rules import SIDE_PAIRS

Picture = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

#: Nodes per axis of the coarse grid of live elastic deformation (Ronneberger et al.: 3; finer here, as
#: a chest's parts move on their own).
ELASTIC_NODES = 5
#: Widest border on one side, as a fraction of that side.
BORDER_WIDTH = 0.12
#: Blurs narrower than this many pixels change nothing that can be seen.
_LEAST_BLUR = 0.2
_MARKERS = ("R", "L", "AP", "PA", "SUPINE", "PORTABLE", "II", "35")
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)
_FRACTION_BITS = 4  # OpenCV draws with 1/16 pixel precision


def saved_copy(
    picture: Picture,
    labels: Labels | None,
    rng: np.random.Generator,
    settings: SavedCopiesTable,
    swaps: Sequence[tuple[int, int]] = (),
) -> tuple[Picture, Labels | None]:
    """One transformed copy of a training film.

    Elastic deformation, then rotation (Holste, section 2.2), then what ``settings.varied`` asks for, as :func:`vary`
    does it, with its ``swaps``.
    """
    shape = (picture.shape[1], picture.shape[2])
    displacement = None
    if settings.elastic_alpha:
        displacement = simard_field(shape, settings.elastic_sigma, settings.elastic_alpha, rng)
    turn = np.eye(3)
    if settings.rotation:
        turn = _about_centre(shape, _rotation(np.deg2rad(rng.uniform(-settings.rotation, settings.rotation))))
    picture, labels = _resample(picture, labels, turn, displacement)
    return vary(picture, labels, rng, settings.varied, swaps)


def simard_field(shape: tuple[int, int], sigma: float, alpha: float, rng: np.random.Generator) -> Field:
    """Displacements in pixels, float32 (height, width, 2) as (x, y): Simard et al. (2003), section 3."""
    noise = rng.uniform(-1.0, 1.0, (*shape, 2)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), sigma) * np.float32(alpha), np.float32)


def side_swaps(
    regions: Sequence[str], settings: LiveTable, *, overlapping: bool = False
) -> tuple[tuple[int, int], ...]:
    """The label values that change places when a film is mirrored, for :func:`vary`.

    ``regions`` are the names of label values 0, 1, 2, ...; nothing is swapped where
    ``settings.flip`` is 0. Where regions are ``overlapping``, values are bit fields and their bits change places.

    Raises
    ------
    RecipeError
        Films are to be mirrored, but one side of a pair is not among the regions, so a mirrored one
        would be labelled wrongly.
    """
    if not settings.flip:
        return ()
    for pair in SIDE_PAIRS:
        if len(set(pair) & set(regions)) == 1:
            raise RecipeError(
                f"augmentation.live.flip mirrors films, but data.regions names only one of {' and '.join(pair)}: "
                "name both or set flip to 0."
            )
    names = list(regions)
    pairs = tuple((names.index(left), names.index(right)) for left, right in SIDE_PAIRS if left in names)
    if not overlapping:
        return pairs
    mirrored = {value: _with_bits_swapped(value, pairs) for value in range(256)}
    return tuple((value, other) for value, other in mirrored.items() if value < other)


def vary(
    picture: Picture,
    labels: Labels | None,
    rng: np.random.Generator,
    settings: LiveTable,
    swaps: Sequence[tuple[int, int]] = (),
) -> tuple[Picture, Labels | None]:
    """A film as it might also have come: moved, exposed, developed and marked differently.

    Each setting is the most that happens; how much is drawn uniformly, for every film anew.

    =============  =============================================================================
    rotation       an angle within ± degrees about the grid's centre
    shift          ± this fraction of width and of height
    scale          magnification within 1 ± this
    crop           each of the four edges loses up to this fraction, and the rest is stretched
                   to the grid, as tight collimation would: proportions change
    elastic        a smooth field whose displacements have up to this standard deviation in
                   pixels: random vectors on 5 x 5 nodes, bicubic between them (Ronneberger et
                   al., section 3.1)
    flip           probability of mirroring left and right
    gamma          picture ** exp(± this)
    window         black and white point each move by ± this
    blur           Gaussian blur of up to this many pixels (standard deviation)
    noise          white Gaussian noise, the same in all channels, of up to this standard deviation
    marker         probability that one to four letters, stickers and leads lie on the film
    border         probability of a black, dark or white edge along some sides, each up to 12 %
                   wide; labels under it become background, as everything a collimator hides
    invert         probability of the wrong polarity
    =============  =============================================================================

    They are applied in this order.

    Parameters
    ----------
    picture
        float32 (channels, height, width), 0..1. Standardised pictures cannot be varied:
        standardising belongs after it.
    labels
        uint8 (height, width), or None.
    swaps
        Pairs of label values that change places when the film is mirrored, from :func:`side_swaps`.
        Situs matters: a mirrored film is a rare patient, hence ``flip`` is 0 unless asked for.
    """
    if len(picture) > 1 and np.array_equal(picture[1:], np.broadcast_to(picture[0], picture[1:].shape)):
        # A grey film repeated for a network that takes colour: once is enough.
        grey, labels = vary(picture[:1], labels, rng, settings, swaps)
        return np.repeat(grey, len(picture), axis=0), labels
    shape = (picture.shape[1], picture.shape[2])
    mirrored = bool(settings.flip) and rng.random() < settings.flip
    transform = _transform(shape, rng, settings, mirrored)
    displacement = _coarse_field(shape, rng.uniform(0, settings.elastic), rng) if settings.elastic else None
    varied, labels = _resample(picture, labels, transform, displacement)
    if mirrored and labels is not None and swaps:
        labels = _swapped(labels, swaps)
    varied = _develop(varied, rng, settings)
    if settings.marker and rng.random() < settings.marker:
        varied = _with_objects(varied, rng)
    if settings.border and rng.random() < settings.border:
        varied, labels = _with_border(varied, labels, rng)
    if settings.invert and rng.random() < settings.invert:
        varied = np.float32(1) - varied
    return picture if varied is picture else np.clip(varied, 0, 1), labels


# Geometry: 3 x 3 matrices from the new picture's (x, y) to the old one's, pixel centres at whole numbers


def _transform(shape: tuple[int, int], rng: np.random.Generator, settings: LiveTable, mirrored: bool) -> Matrix:
    height, width = shape
    matrix = np.eye(3)
    if settings.crop:
        left, right, top, bottom = rng.uniform(0, settings.crop, 4)
        x, y = 1 - left - right, 1 - top - bottom
        # Stretching maps pixel edges onto pixel edges, and a centre is half a pixel from its edge.
        matrix = np.asarray(
            [[x, 0, left * width + x / 2 - 0.5], [0, y, top * height + y / 2 - 0.5], [0, 0, 1]], np.float64
        )
    moving = np.eye(3)
    if mirrored:
        moving[0, 0] = -1
    if settings.scale:
        moving[:2] /= 1 + rng.uniform(-settings.scale, settings.scale)
    if settings.rotation:
        moving = moving @ _rotation(np.deg2rad(rng.uniform(-settings.rotation, settings.rotation)))
    if settings.shift:
        shift = np.eye(3)
        shift[:2, 2] = rng.uniform(-settings.shift, settings.shift, 2) * (width, height)
        moving = moving @ shift
    return np.asarray(matrix @ _about_centre(shape, moving), np.float64)


def _rotation(angle: float) -> Matrix:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.asarray([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], np.float64)


def _about_centre(shape: tuple[int, int], matrix: Matrix) -> Matrix:
    to_centre = np.eye(3)
    to_centre[:2, 2] = -(shape[1] - 1) / 2, -(shape[0] - 1) / 2
    return np.asarray(np.linalg.inv(to_centre) @ matrix @ to_centre, np.float64)


def _coarse_field(shape: tuple[int, int], strength: float, rng: np.random.Generator) -> Field:
    nodes = rng.standard_normal((ELASTIC_NODES, ELASTIC_NODES, 2), dtype=np.float32) * np.float32(strength)
    return np.asarray(cv2.resize(nodes, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)


def _resample(
    picture: Picture, labels: Labels | None, matrix: Matrix, displacement: Field | None
) -> tuple[Picture, Labels | None]:
    """Picture and labels seen through ``matrix`` and ``displacement``, in one step."""
    if displacement is None and np.array_equal(matrix, np.eye(3)):
        return picture, labels
    height, width = picture.shape[1:]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    (xx, xy, x0), (yx, yy, y0) = matrix[:2].astype(np.float32)
    from_x, from_y = (xx * x + x0) + xy * y, (yx * x + y0) + yy * y
    if displacement is not None:
        from_x += displacement[..., 0]
        from_y += displacement[..., 1]
    planes = [cv2.remap(plane, from_x, from_y, cv2.INTER_LINEAR, borderValue=0) for plane in picture]
    if labels is not None:
        labels = np.asarray(cv2.remap(labels, from_x, from_y, cv2.INTER_NEAREST, borderValue=0), np.uint8)
    return np.stack(planes), labels


def _with_bits_swapped(value: int, pairs: Sequence[tuple[int, int]]) -> int:
    for left, right in pairs:
        if (value >> left ^ value >> right) & 1:
            value ^= 1 << left | 1 << right
    return value


def _swapped(labels: Labels, swaps: Sequence[tuple[int, int]]) -> Labels:
    table = np.arange(256, dtype=np.uint8)
    for left, right in swaps:
        table[left], table[right] = right, left
    return np.asarray(table[labels], np.uint8)


# Grey values


def _develop(picture: Picture, rng: np.random.Generator, settings: LiveTable) -> Picture:
    """Window, gamma, blur and noise."""
    if settings.window:
        low, rise = rng.uniform(-settings.window, settings.window, 2)
        picture = np.clip((picture - np.float32(low)) / np.float32(1 + rise - low), 0, 1)
    if settings.gamma:
        picture = picture ** np.float32(np.exp(rng.uniform(-settings.gamma, settings.gamma)))
    if settings.blur and (sigma := rng.uniform(0, settings.blur)) > _LEAST_BLUR:
        picture = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in picture])
    if settings.noise:
        noise = rng.standard_normal(picture.shape[1:], dtype=np.float32)
        picture = np.clip(picture + noise * np.float32(rng.uniform(0, settings.noise)), 0, 1)
    return picture


def _with_border(picture: Picture, labels: Labels | None, rng: np.random.Generator) -> tuple[Picture, Labels | None]:
    """Shutter edges along at least one side, slightly askew."""
    height, width = picture.shape[1:]
    inset = rng.uniform(0, BORDER_WIDTH, 4) * (rng.random(4) < 0.5)
    inset[rng.integers(4)] = rng.uniform(0, BORDER_WIDTH)
    left, right, top, bottom = inset * (width, width, height, height)
    corners = np.asarray([[left, top], [width - right, top], [width - right, height - bottom], [left, height - bottom]])
    corners += rng.uniform(-0.01, 0.01, (4, 2)) * (width, height)
    field = np.zeros((height, width), np.uint8)
    cv2.fillPoly(field, [_fixed(corners - 0.5)], 255, cv2.LINE_AA, _FRACTION_BITS)
    shade = np.float32(rng.choice([0.0, 0.0, rng.uniform(0, 0.2), 1.0]))
    share = field * np.float32(1 / 255)
    picture = picture * share + shade * (1 - share)
    return picture, None if labels is None else np.where(field < 128, np.uint8(0), labels)


def _with_objects(picture: Picture, rng: np.random.Generator) -> Picture:
    """Letters, stickers and leads laid on the film."""
    height, width = picture.shape[1:]
    for _ in range(int(rng.integers(1, 5))):
        layer = np.zeros((height, width), np.uint8)
        opacity, shade = _OBJECTS[int(rng.integers(len(_OBJECTS)))](layer, rng)
        share = layer * np.float32(opacity / 255)
        picture = picture + (np.float32(shade) - picture) * share
    return picture


def _letters(layer: Labels, rng: np.random.Generator) -> tuple[float, float]:
    """A lead letter or burnt-in text: bright and opaque."""
    height, width = layer.shape
    unit = max(height, width) / 256
    place = (int(rng.uniform(0, 0.92) * width), int(rng.uniform(0.04, 1) * height))
    font = _FONTS[int(rng.integers(len(_FONTS)))]
    words = _MARKERS[int(rng.integers(len(_MARKERS)))]
    weight = max(1, round(unit * rng.uniform(0.5, 2)))
    cv2.putText(layer, words, place, font, unit * rng.uniform(0.2, 0.7), 255, weight, cv2.LINE_AA)
    return rng.uniform(0.6, 1), rng.uniform(0.8, 1)


def _sticker(layer: Labels, rng: np.random.Generator) -> tuple[float, float]:
    """A label or blanked-out corner: a box of any shade."""
    height, width = layer.shape
    centre = rng.uniform(0, 1, 2) * (width, height)
    half = rng.uniform(0.01, 0.07, 2) * (width, height)
    box = cv2.boxPoints((tuple(centre), tuple(2 * half), rng.uniform(-10, 10)))
    cv2.fillPoly(layer, [_fixed(np.asarray(box))], 255, cv2.LINE_AA, _FRACTION_BITS)
    return rng.uniform(0.3, 1), rng.uniform(0, 1)


def _lead(layer: Labels, rng: np.random.Generator) -> tuple[float, float]:
    """A tube, wire or lead: a thin bent line, denser than what lies under it."""
    height, width = layer.shape
    a, b, c = rng.uniform(0, 1, (3, 2)) * (width, height)
    t = np.linspace(0, 1, 24)[:, None]
    path = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    thickness = max(1, round(max(height, width) * rng.uniform(0.002, 0.01)))
    cv2.polylines(layer, [_fixed(path)], False, 255, thickness, cv2.LINE_AA, _FRACTION_BITS)
    return rng.uniform(0.1, 0.6), 1.0


_OBJECTS: tuple[Callable[[Labels, np.random.Generator], tuple[float, float]], ...] = (_letters, _sticker, _lead)


def _fixed(points: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    return np.round(points * (1 << _FRACTION_BITS)).astype(np.int32)

"""Pictures that are not a frontal chest: what a worker must not find two lungs in."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from worker.phantom.canvas import Image, Points, blur, cloud, thickness

Draw = Callable[[np.random.Generator, int, int], Image]


def negative_picture(rng: np.random.Generator, rows: int, columns: int, kind: str | None = None) -> Image:
    """The attenuation picture, float32 of shape (rows, columns), of something else than a frontal chest.

    ``kind`` is a key of :data:`NEGATIVE_KINDS`; drawn by their shares when None.
    """
    kinds, shares = list(NEGATIVE_KINDS), np.asarray([share for _, share in NEGATIVE_KINDS.values()])
    chosen = str(rng.choice(kinds, p=shares / shares.sum())) if kind is None else kind
    picture = NEGATIVE_KINDS[chosen][0](rng, rows, columns)
    if kind is None and chosen != "limb" and rng.random() < 0.3:
        rotated = np.ascontiguousarray(np.rot90(picture, int(rng.integers(1, 4))))
        picture = np.asarray(cv2.resize(rotated, (columns, rows), interpolation=cv2.INTER_LINEAR), np.float32)
    turned = _turn(picture, rng.uniform(-0.4, 0.4), rng.uniform(0.75, 1.4))
    if rng.random() < 0.25:
        # Plates exposed in parts: bright unexposed strips at the sides.
        width = rng.uniform(0.05, 0.25, 2)
        turned[:, : round(width[0] * columns)] = 1.2
        turned[:, columns - round(width[1] * columns) :] = 1.2
    return np.asarray(np.maximum(turned, 0.0), np.float32)


def _turn(picture: Image, angle: float, zoom: float) -> Image:
    rows, columns = picture.shape
    matrix = cv2.getRotationMatrix2D((columns / 2, rows / 2), float(np.degrees(angle)), zoom)
    return np.asarray(cv2.warpAffine(picture, matrix, (columns, rows), borderMode=cv2.BORDER_REPLICATE), np.float32)


def _fill(rows: int, columns: int, *shapes: Points) -> Image:
    picture = np.zeros((rows, columns), np.uint8)
    for shape in shapes:
        cv2.fillPoly(picture, [np.round(shape * [columns, rows] * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return picture.astype(np.float32) / np.float32(255)


def _lines(rows: int, columns: int, paths: list[Points], width: float, core: float = 1.0) -> Image:
    picture = np.zeros((rows, columns), np.uint8)
    fixed = [np.round(path * [columns, rows] * 16).astype(np.int32) for path in paths]
    pixels = max(1, round(width * columns))
    cv2.polylines(picture, fixed, False, 255, pixels, cv2.LINE_AA, 4)
    if core < 1 and pixels > 3:
        cv2.polylines(picture, fixed, False, round(255 * core), max(1, round(0.6 * pixels)), cv2.LINE_AA, 4)
    return picture.astype(np.float32) / np.float32(255)


def _oval(x: float, y: float, half_x: float, half_y: float, turn: float = 0.0) -> Points:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    a, b = half_x * np.cos(t), half_y * np.sin(t)
    return np.stack([x + a * np.cos(turn) - b * np.sin(turn), y + a * np.sin(turn) + b * np.cos(turn)], axis=1)


def _limbs(rng: np.random.Generator, rows: int, columns: int) -> Image:
    """One or two tapered limbs with long bones and a joint."""
    total = np.zeros((rows, columns), np.float32)
    count = int(rng.integers(1, 3))
    for place in range(count):
        x = 0.5 if count == 1 else 0.28 + 0.44 * place
        lean, top, low = rng.uniform(-0.15, 0.15), rng.uniform(0.07, 0.26) / count, rng.uniform(0.05, 0.2) / count
        joint = rng.uniform(0.3, 0.8)
        flesh = _fill(
            rows, columns,
            np.asarray([[x - top, -0.1], [x + top, -0.1], [x + lean + low, 1.1], [x + lean - low, 1.1]]),
        )  # fmt: skip
        total += 0.7 * thickness(flesh, top * columns)
        bones = [(-0.3, 0.3), (0.0,)][int(rng.integers(2))]
        for offset in bones:
            a = np.asarray([x + offset * top, -0.1])
            b = np.asarray([x + lean * joint + offset * low, joint])
            c = np.asarray([x + lean + offset * low, 1.1])
            shaft = rng.uniform(0.25, 0.6) * top / len(bones)
            total += rng.uniform(0.25, 0.6) * _lines(rows, columns, [np.asarray([a, b])], shaft * 1.6, 0.5)
            total += rng.uniform(0.25, 0.6) * _lines(
                rows, columns, [np.asarray([b + np.asarray([0, 0.03]), c])], shaft, 0.5
            )
            ends = (_oval(b[0], b[1], top * 0.45, 0.05), _oval(b[0], b[1] + 0.06, top * 0.4, 0.04))
            total += 0.25 * _fill(rows, columns, *ends)
    return blur(total, 0.002 * columns + 0.4)


def _pelvis(rng: np.random.Generator, rows: int, columns: int) -> Image:
    """Pelvis or hip: wings, sockets, thigh bones, bowel gas above."""
    body = _fill(rows, columns, _oval(0.5, 0.35, rng.uniform(0.42, 0.6), 0.5), _oval(0.27, 0.9, 0.22, 0.5),
                 _oval(0.73, 0.9, 0.22, 0.5))  # fmt: skip
    total = 0.9 * thickness(body, 0.3 * columns)
    wings, shafts = [], []
    for s in (-1, 1):
        wings.append(_oval(0.5 + s * 0.22, 0.33, 0.16, 0.2, s * 0.5))
        wings.append(_oval(0.5 + s * 0.20, 0.58, 0.10, 0.1))
        shafts.append(np.asarray([[0.5 + s * 0.24, 0.58], [0.5 + s * 0.34, 0.66], [0.5 + s * 0.30, 1.1]]))
    total += 0.28 * _fill(rows, columns, *wings) * (1 + 0.3 * cloud(rng, rows, columns, 10))
    holes = [_oval(0.5 + s * 0.13, 0.70, 0.06, 0.05) for s in (-1, 1)]
    total -= 0.2 * _fill(rows, columns, *holes)
    total += 0.4 * _lines(rows, columns, shafts, 0.1, 0.6)
    total += 0.3 * _lines(rows, columns, [np.asarray([[0.5, -0.1], [0.5, 0.42]])], 0.16, 0.7)
    return blur(total - 0.3 * _gas(rng, rows, columns, 0.1, 0.5), 0.004 * columns)


def _abdomen(rng: np.random.Generator, rows: int, columns: int) -> Image:
    """Abdomen: spine, lower ribs, much bowel gas, no lung."""
    body = _fill(rows, columns, _oval(0.5, 0.5, rng.uniform(0.36, 0.6), rng.uniform(0.7, 1.0)))
    total = 0.95 * thickness(body, 0.3 * columns)
    total += 0.3 * _lines(rows, columns, [np.asarray([[0.5, -0.1], [0.5, 1.1]])], rng.uniform(0.08, 0.15), 0.7)
    ribs = []
    for number in range(int(rng.integers(0, 5))):
        for s in (-1, 1):
            y = 0.02 + 0.08 * number
            ribs.append(np.asarray([[0.5 + s * 0.07, y], [0.5 + s * 0.25, y + 0.05], [0.5 + s * 0.38, y + 0.2]]))
    if ribs:
        total += 0.12 * _lines(rows, columns, ribs, 0.03, 0.6)
    for _ in range(int(rng.integers(1, 4))):
        total -= rng.uniform(0.2, 0.5) * _gas(rng, rows, columns, 0.0, 1.0)
    return total


def _gas(rng: np.random.Generator, rows: int, columns: int, low: float, high: float) -> Image:
    loops = [
        _oval(rng.uniform(0.15, 0.85), rng.uniform(low, high), rng.uniform(0.02, 0.13), rng.uniform(0.02, 0.07),
              rng.uniform(-1.5, 1.5))
        for _ in range(int(rng.integers(2, 14)))
    ]  # fmt: skip
    return blur(_fill(rows, columns, *loops), rng.uniform(0.004, 0.02) * columns)


def _lateral(rng: np.random.Generator, rows: int, columns: int) -> Image:
    """Lateral chest, of a person or an animal: one air field, the spine along one side."""
    body = _fill(rows, columns, _oval(0.5, 0.55, rng.uniform(0.3, 0.46), rng.uniform(0.55, 0.9)))
    total = 0.9 * thickness(body, 0.2 * columns)
    lung = _fill(
        rows, columns, _oval(0.52, 0.42, rng.uniform(0.2, 0.33), rng.uniform(0.26, 0.42), rng.uniform(-0.2, 0.3))
    )
    dome = _fill(rows, columns, _oval(0.45, rng.uniform(0.75, 0.95), 0.4, 0.25, rng.uniform(-0.5, 0.5)))
    heart = _fill(rows, columns, _oval(0.38, 0.5, 0.15, 0.16, 0.5))
    open_air = blur(lung * (1 - dome) * (1 - 0.7 * blur(heart, 0.015 * columns)), 0.008 * columns)
    total -= rng.uniform(0.35, 0.6) * open_air
    edge = 0.5 + rng.uniform(0.22, 0.36)
    bow = rng.uniform(0.0, 0.1)
    spine = [np.asarray([[edge - bow, -0.1], [edge + 0.02, 0.4], [edge - bow, 1.1]])]
    total += 0.35 * _lines(rows, columns, spine, 0.09, 0.6)
    discs = [np.asarray([[edge - 0.08, y], [edge + 0.08, y]]) for y in np.arange(0.03, 1.0, rng.uniform(0.05, 0.08))]
    total -= 0.08 * _lines(rows, columns, discs, 0.012)
    ribs = [
        np.asarray([[edge, y], [0.5, y + rng.uniform(0.1, 0.2)], [0.25, y + rng.uniform(0.12, 0.3)]])
        for y in np.arange(0.0, 0.8, 0.075)
    ]
    total += rng.uniform(0.06, 0.14) * _lines(rows, columns, ribs, 0.028, 0.6)
    limb = [
        np.asarray([[rng.uniform(0.1, 0.5), rng.uniform(-0.1, 0.3)], [rng.uniform(-0.2, 0.3), rng.uniform(-0.1, 0.5)]])
    ]
    total += 0.35 * _lines(rows, columns, limb, 0.06, 0.6)
    return blur(total, 0.003 * columns)


def _head(rng: np.random.Generator, rows: int, columns: int) -> Image:
    """Skull: a bright rim, sockets, jaw, neck."""
    x, y, half = 0.5, rng.uniform(0.4, 0.5), rng.uniform(0.25, 0.38)
    skull, neck = _oval(x, y, half, half * 1.1), np.asarray([[0.35, 0.6], [0.65, 0.6], [0.7, 1.1], [0.3, 1.1]])
    total = 0.7 * thickness(_fill(rows, columns, skull, neck), 0.25 * columns)
    total += 0.4 * _lines(rows, columns, [np.concatenate([skull, skull[:1]])], 0.03)
    sockets = [_oval(x + s * 0.12, y + 0.08, 0.07, 0.05) for s in (-1, 1)]
    total -= 0.2 * _fill(rows, columns, *sockets)
    total += 0.2 * _lines(rows, columns, [np.asarray([[0.5, y + 0.3], [0.5, 1.1]])], 0.1, 0.7)
    return blur(total, 0.006 * columns)


def _shapes(rng: np.random.Generator, rows: int, columns: int) -> Image:
    """Test objects: blocks, discs, wedges and bars."""
    total = np.full((rows, columns), rng.uniform(0, 0.8), np.float32)
    for _ in range(int(rng.integers(1, 14))):
        (x, y), (half_x, half_y) = rng.uniform(0, 1, 2), rng.uniform(0.02, 0.35, 2)
        oval = _oval(x, y, half_x, half_y, rng.uniform(-1.5, 1.5))
        total += rng.uniform(-0.6, 0.6) * _fill(rows, columns, oval[:: int(rng.choice([1, 10]))])
    return blur(total, rng.uniform(0.4, 0.02 * columns))


def _texture(rng: np.random.Generator, rows: int, columns: int) -> Image:
    """Blank or cloudy plates, noise at several scales."""
    total = np.full((rows, columns), rng.uniform(0, 1.0), np.float32)
    for cells in (2, 5, 12, 40):
        total += rng.uniform(0, 0.5) * (rng.random() < 0.6) * cloud(rng, rows, columns, cells)
    return total


#: Kind → how it is drawn, and its share among all.
NEGATIVE_KINDS: dict[str, tuple[Draw, float]] = {
    "limb": (_limbs, 2),
    "pelvis": (_pelvis, 2),
    "abdomen": (_abdomen, 1),
    "lateral": (_lateral, 2),
    "head": (_head, 1),
    "shapes": (_shapes, 1),
    "texture": (_texture, 1),
}

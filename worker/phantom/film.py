"""From attenuation to a film: exposure, tone, detector, collimator and what lies on the patient."""

from __future__ import annotations

import cv2
import numpy as np

from worker.phantom.canvas import Image, Mask, Points, blur, cloud

_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)


def develop(attenuation: Image, rng: np.random.Generator, randomise: float) -> Image:
    """Tone curve, blur and noise: attenuation to a picture in 0..1, white is dense."""
    spread = randomise
    low = rng.uniform(-0.02, 0.06 + 0.22 * spread * rng.random())
    picture = attenuation - low
    picture *= 1.0 + 0.5 * spread * rng.uniform(0, 1) * cloud(rng, picture.shape[0], picture.shape[1], 2)
    high = float(np.percentile(picture[::4, ::4], rng.uniform(98.5 - 14.0 * spread * rng.random(), 99.8)))
    picture = np.clip(picture / max(high, 0.2), 0.0, None)
    if rng.random() < 0.5:
        # Film characteristic curve: contrast falls off in the dense parts.
        knee = rng.uniform(0.6, 2.2)
        picture = (1 - np.exp(-knee * picture)) / np.float32(1 - np.exp(-knee))
    picture = np.clip(picture, 0.0, 1.0) ** np.float32(np.exp(rng.uniform(-0.75, 0.75) * (0.35 + 0.65 * spread)))
    if rng.random() < 0.35 * spread:
        picture = _local_contrast(picture, rng)
    unit = max(picture.shape) / 512
    picture = blur(picture, unit * rng.uniform(0.35, 0.6 + 1.4 * spread * rng.random()))
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    if rng.random() < 0.5:
        noise = blur(noise, rng.uniform(0.4, 1.2)) * np.float32(2.0)
    amount = np.float32(rng.uniform(0.003, 0.012 + 0.03 * spread * rng.random()))
    return np.asarray(np.clip(picture + noise * amount * (0.5 + picture), 0.0, 1.0), np.float32)


def _local_contrast(picture: Image, rng: np.random.Generator) -> Image:
    """What modern processing does: even out large structures, or equalise locally."""
    if rng.random() < 0.5:
        base = blur(picture, max(picture.shape) * rng.uniform(0.04, 0.12))
        return np.asarray(np.clip(picture + rng.uniform(0.3, 1.2) * (picture - base), 0, 1), np.float32)
    clahe = cv2.createCLAHE(clipLimit=float(rng.uniform(1.0, 3.0)), tileGridSize=(8, 8))
    return np.asarray(clahe.apply((picture * 255).astype(np.uint8)), np.float32) / np.float32(255)


def place_objects(picture: Image, rng: np.random.Generator, randomise: float) -> None:
    """Tubes, electrodes, clips and markers, drawn in place."""
    rows, columns = picture.shape
    size = max(rows, columns)

    def point() -> tuple[float, float]:
        return float(rng.uniform(0, columns)), float(rng.uniform(0, rows))

    for _ in range(rng.poisson(1.0 * randomise)):
        _wire(picture, [point(), point(), point()], max(1, round(size * rng.uniform(0.002, 0.008))), rng)
    for _ in range(rng.poisson(0.6 * randomise)):
        x, y = point()
        radius = max(2, round(size * rng.uniform(0.008, 0.035)))
        layer = np.zeros(picture.shape, np.uint8)
        filled = -1 if rng.random() < 0.5 else max(1, radius // 3)
        cv2.circle(layer, (round(x), round(y)), radius, 255, filled, cv2.LINE_AA)
        _lay(picture, layer, rng.uniform(0.1, 0.6))
    if rng.random() < 0.25 + 0.5 * randomise:
        letter, side = ("R", 0.03) if rng.random() < 0.6 else ("L", 0.90)
        at = (columns * (side + rng.uniform(-0.02, 0.05)), rows * rng.uniform(0.06, 0.5))
        _text(picture, letter, at, size * rng.uniform(0.0010, 0.0026), rng)
    for words in ("AP", "KV59", "PORTABLE", "SUPINE", "mAs:2.80"):
        if rng.random() < 0.06 * randomise:
            at = (columns * rng.uniform(0.0, 0.85), rows * rng.choice([0.03, 0.06, 0.97]))
            _text(picture, words, at, size * 0.0011, rng)


def _wire(picture: Image, ends: list[tuple[float, float]], width: int, rng: np.random.Generator) -> None:
    t = np.linspace(0, 1, 40)[:, None]
    a, b, c = (np.asarray(end) for end in ends)
    path = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    layer = np.zeros(picture.shape, np.uint8)
    cv2.polylines(layer, [np.round(path * 16).astype(np.int32)], False, 255, width, cv2.LINE_AA, 4)
    _lay(picture, layer, rng.uniform(0.05, 0.45))


def _lay(picture: Image, layer: Mask, density: float) -> None:
    np.clip(picture + layer * np.float32(density / 255), 0, 1, out=picture)


def _text(picture: Image, words: str, at: tuple[float, float], scale: float, rng: np.random.Generator) -> None:
    font = _FONTS[int(rng.integers(len(_FONTS)))]
    place = (round(at[0]), round(at[1]))
    weight = max(1, round(scale * rng.uniform(1, 3)))
    layer = np.zeros(picture.shape, np.uint8)
    cv2.putText(layer, words, place, font, scale, 255, weight, cv2.LINE_AA)
    _lay(picture, layer, rng.uniform(0.6, 1.0))


def collimate(picture: Image, labels: Mask, rng: np.random.Generator, randomise: float) -> None:
    """Shutter borders, mostly black, sometimes grey or white; hidden truth becomes background."""
    if rng.random() > 0.15 + 0.55 * randomise:
        return
    rows, columns = picture.shape
    inset = rng.uniform(0.0, 0.10, 4) * (rng.random(4) < 0.5)
    left, right = round(inset[0] * columns), columns - round(inset[1] * columns)
    top, bottom = round(inset[2] * rows), rows - round(inset[3] * rows)
    corners: Points = np.asarray([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    if rng.random() < 0.3:
        corners += rng.normal(0, 0.012, (4, 2)) * [columns, rows]
    field = np.zeros((rows, columns), np.uint8)
    cv2.fillPoly(field, [np.round(corners).astype(np.int32)], 1)
    labels[field == 0] = 0
    shade = rng.choice([0.0, 0.0, 0.0, rng.uniform(0, 0.2), 1.0])
    scatter = blur(field.astype(np.float32), rng.uniform(0.6, 3.0))
    picture[:] = np.clip(picture * scatter + np.float32(shade) * (1 - scatter), 0.0, 1.0)

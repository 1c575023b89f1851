"""The chest as a sum of thicknesses, and its exact truth.

Every tissue adds its thickness times a density; air in the lungs, trachea and stomach
subtracts. The result is an attenuation picture without units: 0 is air beside the patient, about 1
soft tissue of full depth.
"""

from __future__ import annotations

import numpy as np

from schema.regions import REGION_BY_NAME, Region
from worker.phantom.anatomy import Anatomy
from worker.phantom.canvas import Canvas, Image, Mask, Points, blur, cloud, curve, thickness


def truth(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> Mask:
    """The label map, uint8 of shape (rows, columns)."""
    labels = np.zeros((canvas.rows, canvas.columns), np.uint8)

    def put(region: Region, shape: Points) -> None:
        canvas.label(labels, shape, REGION_BY_NAME[region].value)

    put(Region.RIGHT_SUBDIAPHRAGM, anatomy.subdiaphragm(0))
    put(Region.LEFT_SUBDIAPHRAGM, anatomy.subdiaphragm(1))
    put(Region.MEDIASTINUM, anatomy.mediastinum())
    put(Region.SPINE, anatomy.spine())
    put(Region.RIGHT_LUNG, anatomy.lung(0))
    put(Region.LEFT_LUNG, anatomy.lung(1))
    _put_carina(labels, canvas, anatomy, float(rng.uniform(2.5, 3.9)))
    return labels


def _put_carina(labels: Mask, canvas: Canvas, anatomy: Anatomy, radius: float) -> None:
    """A disc of ``radius`` pixels on the 256 x 256 grid, never outside spine and mediastinum."""
    x, y = canvas.frame.pixels(np.asarray([[anatomy.carina_u, anatomy.carina_v]]))[0]
    half_x, half_y = max(0.8, radius * canvas.columns / 256), max(0.8, radius * canvas.rows / 256)
    rows, columns = np.ogrid[: canvas.rows, : canvas.columns]
    disc = ((columns - x) / half_x) ** 2 + ((rows - y) / half_y) ** 2 <= 1.0
    between = [REGION_BY_NAME[region].value for region in (Region.SPINE, Region.MEDIASTINUM)]
    labels[disc & np.isin(labels, between)] = REGION_BY_NAME[Region.CARINA].value


def attenuation(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator, randomise: float, opacity: Image) -> Image:
    """The chest's attenuation picture; ``opacity`` (0..1) is how much of the lungs' air is replaced."""
    rows, columns = canvas.rows, canvas.columns
    unit = canvas.frame.half_width

    def strength(middle: float, spread: float = 0.5) -> float:
        return float(middle * (1 + spread * randomise * rng.uniform(-1, 1) * 1.4))

    body = canvas.fill(*_body(canvas, anatomy, rng))
    total = 0.92 * thickness(body, 0.55 * unit)
    total *= 1.0 + strength(0.10) * cloud(rng, rows, columns, 4)

    lungs = canvas.fill(anatomy.lung(0), anatomy.lung(1))
    depth = 0.30 * lungs + 0.70 * thickness(lungs, 0.42 * unit)
    heart = canvas.blur(canvas.fill(anatomy.heart()), 0.012)
    pedicle = canvas.blur(canvas.fill(anatomy.vessels_shadow()), 0.02)
    solid = np.maximum(heart * strength(0.86, 0.15), pedicle * strength(0.80, 0.2))
    air = depth * (1.0 - np.clip(solid, 0, 1))
    vessels = _vessels(canvas, anatomy, rng) * lungs
    air *= 1.0 - strength(0.22) * np.clip(vessels, 0, 1)
    air *= 1.0 - strength(0.10, 0.9) * cloud(rng, rows, columns, 14)
    air *= 1.0 - opacity
    total -= strength(0.55, 0.45) * air
    total += strength(0.12) * solid * (1 - lungs * 0.5)

    belly = canvas.fill(_belly(anatomy))
    total += strength(0.14, 0.9) * canvas.blur(belly, rng.uniform(0.004, 0.012)) * (1 - lungs)
    total -= strength(0.26, 0.9) * _bowel_gas(canvas, anatomy, rng)
    total += strength(1.0, 0.35) * _bones(canvas, anatomy, rng, strength(1.0, 0.55))
    total -= strength(0.13, 0.7) * _airway(canvas, anatomy)
    return np.asarray(np.maximum(total, 0.0) * body**0.5, np.float32)


def _body(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> list[Points]:
    """Outlines of trunk, neck, head and arms."""
    wall, neck = anatomy.wall, anatomy.neck
    v = np.linspace(0.18, 2.6, 30)
    flank = np.stack([np.maximum(anatomy.cage(v), 0.82) + wall * (0.75 + 0.25 * v), v], axis=1)
    shoulder = 1.10 + wall
    lift = -0.10 if anatomy.arms > 0.45 else 0.02
    top = curve((neck, -1.2), (neck, -0.28), (neck + 0.22, -0.14), (shoulder, lift), (shoulder + 0.04, 0.12), count=8)
    side = np.concatenate([top, flank])
    shapes = [np.concatenate([side, (side * [-1.0, 1.0])[::-1]])]
    head = -0.28 - rng.uniform(0.05, 0.35)
    size = 0.72 - 0.20 * anatomy.maturity
    shapes.append(canvas.ellipse(rng.uniform(-0.06, 0.06), head - size / canvas.frame.aspect, size * 0.86, size))
    return shapes + [_arm(anatomy, sign)[0] for sign in (-1.0, 1.0)]


def _arm(anatomy: Anatomy, sign: float) -> tuple[Points, Points]:
    """Outline of an upper arm and its bone's line, raised or hanging by ``anatomy.arms``."""
    joint = np.asarray([1.08 + 0.4 * anatomy.wall, 0.0])
    angle = np.interp(anatomy.arms, [0.0, 0.45, 0.55, 1.0], [1.45, 1.05, 0.1, -1.15])
    along = np.asarray([np.cos(angle), np.sin(angle) * 0.8])
    across = np.asarray([-along[1], along[0]]) * (0.16 + 0.35 * anatomy.wall)
    far = joint + 2.2 * along
    outline = np.asarray([joint + across, far + across, far - across, joint - across])
    return outline * [sign, 1.0], np.asarray([joint, far]) * [sign, 1.0]


def _belly(anatomy: Anatomy) -> Points:
    """What lies below both diaphragms inside the rib cage and belly wall."""
    right, left = anatomy.diaphragm(0) * [-1.0, 1.0], anatomy.diaphragm(1)[::-1]
    sides = np.asarray([[1.02, anatomy.base[1] + 0.25], [1.05, 3.0], [-1.05, 3.0], [-1.02, anatomy.base[0] + 0.25]])
    return np.concatenate([right, left, sides])


def _vessels(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> Image:
    """Hila and branching vessels; 0..1."""
    thick: list[Points] = []
    thin: list[Points] = []
    for side in (-1.0, 1.0):
        hilum = np.asarray([side * (anatomy.pedicle * 1.05), anatomy.carina_v + rng.uniform(0.05, 0.16)])
        for _ in range(13):
            direction = rng.uniform(-1.25, 1.35)
            length = rng.uniform(0.25, 0.65)
            step = np.asarray([side * np.cos(direction), np.sin(direction)]) * length * [1.0, 0.75]
            sway = rng.normal(0, 0.07, 2)
            end = hilum + step
            thick.append(curve(tuple(hilum), tuple(hilum + 0.45 * step + sway), tuple(end), count=6))
            for _ in range(2):
                fork = hilum + step * rng.uniform(0.3, 0.8) + 0.4 * sway
                tip = fork + step * rng.uniform(0.3, 0.6) + rng.normal(0, 0.09, 2)
                thin.append(np.asarray([fork, 0.5 * (fork + tip) + rng.normal(0, 0.015, 2), tip]))
    hila = canvas.fill(
        *[canvas.ellipse(s * (anatomy.pedicle + 0.03), anatomy.carina_v + 0.11, 0.11, 0.19) for s in (-1.0, 1.0)]
    )
    big = canvas.stroke(thick, rng.uniform(0.012, 0.024))
    small = canvas.stroke(thin, 0.009)
    return canvas.blur(0.75 * big + 0.45 * small, 0.008) + 0.9 * canvas.blur(hila, 0.05)


def _airway(canvas: Canvas, anatomy: Anatomy) -> Image:
    """Trachea and main bronchi, 0..1; they part at the carina."""
    u, v = anatomy.carina_u, anatomy.carina_v
    trachea = canvas.stroke([curve((0.0, -0.5), (0.0, -0.05), (u, v - 0.035))], 0.115 - 0.02 * anatomy.maturity)
    bronchi = canvas.stroke(
        [
            curve((u, v - 0.045), (u - 0.11, v + 0.055), (u - 0.21, v + 0.15)),
            curve((u, v - 0.045), (u + 0.14, v + 0.045), (u + 0.30, v + 0.12)),
        ],
        0.075,
    )
    return canvas.blur(np.maximum(trachea, 0.8 * bronchi), 0.014)


def _bowel_gas(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> Image:
    """Stomach bubble under the left dome and some bowel loops, 0..1."""
    under = max(anatomy.dome[1], anatomy.medial_base[1]) + 0.05
    size = rng.uniform(0.06, 0.22)
    loops = [
        canvas.ellipse(0.45 + rng.uniform(-0.1, 0.15), under + size * 0.5, size * 1.3, size, rng.uniform(-0.5, 0.5))
    ]
    for _ in range(int(rng.integers(0, 9))):
        u, v = rng.uniform(-0.85, 0.85), rng.uniform(1.2, 1.9)
        loops.append(canvas.ellipse(u, v, rng.uniform(0.05, 0.2), rng.uniform(0.04, 0.12), rng.uniform(-1.5, 1.5)))
    return canvas.blur(canvas.fill(*loops), 0.03)


def _bones(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator, ribs: float) -> Image:
    """Ribs, spine, clavicles, shoulder blades, upper arms and jaw; ``ribs`` is how dense the ribs are."""
    back: list[Points] = []
    front: list[Points] = []
    for number in range(12):
        for side in (0, 1):
            posterior, anterior = anatomy.rib(number, side)
            back.append(posterior)
            if number < 10:
                front.append(anterior)
    bones = ribs * 0.125 * canvas.stroke(back, anatomy.rib_width, 0.60)
    bones += ribs * 0.075 * canvas.stroke(front, anatomy.rib_width * 1.05, 0.62)
    bones += _spine(canvas, anatomy)

    tilt = rng.uniform(-0.10, 0.10)
    clavicles = [
        curve((s * 0.13, 0.02 + 0.4 * tilt), (s * 0.42, 0.0 + tilt), (s * 0.75, -0.06 + tilt), (s * 1.02, -0.09 + tilt))
        for s in (-1.0, 1.0)
    ]
    bones += 0.16 * canvas.stroke(clavicles, 0.075, 0.65)
    wing = rng.uniform(0.78, 1.02)
    blades = [
        np.asarray([[s * wing * 1.18, -0.06], [s * wing * 0.80, 0.10], [s * wing * 0.98, 0.50], [s * wing * 1.2, 0.15]])
        for s in (-1.0, 1.0)
    ]
    bones += 0.06 * canvas.blur(canvas.fill(*blades), 0.012)
    bones += 0.26 * canvas.stroke([_arm(anatomy, s)[1] for s in (-1.0, 1.0)], 0.15, 0.55)
    size = 0.72 - 0.20 * anatomy.maturity
    jaw = curve((-size * 0.55, -0.62), (-size * 0.38, -0.40), (0.0, -0.33), (size * 0.38, -0.40), (size * 0.55, -0.62))
    bones += rng.uniform(0.0, 0.22) * canvas.stroke([jaw], 0.14, 0.6)
    return canvas.blur(bones, 0.006)


def _spine(canvas: Canvas, anatomy: Anatomy) -> Image:
    """Vertebral bodies with endplates, pedicles and spinous processes."""
    pitch, half = anatomy.rib_pitch, anatomy.vertebra
    bodies: list[Points] = []
    plates: list[Points] = []
    dots: list[Points] = []
    for level in range(-5, 19):
        v = -0.09 + level * pitch
        width = half * (0.80 if level < 0 else 0.92 + 0.012 * level)
        top, bottom = v - 0.41 * pitch, v + 0.41 * pitch
        waist = width * 0.90
        outline = [[-width, top], [width, top], [waist, v], [width, bottom], [-width, bottom], [-waist, v]]
        bodies.append(np.asarray(outline))
        plates.extend(np.asarray([[-width, edge], [width, edge]]) for edge in (top, bottom))
        dots.extend(canvas.ellipse(s * width * 0.62, v - 0.08 * pitch, 0.020, 0.030) for s in (-1.0, 1.0))
        dots.append(canvas.ellipse(0.0, v + 0.25 * pitch, 0.014, 0.035))
    column = canvas.fill(np.asarray([[-half, -1.0], [half, -1.0], [half, 3.0], [-half, 3.0]]))
    bone = 0.11 * canvas.blur(column, 0.03) + 0.09 * canvas.fill(*bodies)
    return np.asarray(bone + 0.05 * canvas.stroke(plates, 0.022) + 0.05 * canvas.fill(*dots), np.float32)


def pneumonia_opacity(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> Image:
    """Patchy consolidation: the fraction of lung air replaced, 0..1."""
    field = np.zeros((canvas.rows, canvas.columns), np.float32)
    for _ in range(int(rng.integers(1, 5))):
        side = 1.0 if rng.random() < 0.5 else -1.0
        v = rng.uniform(0.15, 0.88)
        wide = float(anatomy.cage(np.asarray([v]))[0])
        u = side * rng.uniform(anatomy.pedicle + 0.12, max(wide - 0.12, anatomy.pedicle + 0.2))
        radius = rng.uniform(0.14, 0.38)
        shape = canvas.fill(canvas.ellipse(u, v, radius, radius * rng.uniform(0.6, 1.1), rng.uniform(-1, 1)))
        field = np.maximum(field, canvas.blur(shape, radius * 0.35) * rng.uniform(0.6, 1.0))
    patchy = field * (1.0 + 0.75 * cloud(rng, canvas.rows, canvas.columns, rng.uniform(9, 26)))
    patchy = blur(np.clip(1.5 * patchy - 0.25, 0.0, 1.0), 1.0)
    return np.asarray(patchy * rng.uniform(0.45, 0.92), np.float32)

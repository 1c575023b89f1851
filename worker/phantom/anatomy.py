"""The chest's shapes, from a newborn's to an adult's.

Which pixel belongs to which region
-----------------------------------
Holste et al. (section 2.1) divide the thorax into seven regions from drawn boundaries
of lungs, spine and thorax bottom plus one carina pixel. What the paper leaves open is
decided here so that no region overlaps another:

* **Lungs** reach the visible diaphragm and include the lung behind the heart, as people
  draw them on children's films.
* **Spine** is the vertebral column as a band from the level of the apices to the bottom of
  the thorax.
* **Mediastinum** is what lies between the lungs from the apices to the diaphragm, less spine
  and carina: a strip either side of the spine, which it continues behind.
* **Subdiaphragm** is the rib cage below the lung, left and right of the spine.
* **Carina** is a disc around the bifurcation, 5-75 pixels on a 256 x 256 grid.
* **Background** is everything outside the rib cage, and what a collimator hides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.phantom.canvas import Points, curve

DAYS_PER_YEAR = 365.25


@dataclass(frozen=True)
class Anatomy:
    """One person's chest; lengths in units of u or v (see :mod:`worker.phantom.canvas`).

    ``maturity`` runs from 0 (newborn) to 1 (grown up); ``aspect`` is lung height over half the
    chest's width; ``taper`` is the cage's exponent, larger is more conical; pairs are (right, left).
    """

    maturity: float
    aspect: float
    apex_u: float
    shoulder_power: float
    taper: float
    waist: float
    vertebra: float
    strip: float
    carina_u: float
    carina_v: float
    thorax_bottom: float
    base: tuple[float, float]
    dome: tuple[float, float]
    dome_u: tuple[float, float]
    medial_base: tuple[float, float]
    apex_v: tuple[float, float]
    heart_left: float
    heart_right: float
    heart_top: float
    pedicle: float
    thymus: float
    aortic_knob: float
    rib_drop: float
    rib_width: float
    rib_pitch: float
    wall: float
    arms: float
    neck: float

    def cage(self, v: Points) -> Points:
        """Half the rib cage's width at height ``v``."""
        t = np.clip(v / 0.92, 0.0, 1.0)
        rounded = (1.0 - (1.0 - t) ** self.shoulder_power) ** self.taper
        width = self.apex_u + (1.0 - self.apex_u) * rounded
        return np.asarray(width - self.waist * np.clip(v - 0.95, 0.0, 1.2) ** 1.5)

    def gap(self, v: Points) -> Points:
        """Half the distance between the lungs at height ``v``."""
        rise = 1.0 - np.clip(v / 0.17, 0.0, 1.0)
        flare = 1.0 - np.sqrt(1.0 - rise**2)
        return np.asarray(self.vertebra + self.strip + (self.apex_u - self.vertebra - self.strip) * flare)

    def lung(self, side: int) -> Points:
        """A lung's outline; ``side`` is 0 for the patient's right (negative u), 1 for the left."""
        sign = (-1.0, 1.0)[side]
        top, base = self.apex_v[side], self.base[side]
        t = np.linspace(0, 1, 60) ** 2
        down = t * base
        # A round cap on the conical cage.
        cap = 0.05 * np.exp(-down / 0.03) * np.sqrt(np.clip(down / 0.02, 0.0, 1.0))
        lateral = np.stack(
            [np.maximum(self.cage(down) - 0.035, self.apex_u) + cap, top + down * (base - top) / base], axis=1
        )
        dome = self.diaphragm(side)
        rise = (self.medial_base[side] - top) * np.linspace(1, 0, 60) ** 2
        medial = np.stack([self.gap(rise), top + rise], axis=1)
        outline = np.concatenate([lateral, dome[1:-1], medial])
        return np.asarray(outline * [sign, 1.0])

    def diaphragm(self, side: int) -> Points:
        """A diaphragm dome from the costophrenic angle to the spine, u positive."""
        base = self.base[side]
        edge = float(self.cage(np.asarray([base]))[0]) - 0.035
        inner = self.vertebra + self.strip
        middle = inner + (edge - inner) * self.dome_u[side]
        dome = self.dome[side]
        return curve(
            (edge, base),
            (edge - 0.10 * (edge - middle), base - 0.30 * (base - dome)),
            (0.5 * (edge + middle), dome + 0.22 * (base - dome)),
            (middle, dome),
            (0.5 * (middle + inner), dome + 0.25 * (self.medial_base[side] - dome)),
            (inner, self.medial_base[side]),
            count=8,
        )

    def subdiaphragm(self, side: int) -> Points:
        """The rib cage below a lung, down to the thorax's bottom."""
        sign = (-1.0, 1.0)[side]
        v = np.linspace(self.base[side] - 0.02, self.thorax_bottom, 16)
        lateral = np.stack([self.cage(v) - 0.02, v], axis=1)
        bottom = np.asarray([[0.0, self.thorax_bottom + 0.02], [0.0, self.medial_base[side] - 0.01]])
        return np.asarray(np.concatenate([lateral, bottom, self.diaphragm(side)[::-1]]) * [sign, 1.0])

    def mediastinum(self) -> Points:
        """Between the lungs from the apices to the diaphragm; the lungs are drawn over it."""
        bottom = max(self.medial_base)
        # A little into each lung, drawn over it later, so that no gap is left along the drawn border.
        inner = self.vertebra + self.strip + 0.02
        right = [[-self.apex_u, self.apex_v[0]], [-self.apex_u, 0.3], [-inner, 0.5], [-inner, self.medial_base[0]]]
        left = [[inner, self.medial_base[1]], [inner, 0.5], [self.apex_u, 0.3], [self.apex_u, self.apex_v[1]]]
        return np.asarray([*right, [0.0, bottom], *left])

    def spine(self) -> Points:
        """The vertebral column from the apices to the thorax's bottom."""
        top, bottom = min(self.apex_v), self.thorax_bottom + 0.02
        v = np.linspace(top, bottom, 24)
        side = np.stack([np.full_like(v, self.vertebra), v], axis=1)
        return np.concatenate([side, (side * [-1.0, 1.0])[::-1]])

    def heart(self) -> Points:
        """The heart's outline."""
        floor = 0.5 * (self.medial_base[0] + self.dome[1]) + 0.05
        top, right, left = self.heart_top, -self.heart_right, self.heart_left
        return curve(
            (0.0, top - 0.03),
            (right * 0.75, top + 0.10),
            (right, top + 0.55 * (floor - top)),
            (right * 0.80, floor),
            (0.1, floor + 0.04),
            (left * 0.75, floor + 0.02),
            (left, floor - 0.14 * (floor - top)),
            (left * 0.88, top + 0.50 * (floor - top)),
            (left * 0.50, top + 0.12),
            (0.0, top - 0.03),
            count=10,
        )

    def vessels_shadow(self) -> Points:
        """Great vessels and, in small children, the thymus, above the heart."""
        inlet, low = -0.12, self.heart_top + 0.14
        width, sail = self.pedicle, self.pedicle + self.thymus
        return curve(
            (-0.6 * width, inlet), (-width, 0.12), (-sail, 0.5 * (low + 0.12)), (-width * 1.1, low),
            (width * 1.1, low), (sail * 0.95 + 0.5 * self.aortic_knob, 0.5 * (low + 0.14)),
            (width + self.aortic_knob, 0.17), (0.7 * width, 0.05), (0.5 * width, inlet), count=8,
        )  # fmt: skip

    def rib(self, number: int, side: int) -> tuple[Points, Points]:
        """Back and front part of rib ``number`` (0-11): a tilted ring seen from the front."""
        sign = (-1.0, 1.0)[side]
        start = -0.07 + number * self.rib_pitch
        drop = self.rib_drop * (0.75 + 0.05 * number)
        reach = float(self.cage(np.asarray([max(start + 0.45 * drop, 0.012)]))[0]) + 0.005
        angle = np.linspace(0.10, 2.75 - 0.05 * number, 40)
        u = sign * reach * np.sin(angle)
        v = start + drop * (1 - np.cos(angle)) / 2 - 0.035 * np.sin(2 * angle) * (angle < np.pi / 2)
        ring = np.stack([u, v], axis=1)
        return ring[angle <= 1.7], ring[angle > 1.55]


def sample_anatomy(rng: np.random.Generator, age_days: int, randomise: float) -> Anatomy:
    """Draw a chest of this age; ``randomise`` (0-1) scales the differences between people."""
    years = age_days / DAYS_PER_YEAR
    mature = float(np.clip(years / 17.0, 0.0, 1.0)) ** 0.7

    def vary(child: float, adult: float, spread: float) -> float:
        return float(child + (adult - child) * mature + spread * randomise * rng.uniform(-1, 1) * 1.6)

    inflation = rng.uniform(-1, 1) * randomise * 0.06
    base = 1.0 + inflation
    dome_height = vary(0.13, 0.17, 0.07) * (1.0 if rng.random() > 0.15 * randomise else 0.45)
    lower_left = vary(0.025, 0.03, 0.03)
    medial = vary(0.055, 0.09, 0.045)
    vertebra = vary(0.115, 0.125, 0.020)
    return Anatomy(
        maturity=mature,
        aspect=vary(1.42, 1.85, 0.20),
        apex_u=vary(0.32, 0.38, 0.06),
        shoulder_power=vary(1.9, 2.6, 0.40),
        taper=vary(0.66, 0.55, 0.13),
        waist=vary(0.14, 0.22, 0.12),
        vertebra=vertebra,
        strip=max(0.035, vary(0.060, 0.055, 0.022)),
        carina_u=vary(-0.015, -0.02, 0.02),
        carina_v=vary(0.32, 0.34, 0.05),
        thorax_bottom=base + vary(0.27, 0.22, 0.08),
        base=(base, base + 0.4 * lower_left + vary(0, 0, 0.03)),
        dome=(base - dome_height, base - dome_height * vary(0.95, 0.95, 0.2) + lower_left),
        dome_u=(vary(0.45, 0.42, 0.12), vary(0.48, 0.46, 0.12)),
        medial_base=(base - dome_height + medial, base - dome_height + medial + lower_left * 0.6 + vary(0, 0, 0.02)),
        apex_v=(vary(0, 0, 0.025), vary(0, 0, 0.025)),
        heart_left=vary(0.56, 0.52, 0.13),
        heart_right=vary(0.29, 0.26, 0.09),
        heart_top=vary(0.36, 0.43, 0.07),
        pedicle=vary(0.25, 0.23, 0.07),
        thymus=max(0.0, float(rng.uniform(-0.15, 0.28)) * randomise * (1 - min(years / 4, 1.0))),
        aortic_knob=max(0.0, vary(-0.06, 0.07, 0.05)),
        rib_drop=vary(0.30, 0.42, 0.11),
        rib_width=vary(0.060, 0.062, 0.016),
        rib_pitch=vary(0.102, 0.096, 0.010),
        wall=max(0.05, vary(0.13, 0.15, 0.08)),
        arms=float(rng.uniform(0, 1)),
        neck=vary(0.36, 0.36, 0.06),
    )

"""One synthetic radiograph from one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schema.findings import Finding
from schema.regions import LUNGS, REGION_BY_NAME
from worker.phantom import chest, film
from worker.phantom.anatomy import DAYS_PER_YEAR, Anatomy, sample_anatomy
from worker.phantom.canvas import Canvas, Frame, Image, Mask
from worker.phantom.negatives import negative_picture

_LUNGS = [REGION_BY_NAME[region].value for region in LUNGS]


@dataclass(frozen=True)
class Phantom:
    """A synthetic radiograph and its truth.

    Attributes
    ----------
    image
        float32 of shape (rows, columns), 0..1, white is dense; the patient's right is on the
        image's left.
    labels
        uint8 of shape (rows, columns), values of :data:`schema.regions.HOLSTE_REGIONS`; all
        background where the picture shows no frontal chest.
    opacity
        float32 of shape (rows, columns), 0..1: how much of the lung's air is replaced by
        consolidation; all zero without pneumonia.
    findings
        Slugs of :class:`schema.findings.Finding`; empty for a picture that is no frontal chest.
    age_days, sex
        Invented; sex is ``"F"``, ``"M"`` or ``"O"``.
    seed
        What :func:`make_phantom` was called with.
    """

    image: Image
    labels: Mask
    opacity: Image
    findings: frozenset[str]
    age_days: int
    sex: str
    seed: int


def make_phantom(
    seed: int,
    *,
    rows: int = 512,
    columns: int = 448,
    age_days: int | None = None,
    pneumonia: bool | None = None,
    negative: bool = False,
    kind: str | None = None,
    randomise: float = 0.5,
) -> Phantom:
    """Draw a synthetic AP chest radiograph.

    Parameters
    ----------
    seed
        Same seed and arguments, same phantom.
    rows, columns
        Size in pixels, at least 32 each.
    age_days
        0 or more; drawn between birth and sixteen years when None.
    pneumonia
        Whether there is patchy consolidation; one in two when None.
    negative
        Draw something that is not a frontal chest: a limb, a pelvis, a lateral view, texture.
    kind
        Which of :data:`worker.phantom.negatives.NEGATIVE_KINDS`; any when None.
    randomise
        0 gives a textbook film, 0.5 what a ward makes, 1 the extremes a network should meet in
        training.

    Raises
    ------
    ValueError
        ``rows`` or ``columns`` below 32, ``age_days`` negative, or ``randomise`` outside 0..1.
    """
    if min(rows, columns) < 32:
        raise ValueError(f"a phantom needs at least 32 rows and columns, not {rows} x {columns}")
    if not 0.0 <= randomise <= 1.0:
        raise ValueError(f"randomise must lie between 0 and 1, not {randomise}")
    if age_days is not None and age_days < 0:
        raise ValueError(f"age_days must not be negative, not {age_days}")
    rng = np.random.Generator(np.random.PCG64(seed))
    age = int(rng.uniform(0, 1) ** 1.5 * 16 * DAYS_PER_YEAR) if age_days is None else age_days
    sex = str(rng.choice(["F", "M"]))
    ill = bool(rng.random() < 0.5) if pneumonia is None else pneumonia
    labels = np.zeros((rows, columns), np.uint8)
    opacity = np.zeros((rows, columns), np.float32)
    if negative:
        findings: frozenset[str] = frozenset()
        attenuation = negative_picture(rng, rows, columns, kind)
    else:
        findings = frozenset({str(Finding.PNEUMONIA if ill else Finding.NO_FINDING)})
        anatomy = sample_anatomy(rng, age, randomise)
        canvas = Canvas(rows, columns, _frame(rng, rows, columns, anatomy, randomise))
        labels = chest.truth(canvas, anatomy, rng)
        if ill:
            opacity = chest.pneumonia_opacity(canvas, anatomy, rng)
        attenuation = chest.attenuation(canvas, anatomy, rng, randomise, opacity)
    image = film.develop(attenuation, rng, randomise)
    film.place_objects(image, rng, randomise)
    film.collimate(image, labels, rng, randomise)
    lungs = np.isin(labels, _LUNGS)
    return Phantom(image, labels, np.where(lungs, opacity, np.float32(0)), findings, age, sex, seed)


def _frame(rng: np.random.Generator, rows: int, columns: int, anatomy: Anatomy, randomise: float) -> Frame:
    """Place the chest on the film: large enough to fill it, with the errors of a ward."""
    spread = randomise
    fit = min(0.42 * columns, 0.74 * rows / anatomy.aspect)
    half_width = fit * (1 + spread * rng.uniform(-0.22, 0.20))
    height = half_width * anatomy.aspect * (1 + spread * rng.uniform(-0.18, 0.18))
    slack = rows - height
    return Frame(
        centre_x=columns * (0.5 + spread * rng.uniform(-0.10, 0.10)),
        top_y=slack * (0.42 + spread * rng.uniform(-0.40, 0.40)),
        half_width=half_width,
        height=height,
        angle=spread * float(rng.normal(0, 0.075)),
        bend=spread * float(rng.normal(0, 0.045)),
        bend_phase=float(rng.uniform(-0.4, 0.4)),
    )

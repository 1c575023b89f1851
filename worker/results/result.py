"""One film's result as the pipeline hands it to the database."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.film.prepared import FilmFacts, Geometry

LabelMap = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Measurement:
    """One region on one map.

    ``area_pixels`` counts pixels of the network's grid; ``area_mm2`` is None unless the
    header's spacing can be trusted. ``components`` counts 8-connected components,
    ``centroid_row``/``centroid_column`` are fractions of the grid (0-1, None when empty),
    ``mean_probability`` is the network's mean probability inside the region (0-1, None when
    empty), ``repaired_pixels`` how many pixels post-processing changed away from or into it.
    """

    region: str
    area_pixels: int
    area_fraction: float
    area_mm2: float | None
    components: int
    centroid_row: float | None
    centroid_column: float | None
    bounding_box: tuple[int, int, int, int] | None
    mean_probability: float | None
    repaired_pixels: int


@dataclass(frozen=True)
class Flag:
    """One rule that fired. ``source`` is ``"raw"``, ``"cleaned"``, ``"input"`` or ``"result"``."""

    rule: str
    rule_version: int
    source: str
    region: str | None = None
    value: float | None = None
    threshold: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class FindingScore:
    """One finding: ensemble mean probability, spread, and each member's probability (all 0-1)."""

    finding: str
    probability: float
    spread: float
    threshold: float
    positive: bool
    members: dict[str, float]


@dataclass(frozen=True)
class Segmentation:
    """Label maps on the network's grid, uint8 of shape (height, width).

    ``raw`` is winner-takes-all; ``cleaned`` is after post-processing.
    """

    raw: LabelMap
    cleaned: LabelMap
    carina_threshold: float | None
    repaired_pixels: int


@dataclass(frozen=True)
class Heatmap:
    """Class activation maps, uint8 of shape (findings, height, width), each scaled to 0-255."""

    findings: tuple[str, ...]
    maps: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FilmResult:
    """Everything one transaction writes for one film.

    ``ineligible_code`` is None for a film that is ``done``; otherwise a code of
    :data:`worker.errors.CODES` of kind ineligible, and ``ineligible_detail`` says why.
    """

    file_hash: str
    content_hash: str
    geometry: Geometry
    facts: FilmFacts
    segmentation: Segmentation | None
    measurements: list[Measurement] = field(default_factory=list)
    scores: list[FindingScore] = field(default_factory=list)
    heatmap: Heatmap | None = None
    flags: list[Flag] = field(default_factory=list)
    ineligible_code: str | None = None
    ineligible_detail: str = ""
    engine: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

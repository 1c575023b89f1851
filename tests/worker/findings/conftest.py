"""A textbook chest as a label map, and network-like probabilities for any label map."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from schema.regions import HOLSTE_REGIONS
from worker.film.prepared import FilmFacts, Geometry
from worker.findings.measurements import measure
from worker.findings.postprocess import PostprocessSettings, postprocess


def _chest(size: int = 256) -> np.ndarray:
    labels = np.zeros((256, 256), np.uint8)
    labels[60:190, 96:160] = 6
    labels[190:240, 30:128] = 4
    labels[190:240, 128:226] = 3
    cv2.ellipse(labels, (70, 120), (34, 72), 0, 0, 360, 2, -1)
    cv2.ellipse(labels, (186, 120), (34, 72), 0, 0, 360, 1, -1)
    labels[40:245, 118:138] = 5
    cv2.circle(labels, (128, 100), 3, 7, -1)
    return cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST)


def _probabilities(labels: np.ndarray, classes: int = 8, sure: float = 0.93) -> np.ndarray:
    """Each pixel ``sure`` of its label, the rest shared equally by the others."""
    rest = (1.0 - sure) / (classes - 1)
    return np.where(labels[None] == np.arange(classes)[:, None, None], sure, rest).astype(np.float32)


@pytest.fixture(scope="session")
def chest():
    return _chest


@pytest.fixture(scope="session")
def probabilities_of():
    return _probabilities


@pytest.fixture(scope="session")
def facts():
    def make(body_part: str = "CHEST", view_position: str = "AP", modality: str = "DX", age_days: int | None = 1200):
        return FilmFacts(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.1.1",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            photometric_interpretation="MONOCHROME2",
            modality=modality,
            body_part=body_part,
            view_position=view_position,
            bits_stored=12,
            age_days=age_days,
            voi_policy="window",
        )

    return make


@pytest.fixture(scope="session")
def finish():
    """Label map (and its probabilities) → probabilities, segmentation, measurements."""

    def run(labels: np.ndarray, probabilities: np.ndarray | None = None, regions=HOLSTE_REGIONS, **settings):
        if probabilities is None:
            probabilities = _probabilities(labels, len(regions))
        segmentation = postprocess(probabilities, regions, PostprocessSettings(**settings))
        return probabilities, segmentation, measure(segmentation, probabilities, regions, Geometry(512, 512))

    return run

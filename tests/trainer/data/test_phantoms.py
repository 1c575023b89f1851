from __future__ import annotations

import numpy as np
import pytest

from schema.findings import Finding
from trainer.data.phantoms import drawing_of

DRAWINGS = [drawing_of(seed) for seed in range(2000)]


def test_a_seed_always_means_the_same_phantom() -> None:
    first, second = drawing_of(5).draw(), drawing_of(5).draw()
    np.testing.assert_array_equal(first.image, second.image)
    assert drawing_of(6) != drawing_of(5)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_known_before_drawing_is_what_is_drawn(seed: int) -> None:
    drawing = drawing_of(seed)
    phantom = drawing.draw()
    assert phantom.image.shape == (drawing.rows, drawing.columns)
    assert phantom.age_days == drawing.age_days
    assert phantom.findings == {finding for finding, present in drawing.findings.items() if present}
    assert bool(phantom.labels.any()) is not drawing.negative


def test_the_mixture_is_as_described() -> None:
    assert np.mean([d.negative for d in DRAWINGS]) == pytest.approx(0.18, abs=0.03)
    assert np.mean([d.age_days >= 16 * 365 for d in DRAWINGS]) == pytest.approx(0.3, abs=0.04)
    assert np.mean([d.pneumonia for d in DRAWINGS]) == pytest.approx(0.5, abs=0.04)
    assert min(min(d.rows, d.columns) for d in DRAWINGS) >= 216
    assert len({d.seed for d in DRAWINGS}) == len(DRAWINGS)


def test_nothing_is_known_of_what_is_not_a_chest() -> None:
    assert all(bool(d.findings) is not d.negative for d in DRAWINGS)
    shown = [d.findings for d in DRAWINGS if not d.negative]
    assert all(said[Finding.PNEUMONIA] is not said[Finding.NO_FINDING] for said in shown)

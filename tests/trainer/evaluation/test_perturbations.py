"""Every row of the stress table: picture and truth move together, and the worker's reader undoes what it should."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

pytest.importorskip("pydantic")

from trainer.evaluation.perturbations import AS_IT_IS, PERTURBATIONS, Perturbation, as_dicom
from trainer.evaluation.whole_films import WholeFilm
from worker.film.prepare import prepare
from worker.film.prepared import PreparedFilm
from worker.film.source import FilmSource
from worker.phantom import make_phantom

BY_NAME = {row.name: row for row in PERTURBATIONS}
STEPS = ({"step": "percentile", "low": 0.5, "high": 99.5}, {"step": "resize", "height": 64, "width": 64})
LAID_ON = ("tube", "ecg")


@pytest.fixture(scope="module")
def film() -> WholeFilm:
    phantom = make_phantom(5, rows=120, columns=100, randomise=0.2)
    return WholeFilm(phantom.image, np.where(phantom.labels <= 2, phantom.labels, 0).astype(np.uint8))


def prepared(row: Perturbation, film: WholeFilm, folder: Path) -> PreparedFilm:
    path = folder / "film.dcm"
    path.write_bytes(as_dicom(row.change(film), row.storage, key=1, age_days=900.0))
    return prepare(FilmSource(path), {"network": STEPS})


def centroid(mask: np.ndarray) -> np.ndarray:
    """Row and column of a mask's centre, in pixels."""
    return np.argwhere(mask).mean(axis=0)


class TestGeometry:
    @pytest.mark.parametrize("row", [row for row in PERTURBATIONS if row.name not in LAID_ON], ids=lambda row: row.name)
    def test_the_truth_stays_under_the_picture(self, row: Perturbation, film: WholeFilm) -> None:
        assert film.labels is not None
        drawn = WholeFilm((film.labels == 1).astype(np.float32), film.labels)
        changed = row.change(drawn)
        assert changed.labels is not None
        assert changed.picture.shape == changed.labels.shape
        bright, left_lung = changed.picture > 0.5, changed.labels == 1
        assert left_lung.sum() > 100
        assert (bright & left_lung).sum() / (bright | left_lung).sum() > 0.95

    def test_centres_move_as_said(self, film: WholeFilm) -> None:
        assert film.labels is not None
        rows, columns = film.labels.shape
        block = np.zeros_like(film.labels)
        block[50:70, 60:80] = 1
        start = centroid(block == 1)
        small = WholeFilm(block.astype(np.float32), block)
        middle = np.array([rows - 1, columns - 1]) / 2
        turned = np.deg2rad(15) * np.array([1, -1])
        expected = {
            "shifted_right": start + np.array([0.0, 0.1 * columns]),
            "shifted_down": start + np.array([0.1 * rows, 0.0]),
            "mirrored_untold": [start[0], columns - 1 - start[1]],
            "half_size": (start + 0.5) / 2 - 0.5,
            "double_size": (start + 0.5) * 2 - 0.5,
            "borders": start + np.array([0.1 * rows, 0.1 * columns]),
        }
        for name, angle in zip(("rotated_left", "rotated_right"), turned, strict=True):
            # Rows run downwards: turning left lifts what lies right of the centre.
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            expected[name] = middle + turn @ (start - middle)
        for name, place in expected.items():
            labels = BY_NAME[name].change(small).labels
            assert labels is not None
            np.testing.assert_allclose(centroid(labels == 1), place, atol=0.6, err_msg=name)

    @pytest.mark.parametrize("name", LAID_ON)
    def test_objects_brighten_a_little_of_the_film_and_no_truth(self, name: str, film: WholeFilm) -> None:
        changed = BY_NAME[name].change(film)
        brighter = changed.picture - film.picture
        assert brighter.min() >= 0
        assert 0.002 < (brighter > 0.02).mean() < 0.1
        assert changed.labels is film.labels


class TestThroughTheReader:
    def test_the_header_undoes_what_it_tells(self, film: WholeFilm, tmp_path: Path) -> None:
        plain = prepared(AS_IT_IS, film, tmp_path).tensors["network"]
        for name in ("monochrome1", "mirrored"):
            np.testing.assert_allclose(prepared(BY_NAME[name], film, tmp_path).tensors["network"], plain, atol=2e-6)
        untold = prepared(BY_NAME["mirrored_untold"], film, tmp_path).tensors["network"]
        np.testing.assert_allclose(untold[..., ::-1], plain, atol=2e-6)

    def test_storing_costs_little_and_is_what_it_says(self, film: WholeFilm, tmp_path: Path) -> None:
        plain = prepared(AS_IT_IS, film, tmp_path).tensors["network"]
        for name, bits, most in (("bits_8", 8, 0.01), ("jpeg_75", 8, 0.08), ("window_wide", 12, 0.001)):
            seen = prepared(BY_NAME[name], film, tmp_path)
            assert seen.facts.bits_stored == bits
            apart = float(np.abs(seen.tensors["network"] - plain).max())
            assert apart < most
        assert prepared(BY_NAME["jpeg_75"], film, tmp_path).facts.transfer_syntax_uid == "1.2.840.10008.1.2.4.50"
        narrow = prepared(BY_NAME["window_narrow"], film, tmp_path)
        assert (narrow.tensors["network"] == 1.0).mean() > (plain == 1.0).mean() + 0.02

    def test_the_header_invents_nothing(self, film: WholeFilm) -> None:
        silent = pydicom.dcmread(BytesIO(as_dicom(film, AS_IT_IS.storage, key=1, age_days=None)))
        assert "PatientAge" not in silent
        assert "PatientBirthDate" not in silent
        assert "ImagerPixelSpacing" not in silent
        told = pydicom.dcmread(BytesIO(as_dicom(film, AS_IT_IS.storage, key=1, age_days=800.0)))
        assert told.PatientAge == "002Y"


def test_names_are_distinct_and_say_what_they_imitate() -> None:
    assert len(BY_NAME) == len(PERTURBATIONS)
    assert all(row.title and row.imitates for row in PERTURBATIONS)
    assert [row.name for row in PERTURBATIONS if not row.sides_told] == ["mirrored_untold"]

"""Intervals that draw patients, beside those that draw films."""

from __future__ import annotations

import numpy as np

from trainer.evaluation.patients import patient_aurocs, patient_means
from worker.bootstrap import aurocs, draw, means

FILMS = 40
SETTINGS = {"replicates": 1200, "seed": 3}


def made_up() -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(5)
    labels = (rng.random((FILMS, 2)) < 0.4).astype(float)
    labels[::7, 1] = np.nan
    return labels, rng.random((FILMS, 2)) + 0.3 * np.nan_to_num(labels), [f"{row:03d}" for row in range(FILMS)]


class TestOneFilmEach:
    def test_is_the_bootstrap_over_films(self) -> None:
        labels, scores, patients = made_up()
        ours, films = patient_aurocs(labels, scores, patients, **SETTINGS), aurocs(labels, scores, **SETTINGS)
        np.testing.assert_array_equal(ours.values, films.values)
        np.testing.assert_array_equal(ours.replicates, films.replicates)
        averages = patient_means(scores, patients, **SETTINGS)
        np.testing.assert_allclose(averages.replicates, means(scores, **SETTINGS).replicates)


class TestSeveralFilmsEach:
    def test_copies_of_every_film_change_nothing(self) -> None:
        labels, scores, patients = made_up()
        once = patient_aurocs(labels, scores, patients, **SETTINGS)
        labels, scores = np.repeat(labels, 3, axis=0), np.repeat(scores, 3, axis=0)
        thrice = patient_aurocs(labels, scores, np.repeat(patients, 3).tolist(), **SETTINGS)
        np.testing.assert_allclose(thrice.replicates, once.replicates)
        narrow = aurocs(labels, scores, **SETTINGS).intervals()[0]
        wide = thrice.intervals()[0]
        assert wide.high - wide.low > 1.4 * (narrow.high - narrow.low)

    def test_a_patient_comes_with_all_films(self) -> None:
        patients = ["a", "b", "b", "b"]
        values = np.array([[0.0], [1.0], [1.0], [np.nan]])
        averages = patient_means(values, patients, replicates=50, seed=1)
        assert averages.values[0] == 2 / 3
        a_drawn = (draw(2, 50, 1) == 0).sum(axis=1)
        np.testing.assert_allclose(averages.replicates[:, 0], (2 - a_drawn) * 2 / ((2 - a_drawn) * 2 + a_drawn))


def test_without_films_there_is_no_number() -> None:
    assert np.isnan(patient_aurocs(np.empty((0, 1)), np.empty((0, 1)), [], replicates=5, seed=1).values).all()
    assert np.isnan(patient_means(np.empty((0, 2)), [], replicates=5, seed=1).values).all()

"""Training samples: what the worker would feed the networks, from seeds alone."""

from __future__ import annotations

import numpy as np

from trainer.phantom_samples import CELLS, PREPROCESS, SIZE, draw_many, draw_samples
from worker.film.preprocess import check


def test_preprocessing_is_one_the_worker_accepts() -> None:
    check(PREPROCESS, 1, SIZE, SIZE)


def test_samples_have_pictures_truth_and_targets() -> None:
    samples = draw_samples(3, 24)
    assert samples.pictures.shape == samples.labels.shape == (24, SIZE, SIZE)
    assert set(np.unique(samples.targets)) == {0.0, 1.0}
    assert samples.targets.sum(axis=1).max() == 1.0
    chests, strangers = samples.chests(), samples.strangers()
    assert len(chests) + len(strangers) == 24
    assert all(labels.any() for labels in chests.labels)
    assert not strangers.labels.any()
    assert samples.pictures.max() > 200
    assert samples.opacities.shape == (24, CELLS, CELLS)
    ill = samples.targets[:, 0] == 1
    assert all(cells.any() for cells in samples.opacities[ill])
    assert not samples.opacities[~ill].any()


def test_same_seed_same_samples_however_many_processes() -> None:
    alone, shared = draw_many(5, 40, 1), draw_many(5, 40, 2)
    assert len(alone) == 40
    assert np.array_equal(alone.pictures, shared.pictures)
    assert np.array_equal(alone.labels, shared.labels)
    assert len({picture.tobytes() for picture in alone.pictures}) == 40


def test_batches_follow_the_generator() -> None:
    samples = draw_samples(3, 8)
    first, again = (samples.batch(np.random.Generator(np.random.PCG64(1)), 4) for _ in range(2))
    assert np.array_equal(first.pictures, again.pictures)
    assert len(samples.batch(np.random.Generator(np.random.PCG64(1)), 20)) == 20

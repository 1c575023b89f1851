from __future__ import annotations

import numpy as np
import pytest

from worker.monitor.drift_charts import (
    BASELINE_NIGHTS,
    LEAST_FILMS,
    PSI_LIMIT,
    distances,
    is_over,
    is_signal,
    means,
    shares,
)

NIGHTS = BASELINE_NIGHTS + 10


def cells(*columns: float, nights: int = NIGHTS) -> np.ndarray:
    """The same number of films every night."""
    return np.tile(np.array(columns, float), (nights, 1))


def test_the_scatter_of_a_quiet_chart_is_about_one_sigma() -> None:
    rng = np.random.default_rng(1)
    films = cells(60, 40, nights=2000)
    sums = films * [0.3, 0.6] + rng.normal(0, 0.1, films.shape) * np.sqrt(films)
    _, _, sigmas = means(sums, films * (0.01 + np.array([0.09, 0.36])), films, BASELINE_NIGHTS)
    assert 0.7 < sigmas[BASELINE_NIGHTS:].std() < 1.1
    having = rng.binomial(films.astype(int), [0.2, 0.1]).astype(float)
    _, _, sigmas = shares(having, films, BASELINE_NIGHTS)
    # What lies nearest to what is expected counts as 0.
    assert 0.5 < sigmas[BASELINE_NIGHTS:].std() < 1.1


def test_a_moved_mean_lies_far_off() -> None:
    rng = np.random.default_rng(2)
    films = cells(80)
    sums = films * 0.4 + rng.normal(0, 0.1, films.shape) * np.sqrt(films)
    sums[-5:] += 0.1 * films[-5:]
    seen, expected, sigmas = means(sums, films * (0.16 + 0.01), films, BASELINE_NIGHTS)
    assert (sigmas[-5:] > 5).all() and (np.abs(sigmas[:-5]) < 4).all()
    assert seen[-1] == pytest.approx(0.5, abs=0.05) and expected[-1] == pytest.approx(0.4, abs=0.02)
    assert is_signal(sigmas[BASELINE_NIGHTS:]) and not is_over(sigmas[BASELINE_NIGHTS:])


def test_more_films_of_one_cell_are_no_change() -> None:
    films = cells(50, 50)
    films[-5:] = [95, 5]
    rng = np.random.default_rng(3)
    sums = films * [0.2, 0.8] + rng.normal(0, 0.05, films.shape) * np.sqrt(films)
    seen, expected, sigmas = means(sums, None, films, BASELINE_NIGHTS)
    assert seen[-1] == pytest.approx(0.23, abs=0.03) == expected[-1]
    assert np.abs(sigmas[BASELINE_NIGHTS:]).max() < 4
    counts = np.round(films * [0.1, 0.5])
    _, expected, sigmas = shares(counts, films, BASELINE_NIGHTS)
    assert expected[-1] == pytest.approx(0.12, abs=0.01) and abs(sigmas[-1]) < 1


def test_what_never_changed_is_far_off_when_it_does() -> None:
    films = cells(30)
    sums = films * 0.139
    sums[-1] = 30 * 0.143
    assert means(sums, films * 0.139**2, films, BASELINE_NIGHTS)[2][-1] > 100
    assert np.abs(means(films * 0.139, films * 0.139**2, films, BASELINE_NIGHTS)[2]).max() < 1


def test_a_cell_that_was_never_seen_before_does_not_count() -> None:
    films = cells(50, 0)
    films[-5:] = [50, 50]
    _, _, sigmas = means(films * [0.4, 0.9], None, films, BASELINE_NIGHTS)
    assert np.abs(sigmas).max() < 1e-3
    films[-5:] = [0, 50]
    assert np.isnan(means(films * [0.4, 0.9], None, films, BASELINE_NIGHTS)[2][-5:]).all()


@pytest.mark.parametrize("chance", [0.003, 0.05, 0.5])
@pytest.mark.parametrize("films", [30, 400])
def test_rare_events_are_judged_by_their_own_chance(chance: float, films: int) -> None:
    """A p-chart with normal limits would call two of thirty too many, once in twenty nights."""
    rng = np.random.default_rng(4)
    counts = rng.binomial(films, chance, (4000, 1)).astype(float)
    counts[:BASELINE_NIGHTS] = films * chance
    _, _, sigmas = shares(counts, cells(films, nights=4000), BASELINE_NIGHTS)
    assert (np.abs(sigmas[BASELINE_NIGHTS:]) > 3).mean() < 0.006


def test_a_night_that_differs_from_others_by_itself_widens_the_limits() -> None:
    rng = np.random.default_rng(5)
    chances = np.clip(rng.normal(0.3, 0.1, 500), 0.02, 0.9)
    counts = rng.binomial(400, chances)[:, None].astype(float)
    sigmas = shares(counts, cells(400, nights=500), BASELINE_NIGHTS)[2][BASELINE_NIGHTS:]
    assert (np.abs(sigmas) > 3).mean() < 0.02
    assert (np.abs(counts[:, 0] / 400 - 0.3) / np.sqrt(0.21 / 400) > 3).mean() > 0.3


def test_stability_index_by_hand() -> None:
    counts = np.zeros((1, 1, 2))
    counts[0, 0] = [700, 300]
    index, limit, sigma = distances(counts, 0, np.array([50_000.0, 50_000.0]))
    wanted = (0.7 - 0.5) * np.log(0.7 / 0.5) + (0.3 - 0.5) * np.log(0.3 / 0.5)
    assert index[0] == pytest.approx(wanted, rel=0.01) and limit[0] == PSI_LIMIT and sigma[0] == 0
    counts[0, 0] = [800, 200]
    index, _, sigma = distances(counts, 0, np.array([50_000.0, 50_000.0]))
    assert index[0] > PSI_LIMIT and sigma[0] == pytest.approx(3 * index[0] / PSI_LIMIT)


def test_few_films_need_a_larger_distance() -> None:
    rng = np.random.default_rng(6)
    reference = np.full(10, 1000.0)
    counts = rng.multinomial(40, np.full(10, 0.1), (3000, 1)).astype(float)
    index, limit, sigma = distances(counts, 0, reference, ordered=True)
    assert (index > PSI_LIMIT).mean() > 0.1 and limit[0] > 2 * PSI_LIMIT
    assert (sigma > 0).mean() < 0.004
    few = np.zeros((1, 1, 10))
    few[0, 0, 0] = LEAST_FILMS - 1
    assert np.isnan(distances(few, 0, reference)[0][0]) and distances(few, 0, reference)[2][0] == 0


def test_something_new_and_rare_is_counted_as_something_else() -> None:
    counts = np.tile(np.array([60.0, 40.0, 0.0]), (NIGHTS, 1, 1))
    counts[-1, 0] = [30, 20, 50]
    index, _, sigma = distances(counts, BASELINE_NIGHTS)
    assert np.abs(index[:-1]).max() < 0.05 and sigma[-1] > 3


def test_one_strange_night_is_no_signal() -> None:
    quiet = np.zeros(20)
    assert not is_signal(quiet) and is_over(quiet)
    quiet[-1] = 50
    assert not is_signal(quiet) and not is_over(quiet)
    quiet[-3] = 50
    assert not is_signal(quiet)
    quiet[-5] = -50
    assert not is_signal(quiet), "the sides differ"
    quiet[-5] = 50
    assert is_signal(quiet)
    quiet[-1] = 0
    quiet[-2] = 50
    assert not is_signal(quiet) and not is_over(quiet), "it may be going away"


def test_a_small_shift_that_stays_is_a_signal() -> None:
    assert is_signal(np.concatenate([np.zeros(10), np.full(7, -2.2)]))
    assert not is_signal(np.concatenate([np.zeros(10), np.full(6, -2.2)]))


def test_nights_without_films_are_none() -> None:
    gaps = np.array([0, 0, 5, np.nan, np.nan, 5, np.nan, 5])
    assert is_signal(gaps) and not is_signal(gaps[:-1])
    assert is_over(np.array([5, 5, 5, np.nan, 0, 0, 0, 0, 0, np.nan]))

from __future__ import annotations

from datetime import date, timedelta

import pytest

from worker.monitor.serve.plots import BOTTOM, LEFT, RIGHT, TOP, Measured, mean, plot, rate

FIRST = date(2026, 3, 1)


def measured(*values: float, every: int = 1) -> list[Measured]:
    return [
        Measured(FIRST + timedelta(days=every * place), value, value - 0.1, value + 0.1, f"night {place}")
        for place, value in enumerate(values)
    ]


def test_wilsons_interval_is_that_of_his_paper() -> None:
    share, low, high = rate(10, 100)
    assert (share, low, high) == pytest.approx((0.1, 0.05523, 0.17437), abs=1e-5)
    assert rate(0, 10)[1] == 0.0 and 0.2 < rate(0, 10)[2] < 0.35
    assert rate(10, 10)[2] == pytest.approx(1.0)


def test_a_mean_and_its_interval_from_sums() -> None:
    values = [0.2, 0.4, 0.9]
    centre, low, high = mean(sum(values), sum(value * value for value in values), 3)
    assert centre == pytest.approx(0.5)
    assert low is not None and high is not None
    assert (high - low) / 2 == pytest.approx(1.95996 * 0.36056 / 3**0.5, rel=1e-4)
    assert mean(0.3, 0.09, 1) == (0.3, None, None)


def test_a_line_goes_from_edge_to_edge_and_up_is_more() -> None:
    drawn = plot("Pneumonia", measured(0.6, 0.7, 0.8), low=0.5, high=1.0, percent=False)
    (line,) = drawn.lines
    points = [tuple(map(float, point.split(","))) for point in line.split()]
    assert [points[0][0], points[-1][0]] == [LEFT, RIGHT]
    assert points[0][1] > points[1][1] > points[2][1]
    assert all(TOP <= y <= BOTTOM for _, y in points)
    assert [row.text for row in drawn.rows] == ["0.50", "0.60", "0.70", "0.80", "0.90", "1.00"]
    assert len(drawn.bands[0].split()) == 6
    assert drawn.summary == "Pneumonia: night 2"
    assert [value.words for value in drawn.values] == ["night 2", "night 1", "night 0"]


def test_nights_without_films_are_not_joined() -> None:
    late = measured(0.6, 0.7, every=30)
    drawn = plot("x", late, low=0.0, high=1.0, percent=True, gap=8)
    assert len(drawn.lines) == len(drawn.bands) == 2


def test_nothing_and_a_single_night_are_plots_too() -> None:
    assert plot("x", [], low=0.0, high=1.0, percent=True).summary == "x: nothing yet"
    single = plot("x", measured(0.5), low=0.0, high=1.0, percent=True)
    assert len(single.dots) == len(single.bands) == 1
    assert [column.text for column in single.columns] == ["01 Mar"]


def test_shares_are_written_as_such() -> None:
    drawn = plot("x", measured(0.5), low=0.0, high=1.0, percent=True)
    assert [row.text for row in drawn.rows] == ["0%", "20%", "40%", "60%", "80%", "100%"]
    fine = plot("x", [Measured(FIRST, 0.01, None, None, "")], low=0.0, high=0.12, percent=True)
    assert fine.rows[1].text == "2.5%"

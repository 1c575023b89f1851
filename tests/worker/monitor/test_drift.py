from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from drift_nights import FIRST, Hospital

from worker.monitor.drift import (
    AGE_MIX,
    ALL,
    STATION_MIX,
    VIEW_MIX,
    Chart,
    Family,
    Group,
    Nights,
    Series,
    State,
    charts,
    groups_of,
    judge,
)
from worker.monitor.drift_charts import BASELINE_NIGHTS

NIGHTS = 80
CHANGE = 50
CR1 = Group("station", "CR1")


def signals(found: Sequence[Series], *, explained: bool = False) -> set[tuple[Family, Group]]:
    return {
        (each.family, each.group) for each in found if each.state is State.SIGNAL and bool(each.with_mix) == explained
    }


def first_signal(drawn: Sequence[Chart], wanted: tuple[Family, Group]) -> int | None:
    return next((night for night in range(CHANGE, NIGHTS + 1) if wanted in signals(judge(drawn, night))), None)


def opened_alerts(nights: Nights) -> int:
    """Alerts in sixty nights after the baseline: one for each family and group, until it is over."""
    drawn = list(charts(nights))
    standing: set[tuple[Family, Group]] = set()
    opened = 0
    for night in range(BASELINE_NIGHTS, len(nights.days) + 1):
        found = judge(drawn, night)
        fading = {(each.family, each.group) for each in found if each.state in (State.FADING, State.SIGNAL)}
        opened += len(signals(found) - standing)
        standing = signals(found) | (standing & fading)
    return opened


def test_quiet_nights_alert_less_than_once_in_sixty() -> None:
    """170 series of one hospital, all families together; see the slow test for many hospitals."""
    opened = [opened_alerts(Hospital(seed, NIGHTS).nights()) for seed in range(3)]
    assert sum(opened) <= 1, opened


@pytest.mark.slow
@pytest.mark.parametrize("films", [40.0, 150.0, 1000.0])
def test_quiet_nights_of_many_hospitals(films: float) -> None:
    opened = [opened_alerts(Hospital(100 + seed, NIGHTS, films).nights()) for seed in range(40)]
    assert np.mean(opened) <= 0.5 and np.mean(np.array(opened) > 1) <= 0.1, opened


@pytest.mark.parametrize("seed", range(3))
def test_a_scanner_that_changes_its_gain_is_named_within_a_few_nights(seed: int) -> None:
    hospital = Hospital(seed, NIGHTS)
    # Half a standard deviation of single films: what a few per cent more dose do.
    hospital.grey[CHANGE:, hospital.station("CR1")] = 0.5
    drawn = list(charts(hospital.nights()))
    night = first_signal(drawn, (Family.INPUT, CR1))
    assert night is not None and night <= CHANGE + 7
    assert not signals(judge(drawn, CHANGE))
    last = judge(drawn)
    # It is this station's, not everybody's: no second alert for all films or for an age.
    assert signals(last) == {(Family.INPUT, CR1)}
    (level,) = [each for each in last if each.group == CR1 and each.name == "grey level"]
    assert level.sigma is not None and level.sigma > 3 and "sigma" in str(level)
    assert {each.state for each in last if each.group == ALL and each.name == "grey level"} <= {
        State.FADING,
        State.QUIET,
    }


def test_scores_that_move_are_found_in_every_family() -> None:
    hospital = Hospital(1, NIGHTS)
    hospital.result[CHANGE:] = 0.8
    found = judge(list(charts(hospital.nights())))
    families = {family for family, _ in signals(found)}
    assert families == {Family.SCORES, Family.FLAGS, Family.AREAS, Family.MEMBERS}
    means = [each for each in found if each.name.startswith("mean probability") and each.state is State.SIGNAL]
    assert {each.group for each in means} == {ALL}


@pytest.mark.parametrize(("part", "name"), [("station", STATION_MIX), ("age", AGE_MIX)])
def test_more_films_of_one_kind_are_a_mix_and_no_drift(part: str, name: str) -> None:
    hospital = Hospital(2, NIGHTS)
    more = hospital.station("DR3") if part == "station" else hospital.age("under 1 year")
    hospital.films[CHANGE:, more] *= 6
    hospital.films[CHANGE:, ~more] = np.round(hospital.films[CHANGE:, ~more] / 2)
    found = judge(list(charts(hospital.nights())))
    # An age's films are taken from other sides: a mix of views may move along.
    assert {family for family, _ in signals(found)} == {Family.MIX}
    assert name in {each.name for each in found if each.state is State.SIGNAL}


def test_what_moves_with_the_views_is_said_to() -> None:
    hospital = Hospital(3, NIGHTS)
    hospital.ap[CHANGE:, hospital.station("CR1")] = 0.02
    hospital.result[CHANGE:, hospital.station("CR1")] = 0.8
    found = judge(list(charts(hospital.nights())))
    assert {family for family, _ in signals(found)} == {Family.MIX}
    assert VIEW_MIX in {each.name for each in found if each.state is State.SIGNAL}
    explained = [each for each in found if each.state is State.SIGNAL and each.with_mix]
    assert {Family.SCORES, Family.AREAS} <= {each.family for each in explained}
    assert {each.with_mix for each in explained} == {(VIEW_MIX,)}


def test_a_drift_of_one_station_is_not_excused_by_the_views_of_another() -> None:
    hospital = Hospital(4, NIGHTS)
    hospital.ap[CHANGE:, hospital.station("CR1")] = 0.02
    hospital.result[CHANGE:, hospital.station("DR2")] = 0.8
    found = signals(judge(list(charts(hospital.nights()))))
    assert (Family.SCORES, Group("station", "DR2")) in found


def test_a_signal_is_over_when_things_are_as_they_were() -> None:
    hospital = Hospital(5, NIGHTS)
    hospital.grey[CHANGE : CHANGE + 8] = 1.0
    drawn = list(charts(hospital.nights()))
    during, after = (judge(drawn, night) for night in (CHANGE + 8, CHANGE + 20))
    assert (Family.INPUT, ALL) in signals(during)
    assert {each.state for each in after if each.family is Family.INPUT} == {State.QUIET}
    fading = judge(drawn, CHANGE + 11)
    assert State.FADING in {each.state for each in fading if each.name == "grey level"}


def test_what_was_accepted_is_learned_anew() -> None:
    hospital = Hospital(6, NIGHTS)
    hospital.grey[CHANGE:, hospital.station("CR1")] = 1.0
    nights = hospital.nights()
    accepted = {(Family.INPUT, CR1): nights.days[CHANGE + 4]}
    soon = judge(list(charts(nights, accepted)))
    states = {(each.family, each.group): each.state for each in soon if each.name != "spacing"}
    assert not signals(soon)
    assert states[Family.INPUT, CR1] in (State.QUIET, State.FADING)
    by_name = {(chart.measure.name, chart.group): chart for chart in charts(nights, accepted)}
    assert by_name["grey level", CR1].days[0] == nights.days[CHANGE + 4]
    assert by_name["grey level", ALL].days[0] == nights.days[CHANGE + 4]
    # Another station and another family go on as before.
    assert by_name["grey level", Group("station", "DR2")].days[0] == FIRST
    assert by_name["area of heart", CR1].days[0] == FIRST


def test_before_the_baseline_is_full_nothing_is_said() -> None:
    drawn = list(charts(Hospital(7, BASELINE_NIGHTS).nights()))
    found = judge(drawn)
    assert {each.state for each in found} == {State.LEARNING}
    assert {each.sigma for each in found} == {None} and str(found[0]) == found[0].name


def test_groups_are_all_films_stations_and_ages() -> None:
    hospital = Hospital(8, 1)
    assert [str(group) for group in groups_of(hospital.cells)] == [
        "age 1 to 4 years", "age 5 to 15 years", "age under 1 year", "all films",
        "station CR1", "station DR2", "station DR3",
    ]  # fmt: skip
    assert str(Group("station", "")) == "station unknown"
    assert str(Group("age_band", "age unknown")) == "age unknown"

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from drift_rows import FINDING, REGION, NightRows, morning_after
from sqlalchemy import select, update
from stored_films import MANIFEST, Films

from schema import tables
from schema.daily import count_days
from worker.monitor.drift import ALL, Family, Group, Series, State
from worker.monitor.drift_charts import BASELINE_NIGHTS
from worker.monitor.drift_nights import DriftReport, look_at_drift, reference_of

CR1 = Group("station", "CR1")
LAST = BASELINE_NIGHTS + 9
Look = Callable[[int], DriftReport]


@pytest.fixture
def rows(films: Films) -> NightRows:
    return NightRows(films)


@pytest.fixture
def look(rows: NightRows) -> Look:
    def ask(night: int = LAST) -> DriftReport:
        with rows.database.read() as connection:
            report = look_at_drift(connection, now=morning_after(night))
        assert report is not None
        return report

    return ask


def named(report: DriftReport, name: str, group: Group = ALL) -> Series:
    (found,) = [each for each in report.series if (each.name, each.group) == (name, group)]
    return found


def moved(report: DriftReport) -> set[tuple[Family, Group]]:
    return {(each.family, each.group) for each in report.series if each.state is State.SIGNAL and not each.with_mix}


def test_without_a_bundle_or_films_there_is_nothing_to_say(rows: NightRows, look: Look) -> None:
    assert look().series == ()
    with rows.database.write() as connection:
        connection.execute(tables.bundle_alias.delete())
    with rows.database.read() as connection:
        assert look_at_drift(connection) is None


def test_every_number_is_what_the_films_say(rows: NightRows, look: Look) -> None:
    rows.add(range(LAST + 1))
    report = look()
    assert (report.bundle, str(report.until)) == ("phantom:1", "2026-01-30")
    with rows.database.read() as connection:
        last = tables.job.c.finished_at >= morning_after(LAST - 1)
        scores = list(connection.scalars(select(tables.finding_score.c.probability).join(tables.job).where(last)))
        greys = list(connection.scalars(select(tables.segmentation.c.grey_mean).join(tables.job).where(last)))
        flagged = select(tables.failure_flag.c.job_id).join(tables.job).where(last).distinct()
        flags = len(list(connection.scalars(flagged)))
    assert len(scores) == 24
    assert named(report, f"mean probability of {FINDING}").seen == pytest.approx(np.mean(scores))
    assert named(report, "grey level").seen == pytest.approx(np.mean(greys))
    assert named(report, "films with flags").seen == pytest.approx(flags / 24)
    assert named(report, "pixel spacing").seen == pytest.approx(0.139)
    names = {each.name for each in report.series}
    assert {f"area of {REGION}", f"disagreement on {FINDING}", "mix of views", "flag low_confidence"} <= names
    assert {each.nights for each in report.series if each.group == ALL} == {LAST + 1}
    assert {each.group for each in report.series} == {
        ALL, CR1, Group("age_band", "under 1 year"), Group("age_band", "5 to 15 years"),
    }  # fmt: skip
    assert moved(report) == set()


def test_a_scanner_that_changes_its_gain_is_seen_before_any_label(rows: NightRows, look: Look) -> None:
    rows.add(range(LAST + 1), station="DR2")
    rows.add(range(BASELINE_NIGHTS + 5))
    rows.add(range(BASELINE_NIGHTS + 5, LAST + 1), gain=1.2)
    assert moved(look(BASELINE_NIGHTS + 4)) == set()
    report = look(BASELINE_NIGHTS + 7)
    assert moved(report) == {(Family.INPUT, CR1)}, "on the third night"
    level = named(report, "grey level", CR1)
    assert level.expected == pytest.approx(0.4, abs=0.01) and level.seen == pytest.approx(0.48, abs=0.02)
    with rows.database.read() as connection:
        assert connection.execute(select(tables.label)).first() is None


def test_a_day_that_was_counted_says_the_same(rows: NightRows, look: Look) -> None:
    rows.add(range(LAST + 1), station="DR2")
    rows.add(range(LAST + 1), gain=1.1)
    before = look()
    assert count_days(rows.database) == LAST + 1
    after = look()
    for one, other in zip(before.series, after.series, strict=True):
        assert (one.name, one.group, one.state) == (other.name, other.group, other.state)
        # Sums of squares lose a digit or two; the scatter of a constant is all digits.
        assert one.seen == pytest.approx(other.seen) and one.sigma == pytest.approx(other.sigma, rel=1e-3, abs=0.2)


def test_the_day_that_has_not_ended_does_not_count(rows: NightRows, look: Look) -> None:
    rows.add(range(LAST + 1))
    assert named(look(LAST - 1), "grey level").nights == LAST


def test_of_a_scanner_that_is_gone_nothing_is_said(rows: NightRows, look: Look) -> None:
    rows.add(range(LAST + 60), station="DR2")
    rows.add(range(BASELINE_NIGHTS + 2))
    rows.add(range(BASELINE_NIGHTS + 2, LAST + 1), gain=1.2)
    assert (Family.INPUT, CR1) in moved(look(LAST))
    assert (Family.INPUT, CR1) in moved(look(LAST + 20))
    later = look(LAST + 40)
    assert CR1 not in {each.group for each in later.series} and moved(later) <= {(Family.MIX, ALL)}


def test_another_view_mix_is_named_as_such(rows: NightRows, look: Look) -> None:
    rows.add(range(BASELINE_NIGHTS + 2), films=30)
    rows.add(range(BASELINE_NIGHTS + 2), films=10, view="PA")
    rows.add(range(BASELINE_NIGHTS + 2, LAST + 1), films=40, view="PA", area=0.03)
    report = look()
    assert {family for family, _ in moved(report)} == {Family.MIX}
    area = [each for each in report.series if each.name == f"area of {REGION}" and each.state is State.SIGNAL]
    assert area and {each.with_mix for each in area} == {("mix of views",)}


def test_the_bundles_own_distribution_is_compared_with(rows: NightRows, look: Look) -> None:
    manifest = {**MANIFEST, "metrics": {"classification": {"reference": {FINDING: [0] * 5 + [100] * 5}}}}
    with rows.database.write() as connection:
        connection.execute(update(tables.bundle).values(manifest=manifest))
    rows.add(range(3))
    report = look(2)
    assert moved(report) == {(Family.REFERENCE, ALL)}, "at once: it needs no nights to learn from"
    assert reference_of(manifest, FINDING) is not None
    for broken in ({}, {"metrics": None}, {"metrics": {"classification": {"reference": {FINDING: [1, 2]}}}}):
        assert reference_of(broken, FINDING) is None


def test_what_somebody_accepted_is_learned_anew(rows: NightRows, look: Look, films: Films) -> None:
    rows.add(range(BASELINE_NIGHTS + 2))
    rows.add(range(BASELINE_NIGHTS + 2, LAST + 1), gain=1.2)
    report = look()
    assert (Family.INPUT, CR1) in moved(report) or (Family.INPUT, ALL) in moved(report)
    change = morning_after(BASELINE_NIGHTS + 1)
    for group in (ALL, CR1):
        films.insert(
            tables.alert, rule="input_drift", subject=report.subject(group), opened_at=change, seen_at=change,
            quiet_since=change, closed_at=change, accepted_at=change,
        )  # fmt: skip
    after = look()
    assert moved(after) == set() and named(after, "grey level").state is State.LEARNING
    assert named(after, "grey level").nights == LAST + 1 - (BASELINE_NIGHTS + 2)
    assert named(after, f"area of {REGION}").nights == LAST + 1

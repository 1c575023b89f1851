from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from labelled_films import FINDING, LAST, NIGHT, NOW, LabelledFilms
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from sqlalchemy import func, select, text, update
from stored_films import Films, digest, fresh_database

from schema import tables
from schema.database import Database
from schema.keys import is_held_out
from schema.tables import LabelSource, Period, auc_comparison, auc_tracking, tracking_run
from worker.bootstrap import aurocs
from worker.delong import areas
from worker.monitor.auc import TrackingReport, auc_duty, is_under_floor, nights_under_floor, track
from worker.monitor.auc_figures import LEAST_PATIENTS
from worker.monitor.labels import ReaderPolicy

FEW = 200


@pytest.fixture
def site(films: Films) -> LabelledFilms:
    return LabelledFilms(films)


def tracked(database: Database, **wanted: Any) -> list[Any]:
    """Rows of the last day, of all films and of pneumonia unless told."""
    conditions = {"finding": FINDING, "cohort": "all", "ends_at": LAST, **wanted}
    query = select(auc_tracking).where(*(auc_tracking.c[name] == value for name, value in conditions.items()))
    with database.read() as connection:
        return list(connection.execute(query.order_by(auc_tracking.c.period, auc_tracking.c.cohort_value)))


def a_night(site: LabelledFilms, films: int = 150, days_ago: int = 3, seed: int = 1) -> tuple[list[int], Any]:
    return site.night(LAST - days_ago * NIGHT, films, np.random.default_rng(seed))


def scores_of(database: Database, ids: list[int]) -> np.ndarray:
    query = select(tables.finding_score.c.probability).join(tables.job).where(tables.job.c.instance_id.in_(ids))
    with database.read() as connection:
        return np.array(list(connection.scalars(query.order_by(tables.job.c.instance_id))))


def test_each_number_is_what_its_name_says(site: LabelledFilms) -> None:
    ids, truth = a_night(site)
    site.label(ids, truth)
    report = track(site.database, replicates=FEW, now=NOW)
    assert report.finished and report.computed > 0
    (row,) = tracked(site.database, period="7d")
    scores = scores_of(site.database, ids)
    called = scores >= 0.4
    assert (row.positives, row.negatives, row.patients) == (truth.sum(), (~truth).sum(), len(ids))
    assert row.auroc == pytest.approx(roc_auc_score(truth, scores))
    assert row.average_precision == pytest.approx(average_precision_score(truth, scores))
    assert row.brier == pytest.approx(brier_score_loss(truth, scores))
    assert row.sensitivity == pytest.approx(called[truth].mean())
    assert row.specificity == pytest.approx((~called)[~truth].mean())
    assert (row.threshold, row.replicates, row.readers) == (0.4, FEW, "majority")
    (bootstrap,) = aurocs(truth[:, None].astype(float), scores[:, None], replicates=FEW).intervals()
    assert (row.auroc_low, row.auroc_high) == pytest.approx((bootstrap.low, bootstrap.high))
    delong = areas(truth, scores).interval()
    assert (row.delong_low, row.delong_high) == pytest.approx((delong.low, delong.high))
    for name in ("auroc", "average_precision", "sensitivity", "specificity", "f1"):
        low, value, high = (getattr(row, f"{name}{end}") for end in ("_low", "", "_high"))
        assert low < value < high, name
    assert row.calibration_slope > 0 and 0 < row.youden_threshold < 1
    with site.database.read() as connection:
        shown = connection.execute(
            text("SELECT * FROM latest_auc WHERE finding = 'pneumonia' AND cohort = 'all'")
        ).all()
    assert {(each.period, each.auroc) for each in shown} == {(str(period), row.auroc) for period in Period}


def test_cohorts_part_the_films(site: LabelledFilms) -> None:
    ids, truth = a_night(site, 240)
    site.label(ids, truth)
    track(site.database, replicates=20, now=NOW)
    everything = tracked(site.database, period="7d")[0]
    with site.database.read() as connection:
        age = list(connection.execute(select(tables.instance.c.age_days).order_by(tables.instance.c.id)).scalars())
    small = np.array(age) < 1826
    by_age = {row.cohort_value: row for row in tracked(site.database, period="7d", cohort="age")}
    assert by_age["0-4"].auroc == pytest.approx(roc_auc_score(truth[small], scores_of(site.database, ids)[small]))
    parts = {"age": ["0-4", "5+"], "sex": ["F", "M"], "view_position": ["AP"], "station": ["room 1"], "lane": ["icu"]}
    for cohort, values in parts.items():
        rows = tracked(site.database, period="7d", cohort=cohort)
        assert [row.cohort_value for row in rows] == values
        assert sum(row.positives for row in rows) == everything.positives


def test_too_few_films_give_counts_and_no_number(site: LabelledFilms) -> None:
    films = LEAST_PATIENTS - 1 + 60
    ids = site.add([LAST - NIGHT] * films, np.linspace(0.01, 0.99, films).tolist())
    site.label(ids, [place >= 60 for place in range(films)])
    track(site.database, replicates=20, now=NOW)
    (row,) = tracked(site.database, period="7d")
    assert (row.too_few, row.positives, row.negatives) == (True, LEAST_PATIENTS - 1, 60)
    assert all(
        getattr(row, name) is None for name in ("auroc", "auroc_low", "delong_low", "sensitivity", "brier", "f1")
    )
    more = site.add([LAST - NIGHT], [0.9])
    site.label(more, [True])
    track(site.database, replicates=20, now=NOW)
    assert tracked(site.database, period="7d")[0].auroc is not None


def test_patients_count_not_films(site: LabelledFilms) -> None:
    films = 120
    scores = np.random.default_rng(1).random(films)
    ids = site.add([LAST - NIGHT] * films, scores.tolist(), patients=[f"p{place % 30}" for place in range(films)])
    truth = np.arange(films) % 30 < 15
    site.label(ids, truth)
    track(site.database, replicates=20, now=NOW)
    (row,) = tracked(site.database, period="7d")
    assert (row.positives, row.negatives, row.patients, row.too_few) == (60, 60, 30, True)


def test_windows_reach_back_from_midnight(site: LabelledFilms) -> None:
    for days_ago in (7, 8, 30, 31, 90, 91):
        ids, truth = a_night(site, 3, days_ago, seed=days_ago)
        site.label(ids, truth)
    track(site.database, replicates=20, now=NOW, history_days=0)
    films = {row.period: row.positives + row.negatives for row in tracked(site.database)}
    assert films == {"7d": 3, "30d": 9, "90d": 15, "since_promotion": 18}
    assert {row.period: row.starts_at for row in tracked(site.database)}["30d"] == LAST - 30 * NIGHT


def test_since_promotion_begins_with_the_last_one(site: LabelledFilms) -> None:
    for days_ago in (20, 10):
        site.label(*a_night(site, 4, days_ago, seed=days_ago))
    with site.database.write() as connection:
        connection.execute(update(tables.bundle_alias).values(since=LAST - 15 * NIGHT))
    track(site.database, replicates=20, now=NOW, history_days=0)
    (row,) = tracked(site.database, period="since_promotion")
    assert (row.positives + row.negatives, row.starts_at) == (4, LAST - 15 * NIGHT)


def test_a_late_label_changes_the_windows_it_falls_into_and_no_others(site: LabelledFilms) -> None:
    early, truth = a_night(site, 60, 8, seed=1)
    site.label(early, truth)
    late, late_truth = a_night(site, 60, 5, seed=2)
    track(site.database, replicates=20, now=NOW)
    assert track(site.database, replicates=20, now=NOW).computed == 0
    query = select(auc_tracking).where(auc_tracking.c.cohort == "all", auc_tracking.c.period == "7d")
    query = query.where(auc_tracking.c.finding == FINDING)

    def weeks() -> dict[Any, tuple[int, int]]:
        with site.database.read() as connection:
            return {row.ends_at: (row.id, row.positives + row.negatives) for row in connection.execute(query)}

    before = weeks()
    site.label(late, late_truth)
    assert track(site.database, replicates=20, now=NOW).computed > 0
    after = weeks()
    came = LAST - 5 * NIGHT
    touched = {end for end in after if end - 7 * NIGHT <= came < end}
    assert len(touched) == 5 and {end for end, row in after.items() if before.get(end) != row} == touched
    assert {after[end][1] for end in touched} == {60, 120}


def test_a_corrected_label_changes_the_number(site: LabelledFilms) -> None:
    ids, truth = a_night(site)
    site.label(ids, truth)
    track(site.database, replicates=20, now=NOW)
    before = tracked(site.database, period="7d")[0]
    site.label(ids[:5], ~truth[:5], at=NOW + timedelta(minutes=1))
    track(site.database, replicates=20, now=NOW)
    after = tracked(site.database, period="7d")[0]
    truth[:5] = ~truth[:5]
    assert after.auroc == pytest.approx(roc_auc_score(truth, scores_of(site.database, ids))) != before.auroc


def test_chosen_and_uncertain_films_are_left_out_and_counted(site: LabelledFilms) -> None:
    ids, truth = a_night(site)
    site.label(ids[:100], truth[:100])
    site.label(ids[100:130], truth[100:130], source=LabelSource.DISAGREEMENT)
    site.label(ids[130:140], truth[130:140], source=LabelSource.OTHER)
    site.label(ids[140:], [None] * 10, source=LabelSource.RANDOM)
    # Looked at again because the network disagreed: what was said before counts.
    site.label(ids[:8], ~truth[:8], source=LabelSource.DISAGREEMENT, at=NOW + NIGHT)
    track(site.database, replicates=20, now=NOW)
    (row,) = tracked(site.database, period="7d")
    assert (row.positives, row.negatives) == (truth[:100].sum(), (~truth[:100]).sum())
    assert (row.left_out_chosen, row.left_out_uncertain, row.left_out_training) == (40, 10, 0)
    assert row.auroc == pytest.approx(roc_auc_score(truth[:100], scores_of(site.database, ids)[:100]))


def test_films_that_a_bundle_may_have_learned_from_do_not_judge_it(site: LabelledFilms) -> None:
    ids, truth = a_night(site, 200)
    site.label(ids, truth)
    held = [is_held_out(digest(f"patient {number}")) for number in range(200)]
    with site.database.write() as connection:
        # The bundle came after the labels, as one that was built from them does.
        connection.execute(update(tables.bundle).values(added_at=NOW + 365 * 20 * NIGHT))
        connection.execute(update(tables.instance).where(tables.instance.c.id == ids[0]).values(held_out=True))
    held[0] = True
    track(site.database, replicates=20, now=NOW)
    (row,) = tracked(site.database, period="7d")
    assert 20 < sum(held) < 70
    assert (row.positives + row.negatives, row.left_out_training) == (sum(held), 200 - sum(held))


def test_what_is_not_published_or_superseded_does_not_count(site: LabelledFilms) -> None:
    ids, truth = a_night(site)
    site.label(ids, truth)
    other = site.films.add_bundle("2")
    site.read(ids, [0.5] * len(ids), bundle=other, kind="shadow")
    better = np.where(truth, 0.9, 0.1)
    site.read(ids[:70], better[:70].tolist(), revision=2)
    site.films.update(tables.instance, ids[149], generation=2)
    track(site.database, replicates=20, now=NOW)
    rows = tracked(site.database, period="7d")
    assert [row.bundle_id for row in rows] == [site.films.bundle]
    with site.database.read() as connection:
        first = dict(
            connection.execute(
                select(tables.job.c.instance_id, tables.finding_score.c.probability)
                .join(tables.finding_score)
                .where(tables.job.c.bundle_id == site.films.bundle, tables.job.c.revision == 1)
            ).all()
        )
    scores = np.array([better[place] if place < 70 else first[film] for place, film in enumerate(ids)])[:149]
    assert rows[0].auroc == pytest.approx(roc_auc_score(truth[:149], scores))


def test_readers_speak_together_and_an_alias_speaks_for_its_film(site: LabelledFilms) -> None:
    ids, truth = a_night(site, 60)
    alias = site.films.instance(alias_of=ids[0])
    site.label([alias], [truth[0]])
    site.label(ids[1:], truth[1:])
    site.label(ids[1:3], ~truth[1:3], reader="r2")
    site.label(ids[1:2], truth[1:2], reader="r3")
    track(site.database, replicates=20, now=NOW)
    (row,) = tracked(site.database, period="7d")
    assert (row.positives + row.negatives, row.left_out_uncertain) == (59, 1)
    track(site.database, readers=ReaderPolicy.ANY, replicates=20, now=NOW)
    (row,) = tracked(site.database, period="7d")
    assert (row.positives + row.negatives, row.readers) == (60, "any")


def test_a_bundle_on_trial_is_compared_on_the_films_both_have_read(site: LabelledFilms) -> None:
    ids, truth = a_night(site, 200)
    site.label(ids, truth, at=NOW)
    rival = site.films.add_bundle("2")
    site.films.update(tables.bundle, rival, added_at=LAST - 100 * NIGHT)
    sharper = np.clip(scores_of(site.database, ids) + 0.3 * truth, 0, 1)
    site.read(ids[:150], sharper[:150].tolist(), bundle=rival, kind="shadow")
    track(site.database, replicates=20, now=NOW)
    query = select(auc_comparison).where(auc_comparison.c.cohort == "all", auc_comparison.c.finding == FINDING)
    with site.database.read() as connection:
        rows = {row.period: row for row in connection.execute(query)}
    assert rows.keys() == {str(period) for period in Period}
    row = rows["30d"]
    assert (row.bundle_id, row.candidate_id) == (site.films.bundle, rival)
    assert row.positives == truth[:150].sum() and row.candidate_auroc == pytest.approx(
        roc_auc_score(truth[:150], sharper[:150])
    )
    assert row.difference == pytest.approx(row.candidate_auroc - row.auroc)
    assert 0 < row.difference_low < row.difference < row.difference_high and row.p_value < 0.01


def test_the_duty_works_a_piece_at_a_time_and_then_rests(site: LabelledFilms, monkeypatch: pytest.MonkeyPatch) -> None:
    assert auc_duty(site.database, ReaderPolicy.MAJORITY) == "nothing new"
    nothing = {"sex": "", "view_position": "", "station": "", "age_days": None}
    ids = site.add([LAST - 3 * NIGHT] * 60, np.linspace(0, 1, 60).tolist(), **nothing)
    site.label(ids, [place % 3 > 0 for place in range(60)])

    def work(seconds: float = 0.0) -> TrackingReport:
        return track(site.database, seconds=seconds, replicates=20, now=NOW, history_days=1)

    first = work()
    assert (first.computed, first.finished, str(first)) == (1, False, "1 windows computed, more to do")
    while not work().finished:
        assert first.computed
    with site.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tracking_run)) == 1
        pieces = connection.scalar(select(func.count()).select_from(auc_tracking))
    assert str(work()) == "nothing new"
    assert track(site.database, replicates=20, now=NOW, history_days=1).computed == 0
    with site.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(auc_tracking)) == pieces
    site.label(ids[:1], [True], at=NOW + NIGHT)
    assert work(60.0).computed > 0


def test_what_lost_its_films_is_tracked_no_more(site: LabelledFilms) -> None:
    ids, truth = a_night(site, 60, 2)
    site.label(ids, truth)
    track(site.database, replicates=20, now=NOW)
    with site.database.write() as connection:
        connection.execute(update(tables.job).values(published=False))
    track(site.database, replicates=20, now=NOW)
    rows = tracked(site.database, cohort="age")
    assert rows == [] and {row.positives + row.negatives for row in tracked(site.database)} == {0}


# Sixty nights


def truth_of_gain(gain: float) -> float:
    return NormalDist().cdf(gain / 2**0.5)


def nights_that_alarm(site: LabelledFilms, nights: range, drop_on: int | None, seed: int) -> list[int]:
    """Sixty nights of fifty films, labelled up to five nights late: which of ``nights`` end under a floor?"""
    rng = np.random.default_rng(seed)
    begin = LAST - 60 * NIGHT
    gains = np.array([0.2 if drop_on is not None and night >= drop_on else 1.8 for night in range(60)])
    truth = rng.random((60, 50)) < 1 / 3
    scores = 1 / (1 + np.exp(-(rng.normal(0, 1, truth.shape) + gains[:, None] * truth - 1.0)))
    times = [begin + night * NIGHT for night in range(60) for _ in range(50)]
    ids = np.array(site.add(times, scores.ravel().tolist())).reshape(truth.shape)
    told_on = np.arange(60) + rng.integers(0, 6, 60)
    found, told = [], np.zeros(60, bool)
    for night in nights:
        new = (told_on <= night) & ~told
        told |= new
        morning = begin + (night + 1) * NIGHT
        site.label(ids[new].ravel().tolist(), truth[new].ravel(), at=morning - timedelta(hours=1))
        track(site.database, replicates=FEW, now=morning - timedelta(hours=1), history_days=0)
        with site.database.read() as connection:
            if nights_under_floor(connection, site.films.bundle, FINDING, 0.8, since=morning):
                found.append(night)
    return found


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_drop_shows_within_seven_nights(site: LabelledFilms) -> None:
    assert truth_of_gain(1.8) > 0.89 and truth_of_gain(0.2) < 0.56
    under = nights_that_alarm(site, range(36, 48), drop_on=40, seed=5)
    assert under and 40 < under[0] <= 47 and under == list(range(under[0], 48))


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("seed", range(5))
def test_sixty_nights_with_a_drop_and_sixty_quiet_ones(films: Films, tmp_path: Path, seed: int) -> None:
    under = nights_that_alarm(LabelledFilms(films), range(60), drop_on=40, seed=seed)
    assert under and 40 <= under[0] <= 47 and under == list(range(under[0], 60))
    (tmp_path / "quiet").mkdir()
    with fresh_database("sqlite", tmp_path / "quiet") as database:
        assert len(nights_that_alarm(LabelledFilms(Films(database)), range(60), drop_on=None, seed=seed)) <= 1


def test_under_the_floor_is_a_matter_of_the_bound(site: LabelledFilms) -> None:
    site.label(*a_night(site))
    track(site.database, replicates=FEW, now=NOW)
    (row,) = tracked(site.database, period="7d")
    for bound in ("low", "value", "high"):
        value = getattr(row, {"low": "auroc_low", "value": "auroc", "high": "auroc_high"}[bound])
        assert is_under_floor(row, value + 1e-6, bound) and not is_under_floor(row, value, bound)

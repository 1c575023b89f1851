"""How far two bundles agree, from what they stored."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from sqlalchemy import select
from stored_films import Films, labels, result

from schema import tables
from schema.database import Database
from schema.regions import HOLSTE_REGIONS
from worker.inference.compare import Comparison, compare
from worker.inference.comparison_picture import write_comparison
from worker.results.result import FilmResult, FindingScore, Segmentation
from worker.results.write import write_results
from worker.settings import Settings


@pytest.fixture
def films(database: Database) -> Films:
    return Films(database)


def said(cleaned: np.ndarray | None = None, pneumonia: float = 0.25, **options: Any) -> FilmResult:
    stored = replace(
        result(**options),
        scores=[FindingScore("pneumonia", pneumonia, 0.1, 0.4, pneumonia >= 0.4, {"a": pneumonia})],
    )
    return stored if cleaned is None else replace(stored, segmentation=Segmentation(cleaned, cleaned, 0.1, 0))


def both(films: Films, candidate: int, first: FilmResult, second: FilmResult | None, state: str = "done") -> None:
    films.film("done", stored=first)
    instance = films.value(select(tables.instance.c.id).order_by(tables.instance.c.id.desc()).limit(1))
    shadow = {"kind": "shadow", "published": False, "priority": 20, "bundle_id": candidate}
    job = films.job(instance, state, **shadow)
    if second is not None:
        with films.database.write() as connection:
            write_results(connection, [(job, second)])


def plain_dice(first: np.ndarray, second: np.ndarray, value: int) -> float:
    here, there = first == value, second == value
    total = here.sum() + there.sum()
    return float(2 * (here & there).sum() / total) if total else math.nan


def test_masks_and_verdicts_are_compared_film_by_film(films: Films) -> None:
    candidate = films.add_bundle("2")
    random = np.random.default_rng(1)
    masks, scores = [], []
    for number in range(12):
        ours = labels()
        theirs = np.roll(ours, number % 3, axis=0)
        if number == 5:
            theirs = np.where(theirs == 7, 0, theirs).astype(np.uint8)
        probabilities = (float(random.random()), float(random.random()))
        masks.append((ours, theirs))
        scores.append(probabilities)
        both(films, candidate, said(ours, probabilities[0]), said(theirs, probabilities[1]))
    found = compare(films.database, films.bundle, candidate)

    assert (found.first, found.second, found.films, found.ended) == ("phantom:1", "phantom:2", 12, {})
    assert set(found.regions) == {region.name for region in HOLSTE_REGIONS}
    for region in HOLSTE_REGIONS:
        dice = [plain_dice(*pair, region.value) for pair in masks]
        agreement = found.regions[region.name]
        assert (agreement.films, agreement.only_one) == (12, 1 if region.value == 7 else 0)
        assert agreement.mean == pytest.approx(np.mean(dice))
        assert agreement.worst == pytest.approx(np.min(dice))
        assert agreement.low == pytest.approx(np.percentile(dice, 5))
    before, now = np.array(scores).T
    positive = before >= 0.4, now >= 0.4
    finding = found.findings["pneumonia"]
    assert finding.films == 12
    assert finding.agreement == pytest.approx(np.mean(positive[0] == positive[1]))
    assert finding.kappa == pytest.approx(cohen_kappa_score(*positive))
    assert finding.correlation == pytest.approx(np.corrcoef(before, now)[0, 1])
    assert finding.difference == pytest.approx((now - before).mean())
    assert (finding.gained, finding.lost) == ((~positive[0] & positive[1]).sum(), (positive[0] & ~positive[1]).sum())
    regions = np.mean([each.mean for name, each in found.regions.items() if name != "background"])
    assert found.agreement == pytest.approx(min(regions, finding.agreement))
    # The film that lost its carina differs most.
    assert found.worst[0].number == 6
    assert [film.mean_dice for film in found.worst] == sorted(film.mean_dice for film in found.worst)
    assert json.loads(json.dumps(found.to_json()))["regions"]["carina"]["only_one"] == 1


def test_the_same_results_agree_wholly_and_no_film_differs_most(films: Films) -> None:
    candidate = films.add_bundle("2")
    for _ in range(3):
        both(films, candidate, said(labels()), said(labels()))
    found = compare(films.database, films.bundle, candidate)
    assert (found.agreement, found.worst) == (1.0, ())
    assert math.isnan(found.findings["pneumonia"].kappa) and math.isnan(found.findings["pneumonia"].correlation)
    assert found.to_json()["findings"]["pneumonia"]["kappa"] is None


def test_only_films_that_both_have_read_and_only_their_present_files(films: Films) -> None:
    candidate = films.add_bundle("2")
    both(films, candidate, said(labels()), None, state="ineligible")
    both(films, candidate, said(labels()), None, state="failed")
    both(films, candidate, said(labels()), None, state="ready")
    films.film("done", stored=said(labels()))
    both(films, candidate, said(labels()), said(labels()))
    both(films, candidate, said(labels()), said(labels()))
    films.update(
        tables.instance, films.value(select(tables.instance.c.id).order_by(tables.instance.c.id.desc())), generation=2
    )
    found = compare(films.database, films.bundle, candidate)
    assert (found.films, found.ended) == (1, {"ineligible": 1, "failed": 1})
    nothing = compare(films.database, candidate, films.add_bundle("3"))
    assert nothing.films == 0 and math.isnan(nothing.agreement)


def test_of_several_results_of_a_bundle_the_newest_counts(films: Films) -> None:
    candidate = films.add_bundle("2")
    both(films, candidate, said(labels(), 0.1), said(labels(), 0.1))
    job = films.job(1, "done", revision=2)
    with films.database.write() as connection:
        write_results(connection, [(job, said(labels(), 0.9))])
    found = compare(films.database, films.bundle, candidate)
    assert (found.films, found.findings["pneumonia"].lost) == (1, 1)


def test_other_regions_and_other_grids_are_compared_by_name_and_place(films: Films) -> None:
    lungs = [
        {"value": value, "name": name, "title": name, "colour": [9, 9, 9], "origin": "exact"}
        for value, name in enumerate(("background", "right_lung", "left_lung"))
    ]
    candidate = films.add_bundle("2", regions=lungs)
    ours = labels(64)
    # The lungs have each other's numbers there, and a grid of twice the size.
    theirs = np.kron(np.choose(ours, [0, 2, 1, 0, 0, 0, 0, 0]), np.ones((2, 2))).astype(np.uint8)
    both(films, candidate, said(ours), said(theirs))
    found = compare(films.database, films.bundle, candidate)
    assert set(found.regions) == {"background", "right_lung", "left_lung"}
    assert found.regions["left_lung"].mean == found.regions["right_lung"].mean == 1.0


def test_a_damaged_mask_leaves_its_film_out(films: Films, caplog: pytest.LogCaptureFixture) -> None:
    candidate = films.add_bundle("2")
    for _ in range(2):
        both(films, candidate, said(labels()), said(labels()))
    with films.database.write() as connection:
        connection.execute(
            tables.segmentation.update().where(tables.segmentation.c.job_id == 1).values(mask=b"not a mask")
        )
    found = compare(films.database, films.bundle, candidate)
    assert found.regions["spine"].films == 1 and found.findings["pneumonia"].films == 2
    assert "job 1" in caplog.text


class TestPicture:
    def write(self, films: Films, tmp_path: Path, picture: np.ndarray | None) -> tuple[Comparison, tuple[Path, ...]]:
        candidate = films.add_bundle("2")
        for number in range(9):
            both(films, candidate, said(labels()), said(np.roll(labels(), number, axis=0)))
        found = compare(films.database, films.bundle, candidate)
        settings = Settings(home=tmp_path, roots=f"local={tmp_path}")
        place = tmp_path / "films"
        place.mkdir()
        for file in range(1, 10):
            (place / f"{file}.dcm").write_bytes(b"x")
        with films.database.write() as connection:
            modified = {file: (place / f"{file}.dcm").stat().st_mtime_ns for file in range(1, 10)}
            for file, nanoseconds in modified.items():
                connection.execute(
                    tables.identity.update().where(tables.identity.c.arrival_id == file).values(modified_ns=nanoseconds)
                )
        return found, write_comparison(films.database, settings, found, tmp_path / "out", lambda path, member: picture)

    @pytest.mark.parametrize("there", [True, False])
    def test_shows_the_films_that_differ_most_and_names_nobody(self, films: Films, tmp_path: Path, there: bool) -> None:
        grey = np.full((300, 200), 200, np.uint8)
        found, written = self.write(films, tmp_path, grey if there else None)
        assert [path.name for path in written] == ["comparison.json", "comparison.png"]
        shown = cv2.imread(str(written[1]))
        assert shown is not None
        rows, columns = shown.shape[0] // len(found.worst), shown.shape[1] // 3
        assert len(found.worst) == 6
        middle = shown[rows // 2, columns // 3]
        assert tuple(middle) == ((200,) * 3 if there else (0,) * 3)
        # The two bundles' columns are coloured, and not alike.
        panels = [shown[:rows, columns * place : columns * (place + 1)] for place in (1, 2)]
        assert all(np.ptp(panel[40:-20].astype(int), axis=2).max() > 20 for panel in panels)
        assert np.abs(panels[0][40:].astype(int) - panels[1][40:]).max() > 20
        text = written[0].read_text()
        assert json.loads(text)["worst_films"][0]["number"] in range(1, 10)
        assert ".dcm" not in text and "1.2.3." not in text

    def test_where_nothing_differs_there_is_none(self, films: Films, tmp_path: Path) -> None:
        candidate = films.add_bundle("2")
        both(films, candidate, said(labels()), said(labels()))
        found = compare(films.database, films.bundle, candidate)
        written = write_comparison(films.database, Settings(home=tmp_path), found, tmp_path / "out", lambda *_: None)
        assert [path.name for path in written] == ["comparison.json"]

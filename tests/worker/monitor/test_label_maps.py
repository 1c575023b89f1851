from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sqlalchemy import select, text, update
from stored_films import MANIFEST, Films, digest, result

from schema import tables
from schema.keys import uid_key
from schema.regions import REGION_BY_NAME, REGION_SETS
from schema.tables import LabelSource
from worker.errors import CarinaError
from worker.metrics import overlap
from worker.monitor.auc import track
from worker.monitor.label_maps import MapsReport, current_maps, import_maps, picture_of
from worker.results.export import export_png

KEY = bytes(32)
FILMS = 20


@pytest.fixture
def site(films: Films) -> Films:
    """Twenty films with results, each of its own patient."""
    for number in range(1, FILMS + 1):
        films.film("done", uid=f"1.{number}", stored=result(film=(60, 40)))
    with films.database.write() as connection:
        for number in range(1, FILMS + 1):
            values = {
                "key": uid_key(KEY, f"1.{number}"), "patient_key": digest(f"p{number}"), "film_rows": 60,
                "film_columns": 40,
            }  # fmt: skip
            connection.execute(update(tables.instance).where(tables.instance.c.id == number).values(**values))
    return films


def bring(site: Films, folder: Path, **options: Any) -> MapsReport:
    return import_maps(site.database, KEY, folder, **{"reader": "r1", "source": LabelSource.RANDOM, **options})


@pytest.fixture
def exported(site: Films, tmp_path: Path) -> Path:
    export_png(site.database, tmp_path / "out")
    return tmp_path / "out"


def corrected(path: Path) -> np.ndarray:
    """Takes a strip of the left lung away."""
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    rows = np.flatnonzero((labels == 1).any(axis=1))
    labels[rows[: len(rows) // 3]] = np.where(labels[rows[: len(rows) // 3]] == 1, 0, labels[rows[: len(rows) // 3]])
    cv2.imwrite(str(path), labels)
    return labels


def test_what_was_exported_and_corrected_comes_back(site: Films, exported: Path) -> None:
    before = cv2.imread(str(exported / "1.1.png"), cv2.IMREAD_UNCHANGED)
    labels = corrected(exported / "1.1.png")
    report = bring(site, exported, actor="me")
    assert (report.pictures, report.new, report.written, report.unknown, report.problems) == (
        FILMS,
        FILMS,
        True,
        [],
        [],
    )
    assert bring(site, exported).new == 0
    with site.database.read() as connection:
        maps = current_maps(connection, sources=[LabelSource.RANDOM])
        first = next(row for row in maps if row.instance_id == 1)
        np.testing.assert_array_equal(picture_of(connection, first.id), labels)
        assert len(maps) == FILMS and current_maps(connection, sources=[LabelSource.OTHER]) == []
    track(site.database, replicates=50)
    with site.database.read() as connection:
        found = {
            row.region: row
            for row in connection.execute(
                text("SELECT * FROM latest_dice WHERE cohort = 'all' AND period = 'since_promotion'")
            )
        }
        dice = connection.scalar(
            select(tables.region_dice.c.dice).where(
                tables.region_dice.c.label_map_id == first.id, tables.region_dice.c.region == "left_lung"
            )
        )
    expected = overlap(labels == 1, before == 1).dice
    assert 0.5 < expected < 0.95 and dice == pytest.approx(expected)
    assert found["left_lung"].dice == pytest.approx((FILMS - 1 + expected) / FILMS)
    assert found["left_lung"].dice_low < found["left_lung"].dice < found["left_lung"].dice_high <= 1.0
    assert (found["spine"].dice, found["spine"].films) == (1.0, FILMS)
    assert set(found) == {"left_lung", "right_lung", "left_subdiaphragm", "right_subdiaphragm", "spine", "mediastinum",
                          "carina"}  # fmt: skip
    # Nothing is computed twice, and a later correction counts.
    assert track(site.database, replicates=50).computed == 0
    cv2.imwrite(str(exported / "1.1.png"), before)
    assert bring(site, exported, labelled_at=datetime(2999, 1, 1, tzinfo=UTC)).new == 1
    assert track(site.database, replicates=50).computed > 0
    with site.database.read() as connection:
        query = text("SELECT dice FROM latest_dice WHERE cohort = 'all' AND period = '7d' AND region = 'left_lung'")
        assert connection.scalar(query) == 1.0


def test_what_a_bundle_draws_as_one_region_the_reader_may_draw_as_two(site: Films, tmp_path: Path) -> None:
    names = REGION_SETS["novikov"]
    regions = [
        {"value": value, "name": name, "title": name, "colour": [0, 0, 0], "origin": "exact"}
        for value, name in enumerate(names)
    ]
    with site.database.write() as connection:
        connection.execute(update(tables.bundle).values(manifest={**MANIFEST, "regions": regions}))
    export_png(site.database, tmp_path / "out")
    drawn = cv2.imread(str(tmp_path / "out" / "1.1.png"), cv2.IMREAD_UNCHANGED)
    lungs, clavicles = (REGION_BY_NAME[name].value for name in ("lungs", "clavicles"))
    assert {lungs, clavicles, REGION_BY_NAME["heart"].value} <= set(np.unique(drawn))
    columns = np.flatnonzero((drawn == lungs).any(axis=0))
    left = np.arange(drawn.shape[1]) > columns[len(columns) // 2]
    drawn[(drawn == lungs) & left] = REGION_BY_NAME["left_lung"].value
    drawn[drawn == lungs] = REGION_BY_NAME["right_lung"].value
    drawn[drawn == clavicles] = REGION_BY_NAME["spine"].value  # which this bundle does not draw
    cv2.imwrite(str(tmp_path / "out" / "1.1.png"), drawn)
    assert bring(site, tmp_path / "out").new == FILMS
    track(site.database, replicates=50)
    with site.database.read() as connection:
        first = connection.scalar(select(tables.label_map.c.id).where(tables.label_map.c.instance_id == 1))
        rows = connection.execute(select(tables.region_dice).where(tables.region_dice.c.label_map_id == first))
        assert {row.region: row.dice for row in rows} == {"lungs": 1.0, "heart": 1.0, "clavicles": 0.0}


def test_films_chosen_or_learned_from_do_not_count(site: Films, exported: Path) -> None:
    bring(site, exported, source=LabelSource.DISAGREEMENT)
    track(site.database, replicates=50)
    with site.database.read() as connection:
        assert connection.execute(select(tables.dice_tracking)).all() == []


@pytest.mark.parametrize(
    ("picture", "what"),
    [
        (np.zeros((60, 41), np.uint8), "it has 60 x 41 pixels, the film 60 x 40"),
        (np.full((60, 40), 13, np.uint8), "it has the value 13; regions have the values 0 to 12"),
        (np.zeros((60, 40), np.uint16), "it is not an 8-bit picture of one channel"),
        (np.zeros((60, 40, 3), np.uint8), "it is not an 8-bit picture of one channel"),
        (None, "it cannot be read as a PNG picture"),
    ],
)
def test_a_wrong_picture_keeps_all_out(site: Films, exported: Path, picture: Any, what: str) -> None:
    if picture is None:
        (exported / "1.1.png").write_bytes(b"\x89PNG no")
    else:
        cv2.imwrite(str(exported / "1.1.png"), picture)
    report = bring(site, exported)
    assert (report.problems, report.written) == ([(1, what)], False)
    assert bring(site, exported, skip_bad=True).new == FILMS - 1


def test_films_that_are_not_known_or_not_read(site: Films, exported: Path) -> None:
    (exported / "1.1.png").rename(exported / "9.9.png")
    site.update(tables.instance, 2, film_rows=None)
    report = bring(site, exported, dry_run=True)
    assert (report.unknown, report.written, report.new) == ([FILMS], False, FILMS - 2)
    assert len(report.problems) == 1 and "no worker has read the film yet" in report.problems[0][1]
    assert "9.9" not in str(report.to_json())


def test_a_folder_without_pictures(site: Films, tmp_path: Path) -> None:
    with pytest.raises(CarinaError, match="has no PNG files"):
        bring(site, tmp_path)
    with pytest.raises(CarinaError, match="cannot be read"):
        bring(site, tmp_path / "nowhere")
    with pytest.raises(CarinaError, match="pseudonym"):
        bring(site, tmp_path, reader="")

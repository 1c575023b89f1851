from __future__ import annotations

import csv
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_films import Films, labels, result

from schema import tables
from schema.database import Database
from worker.errors import CarinaError
from worker.film.geometry import to_film_grid
from worker.film.prepared import Geometry
from worker.results.export import CSV_COLUMNS, export_csv, export_png, png_name


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "films.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def pictures(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_label_map_lies_on_the_films_own_grid(database: Database, films: Films, tmp_path: Path) -> None:
    films.film(uid="1.2.840.1", stored=result(film=(301, 203), flip_columns=True))
    assert export_png(database, tmp_path / "out") == 1
    written = cv2.imread(str(tmp_path / "out" / "1.2.840.1.png"), cv2.IMREAD_UNCHANGED)
    assert written.dtype == np.uint8
    np.testing.assert_array_equal(written, to_film_grid(labels(), Geometry(301, 203, flip_columns=True)))
    # Label 1 starts at the left of the stored map, so on a mirrored film it must end up at the right.
    assert np.median(np.nonzero(written == 1)[1]) > 100


def regions(*names: str) -> list[dict[str, object]]:
    return [{"value": value, "name": name, "title": name, "colour": [0, 0, 0]} for value, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("background", "left_lung", "right_lung"), {0: 0, 1: 1, 2: 2}),
        (("background", "right_lung", "left_lung", "carina"), {0: 0, 1: 2, 2: 1, 3: 7}),
        (("background", "lungs", "heart", "left_clavicle", "right_clavicle"), {0: 0, 1: 11, 2: 8, 3: 9, 4: 10}),
        (("background", "heart", "spine", "left_lung", "tube"), {0: 0, 1: 8, 2: 5, 3: 1, 4: 13}),
    ],
)
def test_a_region_has_the_same_value_whatever_bundle_found_it(
    database: Database, films: Films, tmp_path: Path, names: tuple[str, ...], values: dict[int, int]
) -> None:
    from worker.results.write import write_results

    own = np.minimum(labels(), len(names) - 1)
    stored = result(film=(128, 96))
    assert stored.segmentation is not None
    stored = replace(stored, segmentation=replace(stored.segmentation, cleaned=own))
    job = films.film(uid="1.1", bundle_id=films.add_bundle("2", regions=regions(*names)))
    films.film(uid="1.2", stored=result(film=(128, 96)))  # of a bundle of eight regions
    with database.write() as connection:
        write_results(connection, [(job, stored)])
    assert export_png(database, tmp_path) == 2
    written = cv2.imread(str(tmp_path / "1.1.png"), cv2.IMREAD_UNCHANGED)
    laid = to_film_grid(own, Geometry(128, 96))
    for value in range(len(names)):
        assert set(np.unique(written[laid == value])) == {values[value]}
    other = cv2.imread(str(tmp_path / "1.2.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(other, to_film_grid(labels(), Geometry(128, 96)))


def test_only_published_results_are_exported(database: Database, films: Films, tmp_path: Path) -> None:
    films.film(uid="1.1", stored=result())
    films.film(uid="1.2", stored=result(), published=False)
    films.film("failed", uid="1.3")
    films.film("ineligible", uid="1.4", stored=result(ineligible="LATERAL"))
    assert export_png(database, tmp_path / "out") == 1
    assert pictures(tmp_path / "out") == {"1.1.png"}


def test_the_champions_result_speaks_for_a_film(database: Database, films: Films, tmp_path: Path) -> None:
    from worker.results.write import write_results

    first = films.film(uid="1.1", stored=result(film=(40, 30)))
    other = films.job(1, "done", arrival_id=films.arrival_of(first), bundle_id=films.add_bundle("2"))
    with database.write() as connection:
        write_results(connection, [(other, result(film=(80, 60)))])
    assert export_png(database, tmp_path) == 1
    assert cv2.imread(str(tmp_path / "1.1.png"), cv2.IMREAD_UNCHANGED).shape == (40, 30)
    with database.write() as connection:
        connection.execute(tables.bundle_alias.update().values(bundle_id=2))
    assert export_png(database, tmp_path) == 1
    assert cv2.imread(str(tmp_path / "1.1.png"), cv2.IMREAD_UNCHANGED).shape == (80, 60)


def test_a_result_of_an_older_generation_is_not_exported(database: Database, films: Films, tmp_path: Path) -> None:
    films.film(uid="1.1", stored=result())
    films.update(tables.instance, 1, generation=2)
    assert export_png(database, tmp_path / "out") == 0


def test_export_may_be_narrowed(database: Database, films: Films, tmp_path: Path) -> None:
    films.film(uid="1.1", stored=result())
    second = films.insert(tables.submission, lane="icu")
    instance = films.instance("1.2")
    arrival = films.arrival("instance", instance, current=True, submission=second)
    job = films.job(instance, "done", arrival_id=arrival, finished_at=datetime.now(UTC) - timedelta(days=2))
    from worker.results.write import write_results

    with database.write() as connection:
        write_results(connection, [(job, result())])
    assert export_png(database, tmp_path / "a", submission_id=second) == 1
    assert pictures(tmp_path / "a") == {"1.2.png"}
    assert export_png(database, tmp_path / "b", since=datetime.now(UTC) - timedelta(days=1)) == 1
    assert pictures(tmp_path / "b") == {"1.1.png"}
    assert export_csv(database, tmp_path / "c", submission_id=second) == 1
    assert export_csv(database, tmp_path / "c") == 2
    assert export_csv(database, tmp_path / "c", since=datetime.now(UTC) + timedelta(hours=1)) == 0


def test_progress_counts_to_the_end(database: Database, films: Films, tmp_path: Path) -> None:
    for _ in range(3):
        films.film(stored=result(film=(20, 20)))
    told: list[tuple[int, int]] = []
    export_png(database, tmp_path, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    told.clear()
    export_csv(database, tmp_path, progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (3, 3)


def test_a_damaged_result_is_left_out_and_the_rest_is_exported(
    database: Database, films: Films, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    films.film(uid="1.1", stored=result(film=(20, 20)))
    films.film(uid="1.2", stored=result(film=(20, 20)))
    with database.write() as connection:
        connection.execute(tables.segmentation.update().where(tables.segmentation.c.job_id == 1).values(mask=b"junk"))
    assert export_png(database, tmp_path / "out") == 1
    assert pictures(tmp_path / "out") == {"1.2.png"}
    assert "job 1" in caplog.text


def test_a_folder_that_cannot_be_written_is_said(database: Database, films: Films, tmp_path: Path) -> None:
    films.film(stored=result())
    (tmp_path / "file").write_text("")
    for export in (export_png, export_csv):
        with pytest.raises(CarinaError, match="cannot be written"):
            export(database, tmp_path / "file" / "out")


def test_an_interrupted_export_leaves_no_half_file(database: Database, films: Films, tmp_path: Path) -> None:
    films.film(stored=result())

    def interrupt(_done: int, _of: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    out.mkdir()
    (out / "films.csv").write_text("the table of yesterday")
    with pytest.raises(KeyboardInterrupt):
        export_csv(database, out, progress=interrupt)
    assert pictures(out) == {"films.csv"}
    assert (out / "films.csv").read_text() == "the table of yesterday"


@given(st.lists(st.text(min_size=1, max_size=80), min_size=2, max_size=8, unique=True))
@settings(max_examples=200, deadline=None)
def test_no_two_films_share_a_file_name_and_none_leaves_the_folder(uids: list[str]) -> None:
    names = [png_name(uid) for uid in uids]
    assert len(set(names)) == len(names)
    for name in names:
        assert Path(name).name == name
        assert name.isprintable() and len(name.encode()) < 255


@pytest.mark.parametrize("uid", ["1.2.840.113619.2.5", "2.25.1", "0"])
def test_a_proper_uid_is_the_file_name(uid: str) -> None:
    assert png_name(uid) == f"{uid}.png"


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2.", "..", "1.2\n", ""])
def test_what_is_no_uid_is_made_harmless(uid: str) -> None:
    assert png_name(uid) != f"{uid}.png"
    assert "/" not in png_name(uid) and not png_name(uid).startswith(".")


# films.csv


def test_the_first_columns_are_those_promised(database: Database, tmp_path: Path) -> None:
    assert export_csv(database, tmp_path) == 0
    header = (tmp_path / "films.csv").read_text().strip().split(",")
    assert tuple(header[: len(CSV_COLUMNS)]) == ("sop_instance_uid", "source", "state", "code", "bundle", "flags")
    assert "pneumonia" in header and "no_finding" in header
    assert len(header) == len(CSV_COLUMNS) + 10


def test_each_file_that_came_has_one_row(database: Database, films: Films, tmp_path: Path) -> None:
    films.film(uid="1.1", stored=result(flags=("missing_region", "low_confidence", "missing_region")))
    instance = 1
    films.arrival("duplicate", instance, path="films/again.dcm")
    films.arrival("conflict", instance, path="films/other.zip", member="a/b.dcm")
    films.arrival("alias", films.instance("1.9", alias_of=instance), current=True)
    unverified = films.arrival("unverified", instance)
    films.job(instance, "leased", kind="verify", arrival_id=unverified, bundle_id=None, revision=None)
    films.arrival("rejected", None, code="EMPTY_FILE")
    films.arrival("not_dicom", None, code="NOT_DICOM")
    films.film("ineligible", uid="1.3")
    films.film("failed", uid="1.4")
    films.film("ready", uid="1.5")
    assert export_csv(database, tmp_path) == 9
    rows = table(tmp_path)
    assert [(row["sop_instance_uid"], row["state"], row["code"]) for row in rows] == [
        ("1.1", "done", ""),
        ("1.1", "duplicate", ""),
        ("1.1", "conflict", ""),
        ("1.9", "alias", ""),
        ("1.1", "leased", ""),
        ("", "rejected", "EMPTY_FILE"),
        ("1.3", "ineligible", "LATERAL"),
        ("1.4", "failed", "DECODE_FAILED"),
        ("1.5", "ready", ""),
    ]
    done, duplicate, conflict = rows[:3]
    assert done["source"] == "/films/1.dcm"
    assert conflict["source"] == "/films/other.zip!a/b.dcm"
    assert done["bundle"] == "phantom:1"
    assert done["flags"] == "low_confidence;missing_region"
    assert done["pneumonia"] == "0.250000"
    assert done["bronchitis"] == ""
    assert duplicate["bundle"] == duplicate["flags"] == duplicate["pneumonia"] == ""


def test_a_replayed_film_stays_done_when_its_second_job_was_cancelled(
    database: Database, films: Films, tmp_path: Path
) -> None:
    job = films.film(stored=result(flags=("missing_region",)))
    films.job(1, "cancelled", arrival_id=films.arrival_of(job))
    export_csv(database, tmp_path)
    assert [(row["state"], row["flags"]) for row in table(tmp_path)] == [("done", "missing_region")]


def test_a_job_without_arrival_belongs_to_the_current_file(database: Database, films: Films, tmp_path: Path) -> None:
    films.film(stored=result(), arrival_id=None)
    export_csv(database, tmp_path)
    assert [row["state"] for row in table(tmp_path)] == ["done"]


def test_a_shadow_result_does_not_show(database: Database, films: Films, tmp_path: Path) -> None:
    job = films.film(stored=result())
    shadow = films.job(1, "done", arrival_id=films.arrival_of(job), bundle_id=films.add_bundle("2"), published=False)
    from worker.results.write import write_results

    with database.write() as connection:
        write_results(connection, [(shadow, result(pneumonia=0.9))])
    export_csv(database, tmp_path)
    assert [(row["bundle"], row["pneumonia"]) for row in table(tmp_path)] == [("phantom:1", "0.250000")]


def test_findings_of_other_bundles_get_columns(database: Database, films: Films, tmp_path: Path) -> None:
    films.add_bundle("2", findings=[{"finding": "cardiomegaly", "threshold": 0.5}])
    export_csv(database, tmp_path)
    assert (tmp_path / "films.csv").read_text().strip().endswith("no_finding,cardiomegaly")


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ('odd, "quoted"\nname.dcm', '/odd, "quoted"\nname.dcm'),
        ("percent%25.dcm", "/percent%.dcm"),
        ("latin%FF.dcm", "/latin%FF.dcm"),
        ("röntgen.dcm", "/röntgen.dcm"),
    ],
)
def test_odd_paths_survive(database: Database, films: Films, tmp_path: Path, stored: str, shown: str) -> None:
    films.arrival("rejected", None, code="EMPTY_FILE", path=stored)
    export_csv(database, tmp_path)
    assert [row["source"] for row in table(tmp_path)] == [shown]


def test_roots_are_names_until_their_folder_is_known(database: Database, films: Films, tmp_path: Path) -> None:
    films.arrival("rejected", None, code="EMPTY_FILE", path="a.dcm")
    export_csv(database, tmp_path, roots={"pacs": "/mnt/pacs"})
    assert table(tmp_path)[0]["source"] == "local:a.dcm"
    export_csv(database, tmp_path, roots={"local": "/mnt/pacs"})
    assert table(tmp_path)[0]["source"] == "/mnt/pacs/a.dcm"


@pytest.mark.parametrize("uid", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx"])
def test_no_cell_is_a_formula(database: Database, films: Films, tmp_path: Path, uid: str) -> None:
    films.film("failed", uid=uid)
    export_csv(database, tmp_path)
    assert table(tmp_path)[0]["sop_instance_uid"] == f"'{uid}"


def test_more_films_than_a_page(database: Database, films: Films, tmp_path: Path) -> None:
    with database.write() as connection:
        arrivals = [{"submission_id": 1, "state": "rejected", "code": "EMPTY_FILE"} for _ in range(450)]
        connection.execute(tables.arrival.insert(), arrivals)
        paths = [
            {"arrival_id": number, "root": "local", "path": f"{number}", "size": 1, "modified_ns": 1}
            for number in range(1, 451)
        ]
        connection.execute(tables.identity.insert(), paths)
    assert export_csv(database, tmp_path) == 450
    assert [row["source"] for row in table(tmp_path)] == [f"/{number}" for number in range(1, 451)]

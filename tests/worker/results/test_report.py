from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from stored_films import MANIFEST, Films, result

from schema import tables
from schema.database import Database
from worker.errors import CarinaError
from worker.results.overlay import (
    LONGEST_SIDE,
    display_size,
    draw_heatmap,
    draw_regions,
    heat_layer,
    labels_on,
    region_layer,
    shrink,
)
from worker.results.report import write_report
from worker.results.write import write_results
from worker.settings import Settings

SECRET_UID = "1.2.840.99.4711"


def grey(_path: Path, _member: str | None) -> np.ndarray:
    return np.tile(np.arange(200, dtype=np.uint8), (300, 1))


@pytest.fixture
def read_settings(tmp_path: Path) -> Settings:
    (tmp_path / "root" / "films").mkdir(parents=True)
    return Settings(home=tmp_path / "home", roots=f"local={tmp_path / 'root'}")


def put_file(films: Films, job: int, folder: Path) -> None:
    """The file of a job, as it was registered."""
    arrival = films.arrival_of(job)
    path = folder / "root" / "films" / f"{arrival}.dcm"
    path.write_bytes(b"x")
    with films.database.write() as connection:
        connection.execute(
            tables.identity.update()
            .where(tables.identity.c.arrival_id == arrival)
            .values(size=1, modified_ns=path.stat().st_mtime_ns)
        )


def images(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(item), np.uint8), cv2.IMREAD_UNCHANGED) for item in found]


def write(database: Database, settings: Settings, folder: Path, **options: object) -> str:
    options = {"submission_id": 1, "read_picture": grey, **options}
    path = write_report(database, settings, folder / "out", **options)  # type: ignore[arg-type]
    assert path == folder / "out" / "report.html"
    page = path.read_text("utf-8")
    check = _Balance()
    check.feed(page)
    assert check.open == []
    return page


class _Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = {"meta", "img", "br", "input", "link"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_about_nothing_is_a_page(database: Database, read_settings: Settings, tmp_path: Path) -> None:
    page = write(database, read_settings, tmp_path, submission_id=None)
    assert "Research use, not a medical device" in page
    assert "No film has a result" in page


def test_films_flags_findings_and_troubles_are_told(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path
) -> None:
    put_file(films, films.film(uid=SECRET_UID, stored=result(flags=("missing_region",), pneumonia=0.8)), tmp_path)
    films.film("ineligible")
    films.film("failed", detail="12 of 13 bytes")
    films.arrival("rejected", None, code="EMPTY_FILE")
    films.arrival("conflict", 1)
    films.arrival("duplicate", 1)
    page = write(database, read_settings, tmp_path)
    for expected in (
        "phantom:1",
        "Trained on synthetic films.",
        "openvino 1, fp32, a processor",
        "Carina is missing",
        "Look at the masks before using them.",
        "Pneumonia (positive)",
        "The picture is a lateral view.",
        "The decoder refused the pixel data: 12 of 13 bytes.",
        "Send the film again from the archive.",
        "The file has no bytes.",
        "carina conflicts list",
        "Left lung",
        "(exact)",
    ):
        assert expected in page, expected


def test_no_identity_is_told(database: Database, films: Films, read_settings: Settings, tmp_path: Path) -> None:
    put_file(films, films.film(uid=SECRET_UID, stored=result()), tmp_path)
    films.film("failed", uid=SECRET_UID + ".1")
    films.arrival("rejected", None, code="EMPTY_FILE", path="films/MUELLER^ANNA.dcm")
    page = write(database, read_settings, tmp_path)
    for secret in (SECRET_UID, "MUELLER", ".dcm", str(tmp_path)):
        assert secret not in page


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path
) -> None:
    put_file(films, films.film(stored=result(pneumonia=0.8)), tmp_path)
    page = write(database, read_settings, tmp_path)
    assert "<script" not in page
    assert "url(" not in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(address.startswith("data:image/") for address in addresses)


def test_what_came_from_outside_is_escaped(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path
) -> None:
    films.film("failed", detail="<script>alert(1)</script>")
    page = write(database, read_settings, tmp_path)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_pictures_are_film_regions_and_heat(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path
) -> None:
    put_file(films, films.film(stored=result(pneumonia=0.8)), tmp_path)
    film, regions, heat = images(write(database, read_settings, tmp_path))
    assert film.shape == (300, 200)
    assert regions.shape == heat.shape == (300, 200, 4)
    np.testing.assert_allclose(film, grey(Path(), None), atol=6)


def test_a_film_without_a_positive_finding_has_no_heat_map(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path
) -> None:
    put_file(films, films.film(stored=result(pneumonia=0.1)), tmp_path)
    assert len(images(write(database, read_settings, tmp_path))) == 2


@pytest.mark.parametrize("trouble", ["gone", "changed", "unreadable"])
def test_a_file_that_is_not_what_it_was_is_not_shown(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path, trouble: str
) -> None:
    job = films.film(stored=result(pneumonia=0.8))
    put_file(films, job, tmp_path)
    path = tmp_path / "root" / "films" / f"{films.arrival_of(job)}.dcm"
    if trouble == "gone":
        path.unlink()
    elif trouble == "changed":
        path.write_bytes(b"another film")
    reader = (lambda _path, _member: None) if trouble == "unreadable" else grey
    page = write(database, read_settings, tmp_path, read_picture=reader)
    (regions,) = images(page)
    assert regions.shape == (64, 64, 4)
    assert "no longer where it was" in page


def test_a_damaged_mask_does_not_stop_the_report(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path
) -> None:
    for _ in range(2):
        put_file(films, films.film(stored=result(pneumonia=0.1)), tmp_path)
    with database.write() as connection:
        connection.execute(tables.segmentation.update().where(tables.segmentation.c.job_id == 1).values(mask=b"junk"))
    assert len(images(write(database, read_settings, tmp_path))) == 3


def test_flagged_films_come_first_and_the_rest_is_counted(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path
) -> None:
    for number in range(4):
        put_file(films, films.film(stored=result(flags=("low_confidence",) if number == 3 else ())), tmp_path)
    told: list[tuple[int, int]] = []
    page = write(database, read_settings, tmp_path, limit=2, progress=lambda done, of: told.append((done, of)))
    assert re.findall(r"<h3>Film (\d+)", page) == ["4", "1"]
    assert "2 of 4 films are shown" in page
    assert told == [(1, 2), (2, 2)]


def test_only_the_asked_submission_is_reported(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path
) -> None:
    films.film(stored=result())
    films.submission = films.insert(tables.submission, lane="icu", not_dicom=3)
    films.film(stored=result())
    page = write(database, read_settings, tmp_path, submission_id=films.submission)
    assert re.findall(r"<h3>Film (\d+)", page) == ["2"]
    assert re.search(r"Not DICOM</td><td class=\"number\">3<", page)


def test_a_flag_before_and_after_clean_up_is_said_once(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path
) -> None:
    from worker.results.result import Flag

    stored = result(flags=("disconnected_region",))
    stored.flags.insert(0, Flag("disconnected_region", 1, "raw", "carina", 4.0, None))
    stored.flags.append(Flag("missing_region", 1, "raw", "spine"))
    films.film(stored=stored)
    page = write(database, read_settings, tmp_path)
    assert page.count("separate pieces") == 1
    assert "3 separate pieces (after clean-up)" in page
    assert "Spine is missing (before clean-up)" in page


def test_films_of_two_bundles_are_drawn_with_their_own_regions(
    database: Database, films: Films, read_settings: Settings, tmp_path: Path
) -> None:
    white = [{**region, "colour": [255, 255, 255]} for region in MANIFEST["regions"]]
    films.film(stored=result(pneumonia=0.1))
    job = films.film("done", bundle_id=films.add_bundle("2", regions=white))
    with database.write() as connection:
        write_results(connection, [(job, result(pneumonia=0.1))])
    coloured, plain = images(write(database, read_settings, tmp_path))
    assert set(np.unique(plain[plain[..., 3] > 0][:, :3])) == {255}
    assert len(np.unique(coloured[coloured[..., 3] > 0][:, :3])) > 2


def test_a_folder_that_cannot_be_written_is_said(database: Database, read_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(CarinaError, match="report cannot be written"):
        write(database, read_settings, tmp_path)


# Overlays


@pytest.mark.parametrize(
    ("rows", "columns", "shown"),
    [(2048, 2500, (419, 512)), (3000, 1500, (512, 256)), (100, 80, (100, 80)), (5000, 3, (512, 1))],
)
def test_the_longest_side_is_bounded_and_the_shape_kept(rows: int, columns: int, shown: tuple[int, int]) -> None:
    assert display_size(rows, columns) == shown
    assert max(shrink(np.zeros((rows, columns), np.uint8)).shape) <= LONGEST_SIDE


def test_regions_are_outlined_in_their_colour_and_filled_faintly() -> None:
    from schema.regions import HOLSTE_REGIONS

    labels = np.zeros((40, 40), np.uint8)
    labels[10:30, 5:35] = 1
    layer = region_layer(labels, HOLSTE_REGIONS)
    colour = HOLSTE_REGIONS[1].colour
    assert (layer[labels == 0] == 0).all()
    assert tuple(layer[10, 20, :3]) == tuple(layer[20, 20, :3]) == colour
    assert layer[10, 20, 3] > 200 > 100 > layer[20, 20, 3] > 0
    drawn = draw_regions(np.full((40, 40), 100, np.uint8), labels, HOLSTE_REGIONS)
    assert (drawn[0, 0] == 100).all()
    np.testing.assert_allclose(drawn[10, 20], colour, atol=15)


def test_labels_are_stretched_over_the_whole_picture() -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels[:, :2] = 3
    shown = labels_on((100, 60), labels)
    assert (shown[:, :30] == 3).all() and (shown[:, 30:] == 0).all()


def test_heat_is_where_the_activation_is() -> None:
    activation = np.zeros((8, 8), np.uint8)
    activation[:2, :2] = 255
    layer = heat_layer(activation, (80, 80))
    assert layer[5, 5, 3] > 100
    assert layer[60, 60, 3] == 0
    drawn = draw_heatmap(np.full((80, 80), 50, np.uint8), activation)
    assert (drawn[60, 60] == 50).all() and (drawn[5, 5] != 50).any()

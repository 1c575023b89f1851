from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from page_server import Answer, Browser, serving
from stored_films import MANIFEST, Films, result

from schema import tables
from schema.database import Database
from worker.monitor.serve.film import age_words
from worker.monitor.serve.pictures import windowed
from worker.phantom import make_phantom, phantom_dataset
from worker.results.write import write_results
from worker.settings import Settings


def image(answer: Answer) -> np.ndarray:
    assert answer.status == 200, answer.text
    return cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_UNCHANGED)


def put_film(films: Films, job: int, folder: Path, rows: int = 300, columns: int = 200) -> Path:
    """A file for the job, as it was registered."""
    path = folder / "root" / "films" / f"{films.arrival_of(job)}.dcm"
    phantom_dataset(make_phantom(3, rows=rows, columns=columns)).save_as(path)
    with films.database.write() as connection:
        connection.execute(
            tables.identity.update()
            .where(tables.identity.c.arrival_id == films.arrival_of(job))
            .values(size=path.stat().st_size, modified_ns=path.stat().st_mtime_ns)
        )
    return path


def test_a_film_is_told_in_sentences(films: Films, browser: Browser) -> None:
    films.film(stored=result(flags=("missing_region",), pneumonia=0.8))
    films.update(tables.instance, 1, station="ROOM1", age_days=800, sex="F", view_position="AP")
    page = browser.page("/film/1")
    for expected in (
        "Carina is missing (after clean-up)", "Look at the masks before using them.", "Pneumonia (positive)", "0.80",
        "phantom:1", "openvino 1, fp32, a processor", "decode 0.01", "ROOM1", "2 years", "Left lung", "Across bundles",
    ):  # fmt: skip
        assert expected in page.words, expected
    # Both networks have a mark of their own.
    assert page.text.count('class="member"') == 4


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("failed", "The decoder refused the pixel data."),
        ("ineligible", "The picture is a lateral view."),
        ("ready", "It waits for a worker."),
        ("delayed", "The decoder refused the pixel data."),
    ],
)
def test_a_film_without_a_result_says_why(films: Films, browser: Browser, state: str, words: str) -> None:
    films.film(state)
    assert words in browser.page("/film/1").words
    assert browser.get("/film/1/layer.png").status == 404


def test_an_unknown_film_is_not_found(browser: Browser) -> None:
    for number in (7, 1 << 70):
        answer = browser.get(f"/film/{number}")
        assert (answer.status, "no film of that number" in answer.words) == (404, True)


def test_regions_are_chosen_one_by_one(films: Films, browser: Browser) -> None:
    films.film(stored=result())
    every = image(browser.get("/film/1/layer.png"))
    assert every.shape == (300, 200, 4) and (every[..., 3] > 0).any()
    nothing = image(browser.get("/film/1/layer.png?shown=1"))
    assert (nothing[..., 3] == 0).all()
    lung = image(browser.get("/film/1/layer.png?shown=1&region=left_lung&opacity=100"))
    assert {tuple(colour) for colour in lung[lung[..., 3] > 0]} == {(233, 180, 86, 255)}
    assert 0 < (lung[..., 3] > 0).sum() < (every[..., 3] > 0).sum()


def test_opacity_and_outlines(films: Films, browser: Browser) -> None:
    films.film(stored=result())
    both = image(browser.get("/film/1/layer.png?shown=1&region=spine&opacity=0&outlines=1"))[..., 3]
    assert set(np.unique(both)) == {0, 242}
    half = image(browser.get("/film/1/layer.png?shown=1&region=spine&opacity=50"))[..., 3]
    assert set(np.unique(half)) == {0, 128}


def test_an_activation_map_for_each_finding(films: Films, browser: Browser) -> None:
    films.film(stored=result())
    for name in ("pneumonia", "no_finding"):
        layer = image(browser.get(f"/film/1/layer.png?heat={name}"))
        assert layer.shape == (300, 200, 4)
        # The stored map grows from the first row to the last.
        assert layer[290, 100, 3] > layer[150, 100, 3] > layer[10, 100, 3]
    assert browser.get("/film/1/layer.png?heat=edema").status == 404


def test_the_film_is_drawn_at_a_window(films: Films, browser: Browser, tmp_path: Path) -> None:
    path = put_film(films, films.film(stored=result()), tmp_path)
    whole = image(browser.get("/film/1/film.jpg"))
    assert whole.shape == (1024, 683)
    narrow = image(browser.get("/film/1/film.jpg?center=50&width=30"))
    assert narrow.std() > whole.std()
    assert 'id="gone" role="status" hidden' in browser.page("/film/1").text
    # A film that changed since is not the one that the result is about.
    path.write_bytes(b"another")
    assert browser.get("/film/1/film.jpg").status == 404
    page = browser.page("/film/1").text
    assert "film.jpg" not in page and 'id="gone" role="status">' in page


def test_a_window_is_a_straight_line() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    drawn = cv2.imdecode(np.frombuffer(windowed(ramp, 50, 50), np.uint8), cv2.IMREAD_UNCHANGED)
    assert drawn[:, :60].max() < 12 and drawn[:, 196:].min() > 243
    np.testing.assert_allclose(drawn[32, 70:186], np.clip((np.arange(70, 186) - 63.75) * 2, 0, 255), atol=6)


def test_a_site_may_keep_films_to_itself(
    films: Films, database: Database, page_settings: Settings, tmp_path: Path
) -> None:
    put_film(films, films.film(stored=result()), tmp_path)
    with serving(database, replace(page_settings, serve_pictures="no")) as browser:
        assert browser.get("/film/1/film.jpg").status == 404
        assert "film.jpg" not in browser.page("/film/1").text
        assert browser.get("/film/1/layer.png").status == 200


def test_a_damaged_mask_is_said(films: Films, database: Database, browser: Browser) -> None:
    films.film(stored=result())
    with database.write() as connection:
        connection.execute(tables.segmentation.update().values(mask=b"junk"))
    assert browser.page("/film/1").status == 200
    answer = browser.get("/film/1/layer.png")
    assert (answer.status, "retry the film" in answer.words) == (404, True)


def test_earlier_results_are_told_and_shadow_results_are_not(
    films: Films, database: Database, browser: Browser
) -> None:
    first = films.film(stored=result(pneumonia=0.31))
    second, trial = films.add_bundle("2"), films.add_bundle("3", description=MANIFEST["description"])
    later = films.job(1, "done", bundle_id=second, arrival_id=1)
    shadow = films.job(1, "done", bundle_id=trial, kind="shadow", published=False, priority=20)
    with database.write() as connection:
        write_results(connection, [(later, result(pneumonia=0.62)), (shadow, result(pneumonia=0.97))])
    page = browser.page("/film/1").words
    assert "phantom:1" in page and "phantom:2" in page and "0.31" in page and "0.62" in page
    assert "phantom:3" not in page and "0.97" not in page
    assert "Pneumonia (positive)" in page
    assert "Pneumonia (positive)" not in browser.page(f"/film/1?job={first}").words
    assert "0.97" not in browser.page(f"/film/1?job={shadow}").words


@pytest.mark.parametrize(
    ("days", "words"), [(None, ""), (12, "12 days"), (213, "7 months"), (1600, "4 years"), (731, "2 years")]
)
def test_ages_in_words(days: int | None, words: str) -> None:
    assert age_words(days) == words

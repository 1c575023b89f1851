from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.records import EIGHT, LUNGS, FilmRecord
from trainer.data.truth import as_bits, flattened, read_labels, renamed, split_lungs, to_network_grid
from trainer.errors import DataError
from worker.film import preprocess
from worker.film.geometry import to_film_grid
from worker.film.prepared import Geometry

LabelMap = npt.NDArray[np.uint8]
Write = Callable[..., Path]
LEFT, RIGHT = 1, 2


def record(truth: Path, kind: Any = "label_map", regions: tuple[str, ...] = ()) -> FilmRecord:
    return FilmRecord("film", Path("film.png"), truth, "p", truth_kind=kind, truth_regions=regions)


def lungs(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (60, 80)) -> npt.NDArray[np.bool_]:
    mask = np.zeros(shape, np.bool_)
    for top, bottom, first, last in boxes:
        mask[top:bottom, first:last] = True
    return mask


def test_two_pieces_are_told_apart_by_side() -> None:
    drawn, note = split_lungs(lungs((10, 50, 10, 30), (5, 40, 50, 70)))
    assert note == ""
    assert set(np.unique(drawn[:, :40])) == {0, RIGHT}
    assert set(np.unique(drawn[:, 40:])) == {0, LEFT}
    assert LUNGS[LEFT] == "left_lung" and LUNGS[RIGHT] == "right_lung"


def test_small_pieces_go_to_the_nearer_lung() -> None:
    mask = lungs((10, 50, 10, 30), (5, 40, 50, 70), (55, 58, 12, 15), (50, 54, 66, 70))
    drawn, note = split_lungs(mask)
    assert drawn[56, 13] == RIGHT and drawn[52, 68] == LEFT
    assert np.array_equal(drawn > 0, mask)
    assert note.startswith("4 pieces")


def test_lungs_grown_together_are_cut_where_they_are_thinnest() -> None:
    mask = lungs((10, 50, 10, 36), (10, 50, 44, 70), (28, 31, 36, 44))
    drawn, note = split_lungs(mask)
    assert "cut" in note
    assert set(np.unique(drawn[:, :36])) == {0, RIGHT} and set(np.unique(drawn[:, 44:])) == {0, LEFT}
    assert np.array_equal(drawn > 0, mask)


@pytest.mark.parametrize("columns, side", [((5, 30), RIGHT), ((50, 75), LEFT)])
def test_one_piece_on_one_side_is_one_lung(columns: tuple[int, int], side: int) -> None:
    drawn, note = split_lungs(lungs((10, 50, *columns)))
    assert set(np.unique(drawn)) == {0, side}
    assert "alone" in note


def test_an_empty_mask_and_three_lungs_are_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        split_lungs(lungs())
    with pytest.raises(DataError, match="3 large pieces"):
        split_lungs(lungs((10, 50, 5, 20), (10, 50, 30, 45), (10, 50, 55, 75)))


def test_a_lung_mask_is_what_is_bright(tmp_path: Path, write: Write) -> None:
    mask = np.where(lungs((10, 50, 10, 30), (5, 40, 50, 70)), 250, 3).astype(np.uint8)
    mask[0, :] = 127
    mask[30, 20] = 128
    drawn, _ = read_labels(record(write(tmp_path / "m.png", mask), "lungs"), Geometry(60, 80), LUNGS)
    np.testing.assert_array_equal(drawn > 0, mask >= 128)


def test_a_label_map_of_another_size_is_refused(tmp_path: Path, write: Write, labels: LabelMap) -> None:
    truth = write(tmp_path / "m.png", labels)
    with pytest.raises(DataError, match=r"size mismatch: the film is 41 x 30 .*m\.png 40 x 30"):
        read_labels(record(truth), Geometry(41, 30), LUNGS)


def test_values_outside_the_set_are_named(tmp_path: Path, write: Write, labels: LabelMap) -> None:
    labels[0, :2] = 3, 9
    with pytest.raises(DataError, match=r"values 3, 9, outside the set 0 to 2 \(background, left_lung, right_lung\)"):
        read_labels(record(write(tmp_path / "m.png", labels)), Geometry(40, 30), LUNGS)


def test_a_16_bit_label_map_is_read_without_wrapping_around(tmp_path: Path, write: Write, labels: LabelMap) -> None:
    wide = labels.astype(np.uint16)
    drawn, _ = read_labels(record(write(tmp_path / "m.png", wide)), Geometry(40, 30), LUNGS)
    np.testing.assert_array_equal(drawn, labels)
    wide[0, 0] = 257
    with pytest.raises(DataError, match="257"):
        read_labels(record(write(tmp_path / "m.png", wide)), Geometry(40, 30), LUNGS)


def test_a_coloured_or_missing_truth_is_named(tmp_path: Path, write: Write, labels: LabelMap) -> None:
    coloured = write(tmp_path / "m.png", np.dstack([labels, labels * 0, labels]))
    with pytest.raises(DataError, match=r"m\.png is unusable: .*in colour"):
        read_labels(record(coloured), Geometry(40, 30), LUNGS)
    with pytest.raises(DataError, match=r"none\.png cannot be read"):
        read_labels(record(tmp_path / "none.png"), Geometry(40, 30), LUNGS)


def test_a_truth_with_names_of_its_own_is_translated(tmp_path: Path, write: Write, labels: LabelMap) -> None:
    truth = record(write(tmp_path / "m.png", labels), regions=("background", "spine", "left_lung"))
    drawn, _ = read_labels(truth, Geometry(40, 30), ("background", "left_lung"))
    np.testing.assert_array_equal(drawn, labels == 2)


def test_truth_is_turned_as_the_picture_was(tmp_path: Path, write: Write, labels: LabelMap) -> None:
    truth = record(write(tmp_path / "m.png", labels))
    drawn, _ = read_labels(truth, Geometry(40, 30, flip_columns=True, flip_rows=True), LUNGS)
    np.testing.assert_array_equal(drawn, labels[::-1, ::-1])


def square(first: int, top: int, last: int, bottom: int) -> list[list[float]]:
    return [[first, top], [last, top], [last, bottom], [first, bottom]]


#: The two boxes of the fixture ``labels``, as drawn.
BOXES = {"left_lung": square(18, 10, 26, 28), "lung r": square(4, 8, 12, 30)}
LABELS = {"lung r": "right_lung"}


@pytest.fixture
def labelme(tmp_path: Path) -> Path:
    shapes = [{"label": label, "points": points, "shape_type": "polygon"} for label, points in BOXES.items()]
    path = tmp_path / "film.json"
    path.write_text(json.dumps({"shapes": shapes, "imagePath": "film.png", "imageHeight": 40, "imageWidth": 30}))
    return path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    categories = [{"id": number, "name": label} for number, label in enumerate(BOXES)]
    images = [{"id": 7, "file_name": "films/film.png", "height": 40, "width": 30}]
    annotations = [
        {"image_id": 7, "category_id": number, "segmentation": [np.ravel(points).tolist()]}
        for number, points in enumerate(BOXES.values())
    ]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.mark.parametrize("kind", ["labelme", "coco"])
def test_drawn_shapes_become_labels(kind: str, request: pytest.FixtureRequest, labels: LabelMap) -> None:
    drawn = replace(record(request.getfixturevalue(kind), kind), truth_labels=LABELS)
    found, _ = read_labels(drawn, Geometry(40, 30), LUNGS)
    np.testing.assert_array_equal(found, labels)
    with pytest.raises(DataError, match="size mismatch"):
        read_labels(drawn, Geometry(40, 31), LUNGS)
    with pytest.raises(DataError, match="unknown label 'lung r'"):
        read_labels(replace(drawn, truth_labels={}), Geometry(40, 30), LUNGS)


def test_a_film_that_coco_does_not_know_is_refused(coco: Path) -> None:
    other = replace(record(coco, "coco"), image=Path("other.png"))
    with pytest.raises(DataError, match=r"coco\.json has no picture other\.png"):
        read_labels(other, Geometry(40, 30), LUNGS)


def test_a_damaged_annotation_is_named(labelme: Path) -> None:
    labelme.write_text("{")
    with pytest.raises(DataError, match=r"film\.json"):
        read_labels(record(labelme, "labelme"), Geometry(40, 30), LUNGS)


def test_other_regions_are_derived_from_lungs(tmp_path: Path, write: Write) -> None:
    mask = np.zeros((120, 100), np.uint8)
    cv2.ellipse(mask, (28, 55), (16, 35), 0, 0, 360, 255, -1)
    cv2.ellipse(mask, (72, 55), (16, 35), 0, 0, 360, 255, -1)
    truth = record(write(tmp_path / "m.png", mask), "lungs")
    drawn, _ = read_labels(truth, Geometry(120, 100), EIGHT)
    assert set(np.unique(drawn)) == set(range(8))
    np.testing.assert_array_equal(np.isin(drawn, (1, 2)), mask > 0)
    fewer, _ = read_labels(truth, Geometry(120, 100), ("background", "spine"))
    np.testing.assert_array_equal(fewer == 1, drawn == EIGHT.index("spine"))


def test_regions_that_are_not_wanted_become_background() -> None:
    names = ("background", "left_lung", "right_lung", "spine")
    every = np.arange(4, dtype=np.uint8)
    np.testing.assert_array_equal(renamed(every, names, ("background", "spine", "left_lung")), [0, 2, 0, 1])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(5, 70),
    columns=st.integers(5, 70),
    height=st.integers(4, 50),
    width=st.integers(4, 50),
    seed=st.integers(0, 99),
)
def test_labels_lie_where_the_worker_lays_a_films_valid_pixels(
    rows: int, columns: int, height: int, width: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, (rows, columns), np.uint8)
    step = {"step": "resize", "height": height, "width": width}
    laid = to_network_grid(labels, [{"step": "min_max"}, step])
    assert laid.shape == (height, width)
    for value in range(1, 4):
        state = preprocess._State(np.zeros((rows, columns), np.float32), labels == value)
        preprocess._resize(state, height, width, "area", "stretch")
        assert state.valid is not None
        np.testing.assert_array_equal(laid == value, state.valid)


def test_a_mask_on_the_networks_grid_comes_back_to_an_oblong_film() -> None:
    labels = np.zeros((300, 110), np.uint8)
    labels[40:200, 5:35], labels[60:290, 70:104] = 1, 2
    geometry = Geometry(*labels.shape)
    back = to_film_grid(to_network_grid(labels, [{"step": "resize", "height": 64, "width": 64}]), geometry)
    for value in (1, 2):
        shared = ((back == value) & (labels == value)).sum()
        assert 2 * shared / ((back == value).sum() + (labels == value).sum()) > 0.95


def test_overlapping_regions_are_bits_and_the_last_one_is_seen() -> None:
    names = ("background", "left_lung", "right_lung", "left_clavicle")
    wanted = ("background", "lungs", "left_lung", "heart")
    labels = np.arange(4, dtype=np.uint8)[None]
    assert as_bits(labels, names, wanted).tolist() == [[0, 0b0110, 0b0010, 0]]
    # A label of a region that is wanted alone and joined counts for the later of the two.
    assert renamed(labels, names, wanted).tolist() == [[0, 2, 1, 0]]
    bits = np.array([[0, 0b0010, 0b0110, 0b1110, 0b1000]], np.uint8)
    assert flattened(bits, 4).tolist() == [[0, 1, 2, 3, 3]]
    assert flattened(bits, 3).tolist() == [[0, 1, 2, 2, 0]]


def test_a_mask_of_lungs_tells_both_as_one(tmp_path: Path, write: Write) -> None:
    mask = np.where(lungs((10, 50, 10, 30), (5, 40, 50, 70)), 255, 0).astype(np.uint8)
    truth = record(write(tmp_path / "film.png", mask), "lungs")
    drawn, note = read_labels(truth, Geometry(*mask.shape), ("background", "lungs"))
    np.testing.assert_array_equal(drawn > 0, mask > 0)
    bits, _ = read_labels(truth, Geometry(*mask.shape), ("background", "lungs", "left_lung"), overlapping=True)
    assert note == "" and set(np.unique(bits)) == {0, 0b010, 0b110}


def test_masks_are_turned_with_their_film(tmp_path: Path, write: Write) -> None:
    heart = np.zeros((20, 30), np.uint8)
    heart[4:8, 2:9] = 255
    film = FilmRecord(
        "film", Path("film.png"), None, "p", truth_kind="masks", masks={"heart": write(tmp_path / "h.png", heart)}
    )
    drawn, _ = read_labels(film, Geometry(40, 60, flip_columns=True), ("background", "heart"))
    assert drawn.shape == (40, 60)
    np.testing.assert_array_equal(drawn[::2, ::2], (heart > 0)[:, ::-1])
    # Three of the mask's pixels to two of the film's.
    smaller, _ = read_labels(film, Geometry(13, 20), ("background", "heart"))
    assert smaller.shape == (13, 20) and 0.7 < smaller.mean() / (heart > 0).mean() < 1.4


def test_hearts_and_clavicles_can_be_drawn_too(tmp_path: Path) -> None:
    shapes = {
        "left_lung": [[50, 10], [90, 10], [90, 90], [50, 90]],
        "left_clavicle": [[45, 20], [95, 20], [95, 26], [45, 26]],
        "heart": [[30, 50], [60, 50], [60, 80], [30, 80]],
    }
    drawn = {
        "imagePath": "film.png", "imageHeight": 100, "imageWidth": 100, "version": "5.0", "flags": {},
        "shapes": [
            {"label": name, "points": points, "shape_type": "polygon", "group_id": None, "flags": {}}
            for name, points in shapes.items()
        ],
    }  # fmt: skip
    path = tmp_path / "film.json"
    path.write_text(json.dumps(drawn))
    truth = record(path, "labelme", ("background", *shapes))
    labels, _ = read_labels(truth, Geometry(100, 100), ("background", "left_lung", "heart", "left_clavicle"))
    assert labels[23, 70] == 3 and labels[40, 70] == 1 and labels[60, 40] == 2 and labels[60, 55] == 1

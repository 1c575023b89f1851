"""LabelMe and COCO files: what is read, and what is refused with the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.annotation_files import read_annotations
from trainer.errors import DataError
from trainer.outlines import fill_polygon

SIZE = (24, 32)  # rows, columns


def labelme(shapes: list[dict[str, Any]], picture: str = "film.png", **changes: Any) -> dict[str, Any]:
    file = {
        "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": picture, "imageData": None,
        "imageHeight": SIZE[0], "imageWidth": SIZE[1],
    }  # fmt: skip
    return file | changes


def shape(label: str, points: list[list[float]], kind: str = "polygon") -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}


def coco(annotations: list[dict[str, Any]], categories: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "folder/film.png", "height": SIZE[0], "width": SIZE[1]},
            {"id": 8, "file_name": "other.png", "height": SIZE[0], "width": SIZE[1]},
        ],
        "categories": categories or [{"id": 1, "name": "left_lung", "supercategory": "chest"}],
        "annotations": [{"id": n, "image_id": 7, "category_id": 1, **one} for n, one in enumerate(annotations)],
    }


def counts_of(mask: np.ndarray) -> list[int]:
    """Run lengths column by column, the first of what is outside."""
    counts, last = [0], False
    for value in mask.T.ravel():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def packed(counts: list[int]) -> str:
    """As COCO's mask interface packs them: differences from the fourth count on, five bits a character."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            text += chr(48 + (bits | 0x20 if more else bits))
    return text


@pytest.fixture
def write(tmp_path: Path):
    def to(content: Any, name: str = "film.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to


class TestLabelMe:
    def test_shapes_of_every_kind(self, write) -> None:
        path = write(
            labelme(
                [
                    shape("a", [[1, 2], [9, 2], [9, 8.5]]),
                    shape("b", [[4, 10], [20, 3]], "rectangle"),
                    shape("c", [[10, 10], [13, 14]], "circle"),
                    shape("d", [[1, 1], [5, 5]], "line"),
                    shape("e", [[1, 1], [5, 5], [9, 1]], "linestrip"),
                    shape("f", [[3.5, 4.25]], "point"),
                ],
                picture="..\\films\\film.png",
            )
        )
        found = read_annotations(path)
        assert list(found) == ["film.png"]
        annotation = found["film.png"]
        assert (annotation.size, annotation.where) == (SIZE, "film.json")
        shapes = {one.label: one for one in annotation.shapes}
        assert {label for label, one in shapes.items() if one.closed} == {"a", "b", "c"}
        assert shapes["a"].points.tolist() == [[1, 2], [9, 2], [9, 8.5]]
        box = fill_polygon(SIZE, shapes["b"].points)
        assert np.argwhere(box).min(axis=0).tolist() == [3, 4] and np.count_nonzero(box) == 7 * 16
        assert np.hypot(*(shapes["c"].points - [10, 10]).T) == pytest.approx(5)
        assert shapes["f"].points.tolist() == [[3.5, 4.25]]

    def test_a_folder_of_files(self, write, tmp_path: Path) -> None:
        for name in ("one", "two"):
            write(labelme([shape("a", [[1, 1], [5, 1], [5, 5]])], picture=f"{name}.png"), f"{name}.json")
        assert list(read_annotations(tmp_path)) == ["one.png", "two.png"]

    def test_a_picture_in_two_files_is_refused(self, write, tmp_path: Path) -> None:
        for name in ("one", "two"):
            write(labelme([]), f"{name}.json")
        with pytest.raises(DataError, match=r"two\.json: the picture is annotated in one\.json already"):
            read_annotations(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "film.json"),
            ("[1, 2]", "film.json"),
            ('{"shapes": [', "film.json"),
            ("{}", "neither a LabelMe file"),
            (labelme([], imageHeight=None), "imageHeight"),
            (labelme([], imageWidth=0), "imageWidth"),
            (labelme([shape("a", [])]), r"shapes\.0\.points"),
            (labelme([shape("a", [[1, "x"]])]), r"shapes\.0\.points\.0\.1"),
            (labelme([shape("a", [[1, 2, 3]])]), r"shapes\.0\.points\.0"),
            (labelme([{"points": [[1, 2]]}]), r"shapes\.0\.label"),
            (labelme([shape("a", [[1, float("nan")], [2, 2], [3, 1]])]), "finite"),
            (labelme([shape("a", [[1, 1], [5000, 2], [3, 1]])]), "a has points far outside"),
            (labelme([shape("a", [[1, 1], [2, 2]], "linestrop")]), "did you mean 'linestrip'"),
            (labelme([shape("a", [[1, 1], [2, 2]], "mask")]), "'mask' shape"),
        ],
    )
    def test_damage_is_refused_with_file_and_place(self, write, content: Any, message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            read_annotations(write(content))
        assert "film.json" in str(caught.value)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no \*\.json"):
            read_annotations(tmp_path)
        with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
            read_annotations(tmp_path / "absent.json")


class TestCoco:
    def test_polygons_and_keypoints_by_picture(self, write) -> None:
        categories = [{"id": 1, "name": "left_lung"}, {"id": 2, "name": "marks", "keypoints": ["carina", "other"]}]
        found = read_annotations(
            write(
                coco(
                    [
                        {"segmentation": [[1, 1, 9, 1, 9, 9], [12, 2, 15, 2, 15, 5]]},
                        {"category_id": 2, "segmentation": [], "keypoints": [4.5, 6, 2, 0, 0, 0], "num_keypoints": 1},
                        {"image_id": 8, "segmentation": [[2, 2, 8, 2, 8, 7]], "iscrowd": 0, "bbox": [2, 2, 6, 5]},
                    ],
                    categories,
                )
            )
        )
        assert list(found) == ["film.png", "other.png"]
        film = found["film.png"]
        assert [one.label for one in film.shapes] == ["left_lung", "left_lung", "carina"]
        assert film.shapes[1].points.tolist() == [[12, 2], [15, 2], [15, 5]]
        assert film.shapes[2].points.tolist() == [[4.5, 6]]
        assert film.where == "film.json, folder/film.png"
        assert len(found["other.png"].shapes) == 1

    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 10**6), share=st.floats(0.02, 0.98), compressed=st.booleans())
    def test_run_lengths_come_back_as_the_mask(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int, share: float, compressed: bool
    ) -> None:
        rng = np.random.default_rng(seed)
        mask = rng.random(SIZE) < share
        mask[rng.integers(2, 20) :, rng.integers(2, 30) :] = True
        counts = counts_of(mask)
        runs = {"size": list(SIZE), "counts": packed(counts) if compressed else counts}
        path = tmp_path_factory.mktemp("coco") / "film.json"
        path.write_text(json.dumps(coco([{"segmentation": runs}])))
        (found,) = read_annotations(path)["film.png"].shapes
        assert np.array_equal(found.mask, mask)

    def test_a_masks_outline_encloses_its_pixels(self, write) -> None:
        rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
        mask = ((rows - 11) / 8.0) ** 2 + ((columns - 15) / 12.0) ** 2 <= 1
        mask[0, 0] = True
        runs = {"size": list(SIZE), "counts": counts_of(mask)}
        (found,) = read_annotations(write(coco([{"segmentation": runs}])))["film.png"].shapes
        mask[0, 0] = False  # a piece apart is no part of the outline
        assert np.array_equal(fill_polygon(SIZE, found.points), mask)

    @pytest.mark.parametrize(
        ("annotation", "message"),
        [
            ({"image_id": 99}, "image_id 99, which is not listed"),
            ({"category_id": 99}, "category_id 99, which is not listed"),
            ({"segmentation": [[1, 2, 3]]}, "not a list of x, y pairs"),
            ({"segmentation": [[1, 1, 900, 1, 3, 3]]}, "left_lung has points far outside"),
            ({"segmentation": {"size": [24, 32], "counts": [5, 5]}}, "do not fill the picture of 32 x 24"),
            ({"segmentation": {"size": [32, 24], "counts": [768]}}, "do not fill"),
            ({"segmentation": {"size": [24, 32], "counts": [-5, 773]}}, "do not fill"),
            ({"segmentation": {"size": [24, 32], "counts": "\x00zzz"}}, "do not fill"),
            ({"segmentation": {"size": [24, 32], "counts": [768]}}, "mask of left_lung is empty"),
            ({"keypoints": [1, 2, 2]}, "other keypoints"),
            ({"segmentation": "text"}, "segmentation"),
        ],
    )
    def test_damage_is_refused_with_file_and_place(self, write, annotation: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            read_annotations(write(coco([annotation])))
        assert "film.json" in str(caught.value)

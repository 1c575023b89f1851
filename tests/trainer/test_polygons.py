"""From annotation files to outlines and label maps: names, kinds, and both ways of drawing a chest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_chests import VALUE, simple

from schema.regions import Region
from trainer.annotation_files import DrawnShape, PictureAnnotation, read_annotations
from trainer.compose_regions import compose_regions
from trainer.errors import DataError
from trainer.outlines import carina_disc, fill_polygon
from trainer.polygons import drawn_outlines, label_map, read_outlines, region_map

GRID = (256, 256)


def chest(*, left_out: tuple[str, ...] = (), renamed: dict[str, str] | None = None) -> dict[str, Any]:
    """The straight chest as a LabelMe file, its spine as two edges."""
    drawn = simple()
    shapes = [
        ("left_lung", drawn.left_lung, "polygon"),
        ("right_lung", drawn.right_lung, "polygon"),
        ("spine", drawn.spine[0], "linestrip"),
        ("spine", drawn.spine[1], "linestrip"),
        ("thorax_bottom", drawn.thorax_bottom, "linestrip"),
        ("carina", np.asarray([drawn.carina]), "point"),
    ]
    names = renamed or {}
    return {
        "shapes": [
            {"label": names.get(name, name), "points": points.tolist(), "shape_type": kind}
            for name, points, kind in shapes
            if name not in left_out
        ],
        "imagePath": "film.png",
        "imageHeight": 256,
        "imageWidth": 256,
    }


def saved(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "film.json"
    path.write_text(json.dumps(content))
    return path


def annotation(*shapes: tuple[str, list[list[float]], bool], size: tuple[int, int] = (40, 60)) -> PictureAnnotation:
    drawn = tuple(DrawnShape(label, np.asarray(points, float), closed) for label, points, closed in shapes)
    return PictureAnnotation("film.png", "film.json", size, drawn)


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


class TestBoundaries:
    def test_a_labelme_chest_becomes_its_outlines_and_its_map(self, tmp_path: Path) -> None:
        outlines = read_outlines(saved(tmp_path, chest()))["film.png"]
        drawn = simple()
        assert np.array_equal(outlines.left_lung, drawn.left_lung)
        assert np.array_equal(outlines.right_lung, drawn.right_lung)
        assert np.array_equal(outlines.thorax_bottom, drawn.thorax_bottom)
        assert len(outlines.spine) == 2
        assert outlines.carina == drawn.carina
        assert outlines.name == "film.json"
        (found,) = read_annotations(tmp_path / "film.json").values()
        assert np.array_equal(label_map(found), compose_regions(GRID, drawn))

    def test_a_coco_chest_becomes_the_same_map(self, tmp_path: Path) -> None:
        drawn = simple()
        spine = np.concatenate([drawn.spine[0], drawn.spine[1][::-1]])
        names = ["left_lung", "right_lung", "spine", "thorax_bottom"]
        lines = [drawn.left_lung, drawn.right_lung, spine, drawn.thorax_bottom]
        content = {
            "images": [{"id": 1, "file_name": "film.png", "height": 256, "width": 256}],
            "categories": [{"id": n, "name": name} for n, name in enumerate(names)]
            + [{"id": 9, "name": "airway", "keypoints": ["carina"]}],
            "annotations": [
                {"image_id": 1, "category_id": n, "segmentation": [line.ravel().tolist()]}
                for n, line in enumerate(lines)
            ]
            + [{"image_id": 1, "category_id": 9, "keypoints": [*drawn.carina, 2]}],
        }
        (found,) = read_annotations(saved(tmp_path, content)).values()
        assert np.array_equal(label_map(found), compose_regions(GRID, drawn))

    def test_names_are_translated_or_left_out(self, tmp_path: Path) -> None:
        content = chest(renamed={"left_lung": "Lunge links", "thorax_bottom": "Thorax-Bottom"})
        content["shapes"].append({"label": "tube", "points": [[5, 5], [9, 9]], "shape_type": "line"})
        names = {"lunge links": "left_lung", "Tube": ""}
        outlines = read_outlines(saved(tmp_path, content), names)["film.png"]
        assert np.array_equal(outlines.left_lung, simple().left_lung)

    def test_unknown_names_are_refused_with_the_nearest(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"film\.json: unknown label 'left_lnug'; did you mean 'left_lung'"):
            read_outlines(saved(tmp_path, chest(renamed={"left_lung": "left_lnug"})))
        with pytest.raises(DataError, match="'Lunge' cannot stand for 'left_long'; did you mean 'left_lung'"):
            read_outlines(saved(tmp_path, chest()), {"Lunge": "left_long"})

    def test_all_missing_outlines_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"film\.json: spine, carina not drawn"):
            read_outlines(saved(tmp_path, chest(left_out=("spine", "carina"))))

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            ([{"label": "left_lung", "points": box(9, 9, 20, 20)}], "left_lung is drawn 2 times; keep 1"),
            ([{"label": "spine", "points": box(9, 9, 20, 20)}], "spine is drawn 3 times; keep 2"),
            ([{"label": "mediastinum", "points": box(9, 9, 20, 20)}], "mediastinum is a region, but thorax_bottom"),
        ],
    )
    def test_too_much_is_refused(self, tmp_path: Path, shapes: list[dict[str, Any]], message: str) -> None:
        content = chest()
        content["shapes"] += shapes
        with pytest.raises(DataError, match=rf"film\.json: {message}"):
            read_outlines(saved(tmp_path, content))

    def test_wrong_kinds_are_refused(self, tmp_path: Path) -> None:
        point = chest(left_out=("left_lung",))
        point["shapes"].append({"label": "left_lung", "points": [[9, 9]], "shape_type": "point"})
        with pytest.raises(DataError, match="left_lung is a point"):
            read_outlines(saved(tmp_path, point))
        twice = chest(left_out=("spine",))
        twice["shapes"] += [
            {"label": "spine", "points": box(x, 20, x + 5, 200), "shape_type": "polygon"} for x in (9, 90)
        ]
        with pytest.raises(DataError, match="spine is drawn 2 times; draw one polygon"):
            read_outlines(saved(tmp_path, twice))

    def test_a_circle_around_the_carina_stands_for_its_centre(self, tmp_path: Path) -> None:
        content = chest(left_out=("carina",))
        x, y = simple().carina
        content["shapes"].append({"label": "carina", "points": [[x, y], [x + 3, y]], "shape_type": "circle"})
        assert read_outlines(saved(tmp_path, content))["film.png"].carina == pytest.approx((x, y))

    def test_contradictions_name_the_file(self, tmp_path: Path) -> None:
        content = chest(left_out=("carina",))
        content["shapes"].append({"label": "carina", "points": [[60, 110]], "shape_type": "point"})
        (found,) = read_annotations(saved(tmp_path, content)).values()
        with pytest.raises(DataError, match=r"film\.json: the carina at"):
            label_map(found)


class TestRegions:
    def test_polygons_become_their_label_values(self) -> None:
        labels = label_map(
            annotation(
                ("right_lung", box(4, 4, 20, 30), True),
                ("Left Lung", box(40, 4, 56, 30), True),
                ("left_lung", box(42, 31, 44, 35), True),
            )
        )
        assert labels.dtype == np.uint8 and labels.shape == (40, 60)
        assert np.count_nonzero(labels == VALUE[Region.RIGHT_LUNG]) == 16 * 26
        assert np.count_nonzero(labels == VALUE[Region.LEFT_LUNG]) == 16 * 26 + 2 * 4
        assert np.count_nonzero(labels) == 2 * 16 * 26 + 8

    def test_what_lies_before_is_seen_whatever_the_order(self) -> None:
        shapes = [
            ("carina", [[30, 15]], False),
            ("spine", box(28, 2, 33, 38), True),
            ("mediastinum", box(20, 2, 40, 25), True),
            ("left_lung", box(36, 4, 56, 30), True),
            ("background", box(0, 0, 60, 6), True),
        ]
        labels = region_map(annotation(*shapes))
        assert np.array_equal(labels, region_map(annotation(*shapes[::-1])))
        assert not labels[:6].any()
        assert labels[20, 37] == VALUE[Region.LEFT_LUNG] and labels[20, 22] == VALUE[Region.MEDIASTINUM]
        assert labels[30, 30] == VALUE[Region.SPINE]
        assert np.array_equal(labels == VALUE[Region.CARINA], carina_disc((40, 60), (30, 15), 3.0))

    def test_masks_are_taken_as_they_are(self) -> None:
        mask = np.random.default_rng(1).random((40, 60)) < 0.3
        drawn = DrawnShape("spine", np.asarray(box(0, 0, 9, 9), float), True, mask)
        labels = region_map(PictureAnnotation("film.png", "film.json", (40, 60), (drawn,)))
        assert np.array_equal(labels == VALUE[Region.SPINE], mask)

    def test_every_region_has_its_value(self) -> None:
        for name, value in VALUE.items():
            labels = region_map(annotation((name, box(4, 4, 20, 30), True)))
            assert np.array_equal(labels, fill_polygon((40, 60), np.asarray(box(4, 4, 20, 30), float)) * value)

    @pytest.mark.parametrize(
        ("drawn", "message"),
        [
            (annotation(), "nothing is drawn"),
            (annotation(("spine", box(-9, -9, -2, -2), True)), "spine covers no pixel"),
            (annotation(("spine", box(4, 4, 9, 9), False)), "spine is drawn as a line or point"),
            (annotation(("left_lung", [[3, 3]], False)), "left_lung is drawn as a line or point"),
            (annotation(("left_subdiafragm", box(4, 4, 9, 9), True)), "did you mean 'left_subdiaphragm'"),
        ],
    )
    def test_what_cannot_be_painted_is_refused(self, drawn: PictureAnnotation, message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            label_map(drawn)
        assert str(caught.value).startswith("film.json: ")

    def test_boundaries_are_not_painted_nor_regions_composed(self) -> None:
        with pytest.raises(DataError, match="thorax_bottom is a boundary"):
            region_map(annotation(("thorax_bottom", [[1, 1], [9, 9]], False)))
        with pytest.raises(DataError, match="not drawn"):
            drawn_outlines(annotation(("left_lung", box(4, 4, 9, 9), True)))

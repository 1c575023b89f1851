"""The stress table on phantoms, read by a bundle as at night."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from handmade_runs import pixels_of
from phantom_bundle import PHANTOM_BUNDLE

from schema.bundle import read_manifest
from schema.regions import REGION_BY_NAME, Region
from trainer.data.records import Dataset, FilmRecord
from trainer.errors import DataError
from trainer.evaluation import Extras, evaluate_bundle
from trainer.evaluation.perturbations import PERTURBATIONS
from trainer.evaluation.stress import BOTH_LUNGS, Night, StressScores, measure_stress, night
from trainer.evaluation.whole_films import films_to_measure, scored_regions
from worker.phantom import make_phantom

FILMS = 3
ROWS = [row for row in PERTURBATIONS if row.name in ("shifted_right", "mirrored", "mirrored_untold", "monochrome1")]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Films with label maps of all eight regions; the last shows no chest."""
    root = tmp_path_factory.mktemp("films")
    records = []
    for index in range(FILMS):
        ill = index % 2 == 0
        empty = index == FILMS - 1
        phantom = make_phantom(40 + index, rows=150, columns=140, pneumonia=ill, randomise=0.1, negative=empty)
        for kind, grid in (("image", np.rint(phantom.image * 255).astype(np.uint8)), ("truth", phantom.labels)):
            cv2.imwrite(str(root / f"{kind}-{index}.png"), grid)
        records.append(
            FilmRecord(
                f"Doe-{index}",
                root / f"image-{index}.png",
                root / f"truth-{index}.png",
                f"patient-{index}",
                {} if empty else {"pneumonia": ill},
                truth_kind="label_map",
            )
        )
    return Dataset("films", tuple(records), root, {})


@pytest.fixture(scope="module")
def at_night() -> Iterator[Night]:
    with night(PHANTOM_BUNDLE) as opened:
        yield opened


@pytest.fixture(scope="module")
def scores(at_night: Night, phantoms: Dataset) -> StressScores:
    return measure_stress(at_night, phantoms, "all", ROWS, seed=1, progress=lambda *_: None)


def row_of(scores: StressScores, name: str) -> int:
    return [row.name for row in scores.rows].index(name)


class TestNumbers:
    def test_the_film_as_it_is_comes_first_and_is_read_well(self, scores: StressScores) -> None:
        assert [row.name for row in scores.rows] == ["as_it_is", *(row.name for row in ROWS)]
        assert (scores.dice[BOTH_LUNGS][0, :-1] > 0.93).all()
        assert scores.dice[BOTH_LUNGS][row_of(scores, "shifted_right"), 0] > 0.9

    def test_what_the_header_tells_changes_nothing(self, scores: StressScores) -> None:
        for name in ("mirrored", "monochrome1"):
            row = row_of(scores, name)
            np.testing.assert_allclose(scores.dice[BOTH_LUNGS][row], scores.dice[BOTH_LUNGS][0], atol=1e-3)
            np.testing.assert_allclose(scores.probabilities[row], scores.probabilities[0], atol=1e-3)
        # Turning it back is told as a flag of the file, not of the result.
        row = row_of(scores, "mirrored")
        assert (scores.flagged[row, :-1] == 1).all()
        np.testing.assert_array_equal(scores.flagged_result[row], scores.flagged_result[0])

    def test_a_mirrored_film_without_a_word_has_its_lungs_swapped(self, scores: StressScores) -> None:
        row = row_of(scores, "mirrored_untold")
        assert (scores.swapped[row, :-1] == 1).all()
        assert (scores.swapped[0, :-1] == 0).all()
        assert np.isnan(scores.dice["left_lung"][row]).all()
        assert (scores.dice[BOTH_LUNGS][row, :-1] > 0.9).all()

    def test_a_film_without_a_chest_enters_nothing(self, scores: StressScores) -> None:
        for table in (*scores.dice.values(), scores.flagged, scores.refused, scores.unread, scores.swapped):
            assert np.isnan(table[:, -1]).all()


class TestFilms:
    def test_only_drawn_regions_are_scored(self, phantoms: Dataset) -> None:
        manifest = read_manifest(PHANTOM_BUNDLE)
        assert len(scored_regions(manifest, phantoms)) == len(manifest.regions) - 1
        from_lungs = replace(phantoms, records=tuple(replace(r, truth_kind="lungs") for r in phantoms.records))
        assert set(scored_regions(manifest, from_lungs)) == {Region.LEFT_LUNG, Region.RIGHT_LUNG}
        made_by_rule = replace(manifest, regions=tuple(replace(r, origin="derived") for r in manifest.regions))
        assert scored_regions(made_by_rule, phantoms) == ()

    def test_a_label_map_keeps_its_values_where_some_regions_are_derived(
        self, at_night: Night, phantoms: Dataset
    ) -> None:
        manifest = at_night.bundle.manifest
        spine = REGION_BY_NAME[Region.SPINE].value
        regions = tuple(replace(r, origin="exact" if r.value == spine else "derived") for r in manifest.regions)
        bundle = replace(at_night.bundle, manifest=replace(manifest, regions=regions))
        only = measure_stress(replace(at_night, bundle=bundle), phantoms, "all", (), seed=1, progress=lambda *_: None)
        assert set(only.dice) == {Region.SPINE}
        assert (only.dice[Region.SPINE][0, :-1] > 0.8).all()

    def test_each_task_has_its_own_part(self, phantoms: Dataset) -> None:
        first, second, third = phantoms.records
        records = (
            replace(first, part="test", findings={}),
            replace(second, part="test", truth_kind="", truth=None),
            replace(third, part="train"),
        )
        films = films_to_measure(read_manifest(PHANTOM_BUNDLE), replace(phantoms, records=records), "test")
        assert [record.name for record in films.records] == ["Doe-0", "Doe-1"]
        assert films.with_masks.tolist() == [True, False]
        np.testing.assert_array_equal(films.targets[:, 0], [np.nan, 0.0])
        assert films.known == (0,)

    def test_a_few_are_drawn_the_same_way_each_time(self, phantoms: Dataset) -> None:
        films = films_to_measure(read_manifest(PHANTOM_BUNDLE), phantoms, "all")
        assert films.some(2, 1).records == films.some(2, 1).records
        assert len(films.some(2, 1).records) == len(films.some(2, 1).targets) == 2
        assert films.some(0, 1).records == films.some(99, 1).records == films.records

    def test_an_unreadable_film_is_named(self, at_night: Night, phantoms: Dataset) -> None:
        broken = phantoms.root / "broken.png" if phantoms.root else Path()
        broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
        records = (replace(phantoms.records[0], image=broken),)
        with pytest.raises(DataError, match="Doe-0 cannot be measured: the picture is damaged"):
            measure_stress(at_night, replace(phantoms, records=records), "all", (), seed=1, progress=lambda *_: None)


@pytest.fixture(scope="module")
def measured(phantoms: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path, list]:
    out = tmp_path_factory.mktemp("out")
    told: list[tuple[str, int, int]] = []
    summary = evaluate_bundle(
        PHANTOM_BUNDLE,
        replace(phantoms, records=phantoms.records[:1]),
        "all",
        out,
        extras=Extras(stress=True),
        replicates=20,
        progress=lambda *news: told.append(news),
    )
    return summary["stress"], out, told


class TestReport:
    def test_every_row_is_in_every_table(self, measured: tuple[dict, Path, list]) -> None:
        summary, out, told = measured
        names = {"as_it_is", *(row.name for row in PERTURBATIONS)}
        assert set(summary["rows"]) == names
        with (out / "stress/stress.csv").open(newline="", encoding="utf-8") as stream:
            assert {row["perturbation"] for row in csv.DictReader(stream)} == names
        with (out / "stress/films.csv").open(newline="", encoding="utf-8") as stream:
            assert len(list(csv.DictReader(stream))) == len(names)
        assert json.loads((out / "summary.json").read_text("utf-8"))["stress"]["rows"] == summary["rows"]
        assert ("films of the stress table", 1, 1) in told
        assert "stress/report.md" in (out / "report.md").read_text("utf-8")

    def test_says_the_worst_and_names_no_film(self, measured: tuple[dict, Path, list]) -> None:
        summary, out, _ = measured
        report = (out / "stress/report.md").read_text("utf-8")
        values = {row["title"]: row["dice.lungs"]["value"] for row in list(summary["rows"].values())[1:]}
        worst = summary["figures"]["worst_lung_dice"]
        assert worst["value"] == min(values.values())
        assert values[worst["row"]] == worst["value"]
        for row in PERTURBATIONS:
            assert f"| {row.title} |" in report
        assert "Doe" not in report
        assert "left and right are swapped on 100 % of these films" in report
        assert "Research use, not a medical device." in report

    def test_the_worst_films_are_drawn(self, measured: tuple[dict, Path, list]) -> None:
        _, out, _ = measured
        masks = pixels_of(out / "stress/worst-masks.png").astype(int)
        # OpenCV gives blue, green, red: the outlines of truth and result.
        assert ((masks[..., 1] > 150) & (masks[..., 2] < 90)).any()
        assert ((masks[..., 2] > 200) & (masks[..., 1] < 60)).any()
        assert min(pixels_of(out / "stress/worst-findings.png").shape[:2]) > 300

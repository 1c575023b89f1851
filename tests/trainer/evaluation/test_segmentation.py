"""Masks: every number of the report against plain numpy over hand-made predictions."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
from handmade_runs import chest_map, make_samples, map_picture, pixels_of

from schema.bundle import BundleRegion
from schema.regions import HOLSTE_REGIONS
from trainer.errors import DataError, RunError
from trainer.evaluation import evaluate_run
from trainer.evaluation.evaluate import say_nothing
from trainer.evaluation.paper_figures import HOLSTE_TABLE_2, holste_label
from trainer.evaluation.segmentation import SOURCES, failures_of, is_carina_astray, measure_films, row_means
from trainer.evaluation.subjects import Evaluation, predict, subject_of_runs
from trainer.recipe import load_recipe
from worker.bootstrap import draw
from worker.findings.flag_rules import Rule

NAMES = [region.name for region in HOLSTE_REGIONS]
YEAR = 365.25
RIGHT_LUNG, LEFT_LUNG, CARINA = 2, 1, 7
REGIONS = [BundleRegion(region.value, region.name, region.title, region.colour, "exact") for region in HOLSTE_REGIONS]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def plain_dice(truth: np.ndarray, found: np.ndarray, label: int) -> float:
    size = (truth == label).sum() + (found == label).sum()
    return float(2 * ((truth == label) & (found == label)).sum() / size) if size else float("nan")


def plain_surface(truth: np.ndarray, found: np.ndarray, label: int) -> float:
    """Mean of the two directed mean distances between outlines, pixel by pixel."""

    def outline(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask & ~inner)

    first, second = outline(truth == label), outline(found == label)
    apart = np.hypot(*(first[:, None] - second[None]).transpose(2, 0, 1))
    return float((apart.min(axis=1).mean() + apart.min(axis=0).mean()) / 2)


def faulty_maps() -> dict[str, np.ndarray]:
    """What is wrong → prediction (float: 6.4 is a mediastinum that is almost carina), the truth being the sound map."""
    maps = {name: chest_map().astype(float) for name in ("sound", "lost", "faint", "specks", "double")}
    carina = chest_map() == CARINA
    maps["lost"][carina] = 5  # spine
    maps["faint"][carina] = 6.4
    maps["specks"][60:62, 2:4] = LEFT_LUNG
    maps["specks"][60:62, 60:62] = RIGHT_LUNG
    maps["double"][12, 31] = CARINA
    return maps


@pytest.fixture(scope="module")
def faulty(make_run):
    maps = faulty_maps()
    pictures = [map_picture(labels) for labels in maps.values()]
    return make_run("segmentation", test=make_samples(pictures, labels=[chest_map()] * len(maps)))


@pytest.fixture(scope="module")
def measured(faulty, tmp_path_factory: pytest.TempPathFactory):
    """What the faulty run's evaluation returned, and where it wrote."""
    out = tmp_path_factory.mktemp("faulty")
    return evaluate_run(faulty, "test", out, replicates=20), out


@pytest.fixture(scope="module")
def perfect(make_run, tmp_path_factory: pytest.TempPathFactory):
    truths = [chest_map(shift) for shift in (-3, 0, 4)]
    films = make_samples([map_picture(truth) for truth in truths], labels=truths)
    out = tmp_path_factory.mktemp("perfect")
    return evaluate_run(make_run("segmentation", test=films), "test", out, replicates=50)


class TestPerfectPrediction:
    def test_is_right_everywhere(self, perfect) -> None:
        for name in ("accuracy", "mean_dice", "mean_jaccard", "mean_dice_cleaned", "lung_dice", "lungs_together"):
            assert perfect["figures"][name] == {"value": 1.0, "low": 1.0, "high": 1.0, "replicates": 50}
        assert perfect["figures"]["carina_distance"]["value"] == 0.0
        assert perfect["lungs_together_lowest_percent"] == 1.0
        assert all(region["surface"]["value"] == 0.0 for region in perfect["regions"].values())

    def test_fails_nowhere(self, perfect) -> None:
        assert perfect["failures"]["raw"] == perfect["failures"]["cleaned"]
        assert set(perfect["failures"]["raw"].values()) == {0}


class TestNumbers:
    def test_every_film_against_plain_numpy(self, make_run, tmp_path: Path) -> None:
        truths = [chest_map(shift) for shift in (0, 2, -2, 5)]
        truths[3][truths[3] == CARINA] = 5
        found = [chest_map(shift) for shift in (1, 2, -5, 5)]
        films = make_samples([map_picture(labels) for labels in found], labels=truths)
        summary = evaluate_run(make_run("segmentation", test=films), "test", tmp_path, replicates=200)
        rows = rows_of(tmp_path / "films.csv")
        assert [row["name"] for row in rows] == list(films.names)
        dice = np.array([[plain_dice(t, f, label) for label in range(8)] for t, f in zip(truths, found, strict=True)])
        for row, truth, labels, expected in zip(rows, truths, found, dice, strict=True):
            assert float(row["accuracy"]) == pytest.approx((truth == labels).mean())
            assert [float(row[f"dice_{name}"]) for name in NAMES] == pytest.approx(expected.tolist())
            assert float(row["mean_dice"]) == pytest.approx(expected.mean())
            for label, name in enumerate(NAMES[:7]):
                assert float(row[f"surface_{name}"]) == pytest.approx(plain_surface(truth, labels, label), abs=1e-5)
        # A carina that only the prediction has: Dice 0, no distance to measure.
        assert rows[3]["dice_carina"] == "0.0"
        assert rows[3]["surface_carina"] == rows[3]["carina_distance"] == ""
        assert float(rows[2]["carina_distance"]) == pytest.approx(3.0)
        self.check_means(summary, dice)

    def check_means(self, summary, dice: np.ndarray) -> None:
        jaccard = dice / (2 - dice)
        per_film = dice.mean(axis=1)
        replicates = [per_film[row].mean() for row in draw(4, 200)]
        low, high = np.percentile(replicates, (2.5, 97.5))
        assert summary["figures"]["mean_dice"] == pytest.approx(
            {"value": per_film.mean(), "low": low, "high": high, "replicates": 200}
        )
        assert summary["figures"]["lung_dice"]["value"] == pytest.approx(dice[:, 1:3].mean())
        assert summary["figures"]["mean_jaccard"]["value"] == pytest.approx(jaccard.mean())
        for label, name in enumerate(NAMES):
            assert summary["regions"][name]["dice"]["value"] == pytest.approx(dice[:, label].mean())
            assert summary["regions"][name]["jaccard"]["value"] == pytest.approx(jaccard[:, label].mean())

    def test_ages_part_at_five_years(self, make_run, tmp_path: Path) -> None:
        truths = [chest_map()] * 4
        pictures = [map_picture(chest_map(shift)) for shift in (0, 1, 2, 3)]
        ages = [10.0, 5 * YEAR - 1, 5 * YEAR, np.nan]
        films = make_samples(pictures, labels=truths, ages=ages)
        summary = evaluate_run(make_run("segmentation", test=films), "test", tmp_path, replicates=20)
        dice = [float(row["mean_dice"]) for row in rows_of(tmp_path / "films.csv")]
        assert summary["age_groups"] == {"age_0_4": 2, "age_5_plus": 1, "age_unknown": 1}
        figures = summary["figures"]
        assert figures["mean_dice_age_0_4"]["value"] == pytest.approx(np.mean(dice[:2]))
        assert figures["mean_dice_age_5_plus"]["value"] == pytest.approx(dice[2])
        assert figures["mean_dice_age_unknown"]["value"] == pytest.approx(dice[3])

    def test_a_film_without_a_chest_enters_no_mean(self, make_run, tmp_path: Path) -> None:
        truths = [chest_map(), np.zeros_like(chest_map())]
        films = make_samples([map_picture(chest_map()), map_picture(truths[1])], labels=truths)
        summary = evaluate_run(make_run("segmentation", test=films), "test", tmp_path, replicates=20)
        assert summary["figures"]["mean_dice"]["value"] == 1.0
        assert summary["no_chest"] == {"films": 1, "refused": 1}
        assert summary["failures"]["raw"]["missing_region"] == 0
        assert len(rows_of(tmp_path / "films.csv")) == 1


class TestFailures:
    def test_before_and_after_post_processing(self, measured) -> None:
        summary, out = measured
        # lost and faint have no carina; the ladder finds the faint one. Two lungs in specks stay in pieces, and specks
        # count only where clean-up leaves them.
        expected = {
            "raw": {"missing_carina": 2, "missing_region": 2, "disconnected_films": 0, "failed_films": 2},
            "cleaned": {"missing_carina": 1, "missing_region": 1, "disconnected_films": 1, "failed_films": 2},
        }
        for failures in expected.values():
            failures["carina_astray"] = failures["missing_carina"]
        assert summary["failures"] == expected
        assert summary["figures"]["missing_carina"] == {"value": 1, "of": 5}
        assert summary["figures"]["disconnected_films"] == {"value": 1, "of": 5}
        table = {row["failure"]: (row["raw"], row["cleaned"]) for row in rows_of(out / "failures.csv")}
        assert table["missing_carina"] == ("2", "1")
        regions = {row["region"]: row for row in rows_of(out / "regions.csv")}
        assert (regions["carina"]["broken_raw"], regions["carina"]["broken_cleaned"]) == ("1", "0")
        assert (regions["left_lung"]["broken_raw"], regions["left_lung"]["broken_cleaned"]) == ("0", "1")
        by_film = rows_of(out / "films.csv")
        assert [row["failed_films_cleaned"] for row in by_film] == ["False", "True", "False", "True", "False"]
        assert [int(row["repaired_pixels"]) > 0 for row in by_film] == [False, False, True, False, True]

    def test_post_processing_has_a_dice_of_its_own(self, measured) -> None:
        summary, out = measured
        carina = summary["regions"]["carina"]
        assert carina["dice"]["value"] == pytest.approx((1 + 0 + 0 + 1 + 8 / 9) / 5)
        assert carina["dice_cleaned"]["value"] == pytest.approx((1 + 0 + 1 + 1 + 1) / 5)
        # Outlines are those of the raw masks, the carina's place is that after post-processing.
        _, lost, faint, _, double = rows_of(out / "films.csv")
        expected = plain_surface(chest_map(), faulty_maps()["double"], CARINA)
        assert float(double["surface_carina"]) == pytest.approx(expected, abs=1e-5)
        assert expected > 0.5
        assert (lost["surface_carina"], faint["surface_carina"]) == ("", "")
        assert (lost["carina_distance"], faint["carina_distance"], double["carina_distance"]) == ("", "0.0", "0.0")

    def test_are_those_the_night_would_flag(self, faulty, tmp_path: Path) -> None:
        with subject_of_runs([faulty]) as subject:
            (member,) = subject.members
            films = {member.name: faulty.samples("test")}
            evaluation = Evaluation(subject, films, "test", tmp_path, 1, 1, say_nothing)
            scores = measure_films(evaluation)
            for place, film in enumerate(predict(evaluation, range(5), "films")):
                flagged = {flag.source for flag in film.flags if flag.rule == Rule.HOLSTE_FAILURE}
                assert flagged == {source for source in SOURCES if scores.failures[source]["failed_films"][place]}

    def test_from_hand_made_tables(self) -> None:
        regions = [type("R", (), {"name": name}) for name in ("background", "spine", "carina")]
        missing = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
        broken = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1]], bool)
        failures = failures_of(missing, broken, missing[:, 0], regions)
        assert failures["missing_carina"].tolist() == [False, True, False, False]
        assert failures["disconnected_films"].tolist() == [False, False, False, True]
        assert failures["failed_films"].tolist() == [False, True, True, True]
        assert "missing_carina" not in failures_of(missing[:, :2], broken[:, :2], missing[:, 0], regions[:2])


class TestDerivedRegions:
    CHANGES = {"bundle": {"name": "tiny", "derived": ["spine", "mediastinum"]}}

    def test_are_measured_but_not_scored(self, make_run, tmp_path: Path) -> None:
        truth, found = chest_map(), chest_map()
        found[found == 5] = 6  # no spine at all
        found[8:10, 8:26] = 0
        films = make_samples([map_picture(found)], labels=[truth])
        summary = evaluate_run(make_run("segmentation", self.CHANGES, test=films), "test", tmp_path, replicates=20)
        derived = {name for name, region in summary["regions"].items() if not region["scored"]}
        assert derived == {"background", "spine", "mediastinum"}
        scored = [label for label, name in enumerate(NAMES) if name not in derived]
        expected = np.mean([plain_dice(truth, found, label) for label in scored])
        assert summary["figures"]["mean_dice"]["value"] == pytest.approx(expected)
        drawn = np.isin(truth, scored)
        assert summary["figures"]["accuracy"]["value"] == pytest.approx((truth == found)[drawn].mean())
        report = (tmp_path / "report.md").read_text("utf-8")
        scored_table, derived_table = report.split("Agreement with a rule: not accuracy")
        assert "| Spine | derived | 0.000" in derived_table
        assert "| Spine | derived" not in scored_table
        assert "| Right lung | annotated" in scored_table
        truth = {row["region"]: (row["truth"], row["scored"]) for row in rows_of(tmp_path / "regions.csv")}
        assert truth["spine"] == ("derived", "False")
        assert truth["carina"] == ("annotated", "True")


class TestReport:
    def test_names_no_film(self, measured) -> None:
        _, out = measured
        assert "Doe^Jane" in (out / "films.csv").read_text("utf-8")
        for name in ("report.md", "summary.json", "regions.csv", "failures.csv"):
            text = (out / name).read_text("utf-8")
            assert "Doe" not in text
        assert "Research use, not a medical device." in (out / "report.md").read_text("utf-8")

    def test_pictures_show_something(self, measured) -> None:
        summary, out = measured
        assert {"dice.png", "comparison.png"} <= set(summary["files"])
        spread, comparison = pixels_of(out / "dice.png"), pixels_of(out / "comparison.png")
        for picture in (spread, comparison):
            assert min(picture.shape[:2]) > 400
            assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
        blue, green, red = (spread[..., channel].astype(int) for channel in range(3))
        assert ((red > 240) & (green < 40) & (blue < 40)).sum() > 20  # the dashed mean line
        assert ((red > 240) & (abs(green - 127) < 20) & (blue < 40)).sum() > 20  # the orange medians
        # Best, median and worst lie below each other, the film on the left.
        assert comparison.shape[0] > comparison.shape[1] * 0.8

    def test_summary_is_strict_json_of_what_is_returned(self, measured) -> None:
        summary, out = measured
        text = (out / "summary.json").read_text("utf-8")
        assert "NaN" not in text
        assert json.loads(text)["figures"] == summary["figures"]
        assert (summary["films"], summary["patients"], summary["task"]) == (5, 5, "segmentation")
        assert all((out / name).is_file() for name in summary["files"])

    def test_the_papers_figures_stand_beside_ours_and_say_so(self, make_run, tmp_path: Path) -> None:
        changes = {
            "paper": "holste",
            "loss": {"name": "cross_entropy", "pixel_weights": "w2"},
            "augmentation": {"saved": {"copies": 3}},
        }
        films = make_samples([map_picture(chest_map())] * 2, labels=[chest_map()] * 2, ages=[100, np.nan])
        evaluate_run(make_run("segmentation", changes, test=films), "test", tmp_path, replicates=20)
        report = (tmp_path / "report.md").read_text("utf-8")
        assert "| mean Dice (Table 2) | 1.000 (1.000-1.000), n = 2 | 0.832, n = 70 |" in report
        assert "| mean Dice, ages 0-4 (Table 4) | 1.000 (1.000-1.000), n = 1 | 0.830, n = 38 |" in report
        assert "| mean Dice, ages 5+ (Table 4) | – | 0.834, n = 32 |" in report
        assert "| films with missing carina (Table 3) | 0, n = 2 | 0, n = 70 |" in report
        assert "cannot be compared" in report

    def test_without_a_paper_there_are_no_foreign_figures(self, measured) -> None:
        _, out = measured
        assert "paper*" not in (out / "report.md").read_text("utf-8")

    def test_several_films_of_a_patient_are_told(self, make_run, tmp_path: Path) -> None:
        films = make_samples([map_picture(chest_map())] * 3, labels=[chest_map()] * 3, patients=["a", "a", "b"])
        summary = evaluate_run(make_run("segmentation", test=films), "test", tmp_path, replicates=20)
        assert summary["patients"] == 2
        assert "too narrow" in (tmp_path / "report.md").read_text("utf-8")

    def test_lies_in_the_run_folder_unless_told_otherwise(self, make_run, tmp_path: Path) -> None:
        films = make_samples([map_picture(chest_map())], labels=[chest_map()])
        run = make_run("segmentation", validation=films)
        copy(run.folder / "member.onnx", tmp_path)
        evaluate_run(replace(run, folder=tmp_path), "validation", replicates=20)
        assert (tmp_path / "evaluation" / "validation" / "report.md").is_file()


class TestRefusals:
    def test_an_empty_part(self, make_run, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="test part has no films"):
            evaluate_run(make_run("segmentation", test=make_samples([], labels=None)), "test", tmp_path)

    def test_films_without_masks(self, make_run, tmp_path: Path) -> None:
        films = make_samples([map_picture(chest_map())])
        with pytest.raises(RunError, match="no masks"):
            evaluate_run(make_run("segmentation", test=films), "test", tmp_path)

    def test_a_run_without_its_network(self, make_run, tmp_path: Path) -> None:
        films = make_samples([map_picture(chest_map())], labels=[chest_map()])
        with pytest.raises(RunError, match=r"no member\.onnx: finish the training"):
            evaluate_run(replace(make_run("segmentation", test=films), folder=tmp_path), "test", tmp_path / "out")


def test_means_of_rows_leave_out_what_is_not_there() -> None:
    values = np.array([[1.0, np.nan, 0.0], [np.nan] * 3])
    assert row_means(values)[0] == 0.5
    assert np.isnan(row_means(values)[1])


def test_a_recipe_finds_its_row_of_table_2() -> None:
    grid = load_recipe("holste-table-2").grid
    assert grid is not None
    assert {cell.label: cell.paper["mean_dice"] for cell in grid.cells} == HOLSTE_TABLE_2
    for cell in grid.cells:
        assert holste_label(load_recipe("holste", cell.set)) == cell.label


class TestCarinaBetweenTheLungs:
    @pytest.mark.parametrize(
        ("row", "column", "astray"), [(None, None, True), (20, 32, False), (20, 2, True), (0, 32, True), (63, 32, True)]
    )
    def test_by_place(self, row: int | None, column: int | None, astray: bool) -> None:
        labels = chest_map()
        labels[labels == CARINA] = 5
        if row is not None:
            labels[row, column] = CARINA
        assert is_carina_astray(labels, REGIONS) is astray

    @pytest.mark.parametrize("lung", [LEFT_LUNG, RIGHT_LUNG])
    def test_without_a_lung_it_is_between_none(self, lung: int) -> None:
        labels = chest_map()
        assert not is_carina_astray(labels, REGIONS)
        labels[labels == lung] = 0
        assert is_carina_astray(labels, REGIONS)

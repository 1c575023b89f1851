"""A grid on phantoms: trained, kept, averaged, and going on past a cell that fails."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("onnxscript")

import cv2
import numpy as np
import torch
from scipy.stats import wilcoxon

from trainer.data.description import load_dataset
from trainer.errors import RecipeError, RunError
from trainer.evaluation.grid_figures import shares
from trainer.evaluation.paper_figures import HOLSTE_TABLE_2, HOLSTE_TABLE_3, HOLSTE_TABLE_4, NOT_COMPARABLE
from trainer.grid import run_grid, slug_of
from trainer.grid_columns import column_of, over_trainings
from trainer.grid_result import GridResult, GridRow, as_printed
from trainer.grid_statistics import p_value, signed_rank
from trainer.networks.registry import build_network
from trainer.recipe import load_recipe, recipe_names
from trainer.training.progress import TrainingProgress

GRIDS = [name for name in recipe_names() if load_recipe(name).grid]

MASKS = """
description = "A loss"
task = "segmentation"
network = { name = "holste_unet", options = { base_width = 4 } }
preprocess = [{ step = "min_max" }, { step = "resize", height = 32, width = 32 }]
data = { regions = ["background", "left_lung", "right_lung", "carina"], phantoms = 24 }
loss = { name = "cross_entropy" }
training = { epochs = 1, steps_per_epoch = 2, batch_size = 2, monitor = "mean_dice" }

[grid]
title = "A table"
columns = ["mean_dice", "missing_carina", "mean_dice_age_5_plus"]
[[grid.cells]]
label = "cce*"
set = { "augmentation.saved.copies" = 1 }
paper = { mean_dice = "0.828" }
"""
#: A second cell, for what is refused before anything is trained.
SECOND = """
[[grid.cells]]
label = "cce + gdl"
set = { "loss.name" = "cross_entropy_dice" }
paper = { mean_dice = "0.821" }
"""

FINDINGS = """
description = "Two widths and their average"
task = "classification"
network = { name = "small_classifier", options = { base_width = 4 } }
preprocess = [{ step = "min_max" }, { step = "resize", height = 32, width = 32 }]
data = { findings = ["pneumonia", "no_finding"], phantoms = 60 }
loss = { name = "binary_cross_entropy" }
training = { epochs = 1, steps_per_epoch = 2, batch_size = 4, monitor = "mean_auroc" }

[grid]
title = "Another table"
columns = ["mean_auroc_validation", "mean_auroc"]
[[grid.ensembles]]
paper = { mean_auroc = "0.709 (0.690-0.729)" }
[[grid.cells]]
label = "Narrow"
set = { "network.options" = { base_width = 2 } }
[[grid.cells]]
label = "Wide"
set = { "network.options" = { base_width = 6 } }
"""


#: Everything a table of Novikov's asks for: folds, regions' own columns, averages of some cells, tests.
FOLDS = """
description = "Two losses in two folds"
task = "segmentation"
network = { name = "holste_unet", options = { base_width = 4 } }
preprocess = [{ step = "min_max" }, { step = "resize", height = 32, width = 32 }]
data = { regions = ["background", "left_lung", "right_lung", "spine"], phantoms = 24 }
loss = { name = "cross_entropy" }
optimiser = { rate = 0.01 }
training = { epochs = 2, steps_per_epoch = 40, batch_size = 4, monitor = "mean_dice", training_metrics = true }

[grid]
title = "A third table"
columns = [
    "left_lung.dice", "left_lung.jaccard", "foreground_jaccard", "disconnected_films", "parameters", "cpu_seconds",
]
folds = 2
[grid.significance]
regions = ["left_lung", "right_lung"]
paper = { "One / Two" = "0.23 / < 0.01" }
[[grid.cells]]
label = "One"
set = { "loss.name" = "cross_entropy" }
paper = { "left_lung.dice" = "97.2 ± 1.9 %" }
[[grid.cells]]
label = "Two"
set = { "loss.name" = "cross_entropy_dice", "training.steps_per_epoch" = 20 }
[[grid.ensembles]]
label = "One + Two"
cells = ["One", "Two"]
paper = { "left_lung.dice" = "0.98" }
"""


class Heard(TrainingProgress):
    """Remembers what was said; may act on it."""

    def __init__(self, react: Callable[[str], None] = lambda _text: None) -> None:
        self.said: list[str] = []
        self.react = react

    def say(self, text: str) -> None:
        self.said.append(text)
        self.react(text)


def recipe_file(folder: Path, text: str, name: str = "tiny") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path


def run(recipe: Path, out: Path, **options: Any) -> GridResult:
    return run_grid(recipe, load_dataset("phantoms"), out, replicates=20, **options)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are slowed by threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[Path, GridResult]:
    """A recipe of one segmentation cell, and its grid."""
    folder = tmp_path_factory.mktemp("masks")
    recipe = recipe_file(folder, MASKS)
    return recipe, run(recipe, folder / "grid", changes={"training.seed": 5})


@dataclass(frozen=True)
class Resumed:
    """A grid of two cells and their average that was stopped when the second cell began, and then went on."""

    recipe: Path
    table_before: str
    complete_before: bool
    narrow_before: int
    said: list[str]
    result: GridResult

    @property
    def narrow(self) -> Path:
        return self.result.folder / "narrow"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Resumed:
    folder = tmp_path_factory.mktemp("findings")
    recipe, out = recipe_file(folder, FINDINGS), folder / "grid"

    def stop(text: str) -> None:
        if text.startswith("Wide"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out, progress=Heard(stop))
    table, complete = (out / "grid.md").read_text(), json.loads((out / "grid.json").read_text())["complete"]
    before = (out / "narrow" / "network.pt").stat().st_mtime_ns
    heard = Heard()
    return Resumed(recipe, table, complete, before, heard.said, run(recipe, out, progress=heard))


class TestCells:
    def test_every_cell_is_a_run_with_its_own_settings(self, resumed):
        narrow, wide = (load_recipe(row.folder / "recipe.toml") for row in resumed.result.rows[:2])
        assert (narrow.name, wide.name) == ("tiny-narrow", "tiny-wide")
        assert (narrow.network.options, wide.network.options) == ({"base_width": 2}, {"base_width": 6})
        assert narrow.grid is None

    def test_changes_reach_every_cell(self, masks):
        _, result = masks
        (row,) = result.rows
        recipe = load_recipe(row.folder / "recipe.toml")
        assert recipe.training.seed == 5
        assert recipe.augmentation.saved.copies == 1

    def test_films_are_prepared_once_for_all(self, resumed):
        out = resumed.result.folder
        assert len(list((out / "cache").glob("*/pictures.npy"))) == 1
        assert not list(out.glob("*/cache"))


class TestGoingOn:
    def test_what_was_done_before_the_stop_is_written(self, resumed):
        assert "So far 1 of 3 rows." in resumed.table_before
        assert resumed.complete_before is False

    def test_finished_cells_are_not_trained_again(self, resumed):
        assert (resumed.narrow / "network.pt").stat().st_mtime_ns == resumed.narrow_before
        assert sum("is trained already" in text for text in resumed.said) == 1

    def test_the_rest_follows(self, resumed):
        out = resumed.result.folder
        assert [row.label for row in resumed.result.rows] == ["Narrow", "Wide", "Ensemble"]
        assert not resumed.result.failed
        assert json.loads((out / "grid.json").read_text())["complete"] is True
        assert "So far" not in (out / "grid.md").read_text()

    def test_a_second_call_trains_nothing_and_gives_the_same(self, masks):
        recipe, first = masks
        weights = first.rows[0].folder / "network.pt"
        before = weights.stat().st_mtime_ns
        second = run(recipe, first.folder, changes={"training.seed": 5})
        assert weights.stat().st_mtime_ns == before
        assert second.rows[0].figures == first.rows[0].figures


class TestFiles:
    def test_figures_are_those_of_the_cells_evaluations(self, masks):
        _, result = masks
        (row,) = json.loads((result.folder / "grid.json").read_text())["rows"]
        summary = json.loads((result.folder / row["folder"] / "evaluation" / "test" / "summary.json").read_text())
        assert row["figures"] == {name: summary["figures"][name] for name in result.grid.columns}
        assert row["facts"]["films"] == summary["films"] > 0
        assert row["facts"]["epochs"] == 1

    def test_the_table_shows_ours_beside_the_papers(self, masks):
        _, result = masks
        text = (result.folder / "grid.md").read_text()
        dice, missing = (result.rows[0].figures[name] for name in ("mean_dice", "missing_carina"))
        (line,) = (line for line in text.splitlines() if line.startswith("| cce"))
        assert line.startswith(
            rf"| cce\* | {dice['value']:.3f} ({dice['low']:.3f}-{dice['high']:.3f}) | 0.828 | "
            f"{missing['value']} of {missing['of']} | "
        )
        assert text.count(NOT_COMPARABLE) == result.table().count(NOT_COMPARABLE) == 1
        assert "`training.seed` = `5`" in text
        assert "Research use, not a medical device." in text
        assert "phantom-0" not in text

    def test_the_sheet_has_every_number(self, masks):
        _, result = masks
        with (result.folder / "grid.csv").open(newline="") as stream:
            (sheet,) = csv.DictReader(stream)
        (row,) = result.rows
        assert sheet["cell"] == "cce*"
        assert sheet["mean_dice_paper"] == "0.828"
        for name, keys in (("mean_dice", ("value", "low", "high")), ("missing_carina", ("value", "of"))):
            for key in keys:
                assert float(sheet[name if key == "value" else f"{name}_{key}"]) == row.figures[name][key]

    def test_the_picture_shows_something(self, masks):
        _, result = masks
        picture = cv2.imread(str(result.folder / "grid.png"))
        assert picture is not None
        blue, grey = ((picture == colour).all(axis=2).sum() for colour in ([0x88, 0x22, 0x33], [0x99, 0x99, 0x99]))
        assert blue > 50
        assert grey > 10


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> GridResult:
    """Two cells in two folds each, and their average."""
    folder = tmp_path_factory.mktemp("folds")
    result = run(recipe_file(folder, FOLDS), folder / "grid")
    assert not result.failed, [row.failure for row in result.failed]
    assert result.rows[0].figures["left_lung.dice"]["value"] > 0.2  # it learned something that can be compared
    return result


def test_the_ensemble_averages_the_cells_probabilities(resumed):
    def scores(folder: Path) -> list[float]:
        with (folder / "films.csv").open(newline="") as stream:
            return [float(row["pneumonia"]) for row in csv.DictReader(stream)]

    out = resumed.result.folder
    narrow, wide = (scores(out / name / "evaluation" / "test") for name in ("narrow", "wide"))
    assert narrow != wide
    mean = [(a + b) / 2 for a, b in zip(narrow, wide, strict=True)]
    assert scores(out / "ensemble") == pytest.approx(mean, abs=1e-6)
    assert "0.709 (0.690-0.729)" in resumed.result.table().splitlines()[4]


def test_regions_that_are_not_scored_are_named(tmp_path):
    summary = {
        "films": 9,
        "figures": {"mean_dice": {"value": 0.5, "low": 0.4, "high": 0.6}},
        "regions": {"left_lung": {"scored": True}, "spine": {"scored": False}, "carina": {"scored": False}},
    }
    columns = ("mean_dice", "missing_carina", "mean_dice_age_5_plus")
    recipe = load_recipe(recipe_file(tmp_path, MASKS))
    assert recipe.grid is not None
    (cell,) = recipe.grid.cells
    row = GridRow(cell.label, tmp_path / "cce", cell.paper, figures=summary["figures"])
    row = replace(row, facts={"films": 9, "not_scored": ["spine", "carina"]})
    result = GridResult(recipe, recipe.grid, columns, tmp_path, "phantoms", {}, (row,))
    result.write()
    assert result.table().splitlines()[2] == r"| cce\* | 0.500 (0.400-0.600) | 0.828 | – | – |"
    text = (tmp_path / "grid.md").read_text()
    assert "9 films of the test part" in text
    assert "derived by a rule: spine, carina." in text


class TestSeveralTrainings:
    def test_a_cell_is_trained_once_for_each_fold(self, folds):
        one = folds.rows[0]
        tested = []
        for fold in (1, 2):
            recipe = load_recipe(one.folder / f"fold-{fold}" / "recipe.toml")
            assert (recipe.data.split.folds, recipe.data.split.fold) == (2, fold - 1)
            with (one.evaluations[fold - 1] / "films.csv").open(newline="") as stream:
                tested.append({row["name"] for row in csv.DictReader(stream)})
        assert not tested[0] & tested[1]
        assert one.facts["films"] >= len(tested[0]) + len(tested[1])

    def test_figures_are_the_mean_over_films_and_the_deviation_between_folds(self, folds):
        one = folds.rows[0]
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in one.evaluations]
        values = [summary["regions"]["left_lung"]["dice"]["value"] for summary in summaries]
        films = [summary["films"] - summary["no_chest"]["films"] for summary in summaries]
        figure = one.figures["left_lung.dice"]
        assert figure["value"] == pytest.approx(np.average(values, weights=films))
        assert figure["sd"] == pytest.approx(np.std(values, ddof=1))
        assert one.figures["disconnected_films"]["value"] == sum(
            s["figures"]["disconnected_films"]["value"] for s in summaries
        )
        assert f"{figure['value']:.3f} ± {figure['sd']:.3f} | 97.2 ± 1.9 % |" in folds.table()

    def test_networks_are_weighed_beside(self, folds):
        recipe = load_recipe(folds.rows[0].folder / "fold-1" / "recipe.toml")
        weights = sum(weight.numel() for weight in build_network(recipe).parameters())
        assert folds.rows[0].figures["parameters"]["value"] == weights
        assert folds.rows[0].figures["cpu_seconds"]["value"] > 0

    def test_an_ensemble_averages_the_cells_of_the_same_fold(self, folds):
        both = folds.rows[2]
        assert (both.label, both.failure) == ("One + Two", "")
        assert [folder.name for folder in both.evaluations] == ["fold-1", "fold-2"]
        for fold, folder in enumerate(both.evaluations):
            summary = json.loads((folder / "summary.json").read_text())
            assert len(summary["networks"]) == 2
            films = json.loads((folds.rows[0].evaluations[fold] / "summary.json").read_text())["films_digest"]
            assert summary["films_digest"] == films

    def test_cells_are_compared_film_by_film(self, folds):
        (pair,) = folds.comparisons
        ours = {label: folds.jaccards[label] for label in ("One", "Two")}
        for region in ("left_lung", "right_lung"):
            values = [[films[film][region] for film in sorted(ours["One"])] for films in ours.values()]
            known = ~np.isnan(values).any(axis=0)
            first, second = np.array(values)[:, known]
            assert pair.films[region] == known.sum() > 10
            differ = bool((first != second).any())
            assert pair.p[region] == pytest.approx(wilcoxon(first, second).pvalue if differ else 1.0)
        text = (folds.folder / "grid.md").read_text()
        assert "| One, Two |" in text
        assert "| 0.23 / < 0.01 |" in text

    def test_figures_show_every_row(self, folds):
        text = (folds.folder / "grid.md").read_text()
        for name in ("jaccard-bins.png", "curves.png", "training-curves.png"):
            assert f"]({name})" in text
            assert cv2.imread(str(folds.folder / name)).std() > 10

    def test_columns_of_regions_that_were_taken_away_are_left_out(self, tmp_path, monkeypatch):
        monkeypatch.setattr("trainer.grid.train", lambda *_a, **_k: (_ for _ in ()).throw(MemoryError("enough")))
        result = run(recipe_file(tmp_path, FOLDS), tmp_path / "grid", changes={"data.regions": ["background", "spine"]})
        assert result.columns == ("foreground_jaccard", "disconnected_films", "parameters", "cpu_seconds")

    def test_repeats_have_splits_and_weights_of_their_own(self, tmp_path, monkeypatch):
        seen = []

        def remember(recipe: Any, **_options: Any) -> None:
            seen.append((recipe.name, recipe.data.split.seed, recipe.training.seed))
            raise MemoryError("enough")

        monkeypatch.setattr("trainer.grid.train", remember)
        run(recipe_file(tmp_path, FOLDS.replace("folds = 2", "repeats = 3")), tmp_path / "grid")
        assert seen == [("tiny-one", 1, 1), ("tiny-two", 1, 1)]  # the rest of a cell that failed is not tried
        with pytest.raises(RecipeError, match=r"training\.seed is what the cells of tiny differ in \(run-1 sets it\)"):
            run(
                recipe_file(tmp_path, FOLDS.replace("folds = 2", "repeats = 3")),
                tmp_path / "again",
                changes={"training.seed": 4},
            )


def test_what_networks_cost_needs_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.grid.train", lambda *_a, **_k: pytest.fail("trained"))
    head, _, cells = FOLDS.partition("columns = ")
    text = head + 'columns = ["parameters", "gpu_seconds", "mebibytes"]\n' + cells.partition("]\n")[2]
    text = text.replace('"left_lung.dice" = "97.2 ± 1.9 %"', '"parameters" = "3 140 771"')
    first, _, _ = text.replace("folds = 2\n", "").rpartition("[[grid.cells]]")
    text = first.partition("[grid.significance]")[0] + "[[grid.cells]]" + first.partition("[[grid.cells]]")[2]
    result = run(recipe_file(tmp_path, text), tmp_path / "grid")
    assert not result.failed
    (row,) = result.rows
    assert row.figures["mebibytes"]["value"] > 4 * row.figures["parameters"]["value"] / 2**20  # statistics beside
    assert "| One | " in result.table()
    assert "networks only" in (tmp_path / "grid" / "grid.md").read_text()


class TestFailures:
    def test_a_failing_cell_is_said_and_the_others_go_on(self, resumed, tmp_path):
        out = tmp_path / "grid"
        shutil.copytree(resumed.narrow, out / "narrow")  # need not be trained again for this
        head, narrow, wide = FINDINGS.split("[[grid.cells]]")
        lost = wide.replace('"network.options" = { base_width = 6 }', '"network.checkpoint" = "no/such.pt"')
        heard = Heard()

        result = run(recipe_file(tmp_path, "[[grid.cells]]".join([head, lost, narrow])), out, progress=heard)

        first, second, ensemble = result.rows
        assert "no/such.pt" in first.failure
        assert heard.said[0].startswith("Wide will fail.")  # before hours are spent on the others
        assert not second.failure
        assert second.figures == resumed.result.rows[0].figures
        assert ensemble.failure == "The average needs every cell, and Wide failed."
        assert result.failed == (first, ensemble)
        assert f"Wide failed: {first.failure}" in (out / "grid.md").read_text()
        assert [line.count("failed |") for line in result.table().splitlines()[2:5]] == [2, 0, 2]

    def test_an_unforeseen_error_is_a_failed_cell_too(self, tmp_path, monkeypatch):
        def burst(*_arguments: Any, **_options: Any) -> None:
            raise MemoryError("no room")

        monkeypatch.setattr("trainer.grid.train", burst)
        result = run(recipe_file(tmp_path, MASKS + SECOND), tmp_path / "grid")
        assert [row.failure for row in result.rows] == ["MemoryError: no room"] * 2
        assert "nothing measured" in (tmp_path / "grid" / "grid.md").read_text()


class TestRefused:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"mean_dice", "missing', '"mean_dise", "missing', "did you mean 'mean_dice'"),
            ('"mean_dice", "missing', '"mean_f1", "missing', "no column 'mean_f1'"),
            ('mean_dice = "0.821"', 'mean_dise = "0.821"', "did you mean 'mean_dice'"),
            ('label = "cce + gdl"', 'label = "cce *"', "'cce \\*' needs a label of its own"),
            ('"cross_entropy_dice"', "3", "loss.name"),
        ],
    )
    def test_a_wrong_grid_trains_nothing(self, tmp_path, old, new, message):
        assert old in MASKS + SECOND
        with pytest.raises(RecipeError, match=message):
            run(recipe_file(tmp_path, (MASKS + SECOND).replace(old, new)), tmp_path / "grid")
        assert not (tmp_path / "grid").exists()

    def test_a_recipe_without_a_grid(self, tmp_path):
        with pytest.raises(RecipeError, match=r"has no grid.*holste-table-2"):
            run_grid("holste", load_dataset("phantoms"), tmp_path / "grid")

    @pytest.mark.parametrize("key", ["loss.name", "loss"])
    def test_what_the_cells_compare_cannot_be_set_for_all(self, tmp_path, key):
        value = "cross_entropy" if key == "loss.name" else {"name": "cross_entropy"}
        with pytest.raises(RecipeError, match=f"{key} is what the cells of tiny differ in"):
            run(recipe_file(tmp_path, MASKS + SECOND), tmp_path / "grid", changes={key: value})

    def test_the_folder_of_a_run(self, masks, tmp_path):
        recipe, result = masks
        with pytest.raises(RunError, match="folder of a single run"):
            run(recipe, result.rows[0].folder)


class TestPackagedGrids:
    def test_every_paper_is_there(self):
        assert GRIDS == [
            "families",
            "holste-table-2",
            "holste-tables-3-4",
            "maga-table-1",
            "novikov-table-2",
            "novikov-table-4",
            "novikov-table-5",
            "novikov-table-8",
            "novikov-tables-1-3-7",
            "pediatric-table-2",
            "pediatric-table-6",
            "pediatric-tables-3-5",
            "wang-regions",
        ]

    @pytest.mark.parametrize("name", GRIDS)
    def test_every_cell_is_a_recipe_that_differs_from_the_others(self, name):
        grid = load_recipe(name).grid
        assert grid is not None
        cells = [load_recipe(name, {**cell.set, "grid": None}) for cell in grid.cells]
        assert len({cell.model_dump_json() for cell in cells}) == len(cells)
        assert len({slug_of(cell.label) for cell in grid.cells}) == len(cells)

    @pytest.mark.parametrize("name", GRIDS)
    def test_every_column_is_known_and_printed(self, name):
        recipe = load_recipe(name)
        assert recipe.grid is not None
        for name_of_column in recipe.grid.columns:
            column = column_of(name_of_column)
            assert column is not None
            assert column.task in (recipe.task, "cost")
        for row in (*recipe.grid.cells, *recipe.grid.ensembles):
            # Wang's figures are lost, and a comparison of ours has none.
            assert set(row.paper) == set(recipe.grid.columns) or recipe.paper in ("wang", "")
            assert all(as_printed(figure) for figure in row.paper.values())

    @pytest.mark.parametrize("name", GRIDS)
    def test_every_pair_that_the_paper_tested_is_one_of_the_grid(self, name):
        grid = load_recipe(name).grid
        assert grid is not None
        if grid.significance:
            pairs = [f"{first.label} / {second.label}" for first, second in combinations(grid.cells, 2)]
            assert list(grid.significance.paper) == pairs

    def test_holstes_figures_are_those_of_the_reports(self):
        for name, tables in (("holste-table-2", None), ("holste-tables-3-4", (HOLSTE_TABLE_3, HOLSTE_TABLE_4))):
            grid = load_recipe(name).grid
            assert grid is not None
            for cell in grid.cells:
                printed = (
                    {"mean_dice": HOLSTE_TABLE_2[cell.label]}
                    if tables is None
                    else {**tables[0][cell.label], **tables[1][cell.label]}
                )
                assert cell.paper == printed


class TestNumbers:
    def test_counts_are_added_and_means_weighted_by_films(self):
        counted = over_trainings([{"value": 1, "of": 5}, {"value": 2, "of": 7}], [5, 7])
        assert counted == {"value": 3, "of": 12}
        mean = over_trainings([{"value": 0.5}, {"value": None}, {"value": 0.8}], [10, 4, 20])
        assert mean == {"value": pytest.approx(0.7), "sd": pytest.approx(0.3 / 2**0.5), "trainings": 2}
        assert over_trainings([{"value": 7}, {"value": 7}], [1, 2]) == {"value": 7}
        assert over_trainings([{"value": None}], [3]) == {"value": None, "sd": None, "trainings": 0}

    @pytest.mark.parametrize(
        ("text", "value", "low", "high"),
        [
            ("0.709 (0.690-0.729)", 0.709, 0.690, 0.729),
            ("87.2 ± 1.9 %", 0.872, 0.853, 0.891),
            ("3 140 771", 3140771.0, None, None),
            ("0.95", 0.95, None, None),
        ],
    )
    def test_printed_figures_are_read(self, text, value, low, high):
        found = as_printed(text)
        assert found is not None
        assert found[0] == pytest.approx(value)
        for number, expected in zip(found[1:], (low, high), strict=True):
            assert np.isnan(number) if expected is None else number == pytest.approx(expected)

    def test_what_is_no_figure_is_none(self):
        assert as_printed("") is None
        assert as_printed("lost") is None

    def test_columns_of_regions(self):
        column = column_of("left_lung.surface")
        assert column is not None
        assert column.title == "Left lung, surface distance, pixels"
        assert column_of("left_lung.colour") is None
        assert column_of("kidney.dice") is None

    def test_films_that_do_not_differ_and_no_films(self):
        assert signed_rank([0.0, 0.0, 0.0]) == 1.0
        assert np.isnan(signed_rank([]))
        assert signed_rank([0.1 * step for step in range(1, 11)]) == pytest.approx(2 / 2**10)
        assert [p_value(p) for p in (0.0099, 0.234, float("nan"))] == ["< 0.01", "0.23", "–"]

    def test_shares_of_films_by_range(self):
        assert shares([0.2, 0.95, 1.0, 0.9, float("nan")]).tolist() == [25, 0, 0, 0, 0, 75]
        assert np.isnan(shares([float("nan")])).all()


@pytest.mark.parametrize(
    ("label", "slug"),
    [("w2-cce*", "w2-cce-augmented"), ("cce + gdl*", "cce-gdl-augmented"), ("DenseNet-121", "densenet-121")],
)
def test_slugs(label, slug):
    assert slug_of(label) == slug

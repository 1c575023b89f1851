"""A search on phantoms: cut off, gone on with, kept in SQL; and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("onnxscript")

import cv2
import torch
from click.testing import CliRunner
from sqlalchemy import create_engine, text

import worker.cli
from trainer.data.description import load_dataset
from trainer.errors import DataError, RecipeError, RunError
from trainer.recipe import load_recipe
from trainer.search import folder_of, run_search
from trainer.search_result import SearchResult
from trainer.training.progress import TrainingProgress
from trainer.training.run_folder import locked

TINY = """
description = "Two lungs"
task = "segmentation"
network = { name = "holste_unet", options = { base_width = 2 } }
preprocess = [{ step = "min_max" }, { step = "resize", height = 32, width = 32 }]
data = { regions = ["background", "left_lung", "right_lung"], phantoms = 24 }
loss = { name = "cross_entropy" }
training = { epochs = 1, steps_per_epoch = 2, batch_size = 4, monitor = "mean_dice" }

[search]
trials = 2
folds = 2
objective = "foreground_jaccard"
choices = { "optimiser.name" = ["sgd", "adam"] }
ranges = { "optimiser.rate" = { low = 1e-4, high = 0.1, log = true } }
"""


class Heard(TrainingProgress):
    """Remembers what was said; may act on it."""

    def __init__(self, react: Callable[[list[str]], None] = lambda _said: None) -> None:
        self.said: list[str] = []
        self.react = react

    def say(self, text: str) -> None:
        self.said.append(text)
        self.react(self.said)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, "utf-8")
    return path


def search(recipe: Path, out: Path, **options: Any) -> SearchResult:
    return run_search(recipe, load_dataset("phantoms"), out, replicates=20, **options)


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Trainings that take no time: each is worth what ``value`` makes of its recipe; ``seen`` are the recipes."""
    kept: dict[str, Any] = {"seen": [], "value": lambda recipe: recipe.optimiser.rate}

    def train(recipe: Any, *_arguments: Any, **_options: Any) -> Any:
        kept["seen"].append(recipe)
        return SimpleNamespace(recipe=recipe)

    def evaluate(run: Any, *_arguments: Any, **_options: Any) -> dict[str, Any]:
        return {"figures": {"foreground_jaccard": {"value": kept["value"](run.recipe)}}}

    monkeypatch.setattr("trainer.search.train", train)
    monkeypatch.setattr("trainer.search.evaluate_run", evaluate)
    return kept


def test_a_search_that_was_cut_off_goes_on(tiny, tmp_path):
    out = tmp_path / "search"

    def stop_in_the_second_fold(said: list[str]) -> None:
        if sum(text.startswith("Training") for text in said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tiny, out, trials=1, progress=Heard(stop_in_the_second_fold))
    (first_fold,) = out.glob("trial-*/fold-1/network.pt")
    before = first_fold.stat().st_mtime_ns

    heard = Heard()
    result = search(tiny, out, trials=1, progress=heard)

    assert first_fold.stat().st_mtime_ns == before
    assert any("is trained already" in text for text in heard.said)
    assert len(result.trials) == 1
    assert result.trials[0].folder == first_fold.parents[1].name
    for trial in result.trials:
        folds = []
        for fold in (1, 2):
            place = out / trial.folder / f"fold-{fold}"
            recipe = load_recipe(place / "recipe.toml")
            assert recipe.optimiser.name == trial.settings["optimiser.name"]
            assert recipe.optimiser.rate == trial.settings["optimiser.rate"]
            assert recipe.data.split.fold == fold - 1
            summary = json.loads((place / "evaluation" / "test" / "summary.json").read_text())
            folds.append(summary["figures"]["foreground_jaccard"]["value"])
        assert list(trial.folds) == pytest.approx(folds)
        assert trial.value == pytest.approx(sum(folds) / 2)
    with create_engine(f"sqlite:///{out / 'study.db'}").connect() as connection:
        values = connection.execute(text("select value from trial_values order by trial_id")).scalars().all()
    assert values == [trial.value for trial in result.trials]
    assert cv2.imread(str(out / "search.png")).std() > 5


class TestTrials:
    @pytest.fixture(autouse=True)
    def _undrawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The picture takes longer than such a trial."""
        monkeypatch.setattr(SearchResult, "_draw", lambda _result, path: path.name)

    def test_the_best_becomes_a_recipe(self, tiny, tmp_path, worth):
        result = search(tiny, tmp_path / "search", trials=4)
        best = load_recipe(tmp_path / "search" / "best.toml")
        rates = [trial.settings["optimiser.rate"] for trial in result.trials]
        assert best.optimiser.rate == max(rates) == result.best.value
        assert best.search is None
        assert not best.data.split.folds
        assert len(worth["seen"]) == 8

    def test_later_trials_lie_where_earlier_were_good(self, tiny, tmp_path, worth):
        worth["value"] = lambda recipe: 1.0 - abs(recipe.optimiser.rate - 0.01) - (recipe.optimiser.name == "sgd")
        result = search(tiny, tmp_path / "search", trials=24)
        names = [trial.settings["optimiser.name"] for trial in result.trials]
        assert names[12:].count("adam") > 8

    def test_going_on_chooses_what_an_unbroken_search_chooses(self, tiny, tmp_path, worth):
        whole = search(tiny, tmp_path / "whole", trials=12)
        search(tiny, tmp_path / "parts", trials=11)
        parts = search(tiny, tmp_path / "parts", trials=12)
        assert [trial.settings for trial in parts.trials] == [trial.settings for trial in whole.trials]

    def test_finished_trials_are_not_tried_again(self, tiny, tmp_path, worth):
        search(tiny, tmp_path / "search")
        done = len(worth["seen"])
        again = search(tiny, tmp_path / "search")
        assert len(worth["seen"]) == done == 4
        assert len(again.trials) == 2

    def test_a_failing_trial_is_said_and_the_others_go_on(self, tiny, tmp_path, worth):
        def value(recipe: Any) -> float:
            if len(worth["seen"]) == 1:
                raise DataError("the disk is full")
            return 0.5

        worth["value"] = value
        result = search(tiny, tmp_path / "search", trials=3)
        assert [trial.failure for trial in result.trials] == ["the disk is full", "", ""]
        text_of_it = (tmp_path / "search" / "search.md").read_text()
        assert "Trial 1 failed: the disk is full" in text_of_it
        with (tmp_path / "search" / "search.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["foreground_jaccard"] for row in rows] == ["", "0.5", "0.5"]

    def test_the_study_may_be_kept_elsewhere(self, tiny, tmp_path, worth):
        url = f"sqlite:///{tmp_path / 'shared.db'}"
        search(tiny, tmp_path / "search", study=url)
        assert not (tmp_path / "search" / "study.db").exists()
        with create_engine(url).connect() as connection:
            assert connection.execute(text("select study_name from studies")).scalar() == "tiny in search"


class TestRefused:
    def test_a_recipe_without_a_search(self, tmp_path):
        with pytest.raises(RecipeError, match=r"Recipe holste has no search.*wang-search"):
            run_search("holste", load_dataset("phantoms"), tmp_path / "search")

    @pytest.mark.parametrize("changes", [{"optimiser.rate": 0.1}, {"optimiser": {"name": "sgd"}}])
    def test_what_is_searched_cannot_be_set(self, tiny, tmp_path, changes):
        with pytest.raises(RecipeError, match="is what tiny searches"):
            search(tiny, tmp_path / "search", changes=changes)

    def test_choices_that_make_no_recipe(self, tiny, tmp_path):
        tiny.write_text(TINY.replace('"sgd"', '"sdg"'), "utf-8")
        with pytest.raises(RecipeError, match=r"optimiser\.name"):
            search(tiny, tmp_path / "search")
        assert not (tmp_path / "search").exists()

    def test_another_search_in_the_same_folder(self, tiny, tmp_path, worth):
        search(tiny, tmp_path / "search")
        tiny.write_text(TINY.replace("high = 0.1", "high = 0.2"), "utf-8")
        with pytest.raises(RunError, match="was begun with another search"):
            search(tiny, tmp_path / "search")

    def test_a_folder_where_another_process_searches(self, tiny, tmp_path, worth):
        (tmp_path / "search").mkdir()
        with locked(tmp_path / "search" / "search.lock"), pytest.raises(RunError, match="Another process trains in"):
            search(tiny, tmp_path / "search")
        assert search(tiny, tmp_path / "search", trials=1).best

    def test_a_database_that_cannot_be_used(self, tiny, tmp_path):
        with pytest.raises(RunError, match="cannot be kept in its database"):
            search(tiny, tmp_path / "search", study=f"sqlite:///{tmp_path / 'no' / 'such' / 'study.db'}")

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("low = 1e-4", "low = 0.5", "low must be below high"),
            ('"optimiser.rate" = {', '"optimiser.name" = {', "both in choices and in ranges"),
            ("folds = 2", "folds = 1", "folds"),
        ],
    )
    def test_a_search_that_makes_no_sense(self, tiny, old, new, said):
        assert old in TINY
        tiny.write_text(TINY.replace(old, new), "utf-8")
        with pytest.raises(RecipeError, match=said):
            load_recipe(tiny)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _joined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        points = [EntryPoint("search", "trainer.commands.search:search", worker.cli.GROUP)]
        monkeypatch.setattr(worker.cli, "entry_points", lambda group: points)

    def test_tells_the_best_and_what_comes_next(self, tiny, tmp_path, worth):
        out = tmp_path / "search"
        arguments = ["search", str(tiny), "--data", "phantoms", "--out", str(out), "--trials", "3"]
        result = CliRunner().invoke(worker.cli.main, arguments)
        assert result.exit_code == 0, result.output
        assert f"carina train {out / 'best.toml'}" in result.output
        assert "`optimiser.rate`" in result.output
        shown = CliRunner().invoke(worker.cli.main, [*arguments, "--json"])
        assert len(json.loads(shown.stdout)["trials"]) == 3

    def test_no_success_is_exit_code_1(self, tiny, tmp_path, worth):
        worth["value"] = lambda _recipe: None
        arguments = ["search", str(tiny), "--data", "phantoms", "--out", str(tmp_path / "search")]
        assert CliRunner().invoke(worker.cli.main, arguments).exit_code == 1


def test_a_folder_follows_from_the_settings_alone():
    assert folder_of({"a": 1, "b": 0.1}) == folder_of({"b": 0.1, "a": 1})
    assert folder_of({"a": 1}) != folder_of({"a": 2})

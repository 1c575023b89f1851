"""``carina train`` from the command line."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import worker.cli
from worker.cli import main

pytest.importorskip("lightning")

from trainer.errors import RunError
from trainer.recipe import recipe_names

POINTS = [EntryPoint("train", "trainer.commands.train:train", worker.cli.GROUP)]


@pytest.fixture(autouse=True)
def _joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installed package says it."""
    monkeypatch.setattr(worker.cli, "entry_points", lambda group: POINTS)


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", *arguments])


class TestGroup:
    def test_other_packages_commands_come_last_in_help(self) -> None:
        assert main.list_commands(None)[-1] == "train"  # type: ignore[arg-type]
        shown = CliRunner().invoke(main, ["--help"]).output
        assert shown.index("info") < shown.index("\n  train ")

    def test_no_one_can_take_a_command_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = [EntryPoint("run", "trainer.commands.train:train", worker.cli.GROUP)]
        monkeypatch.setattr(worker.cli, "entry_points", lambda group: taken)
        command = main.get_command(None, "run")  # type: ignore[arg-type]
        assert command is not None
        assert command.callback is not None
        assert command.callback.__module__ == "worker.cli.work"

    def test_without_the_libraries_one_sentence_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
        result = _run("--list")
        assert result.exit_code == 1
        assert "training needs the train extra: pip install 'carina-cxr[train]' (missing: torch)" in result.output
        assert len(result.output.strip().splitlines()) == 1


class TestUsage:
    def test_lists_the_recipes(self) -> None:
        result = _run("--list", "--json")
        assert [row["name"] for row in json.loads(result.output)] == recipe_names()
        assert "carina-lungs" in _run("--list").output

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "RECIPE, --data and --out are needed"),
            (("holste", "--data", "phantoms"), "--out are needed"),
            (("holste", "--data", "phantoms", "--out", "x", "--set", "training.epochs"), "not key=value"),
            (("holste", "--data", "phantoms", "--out", "x", "--grid"), "has no grid"),
            (("holste-table-2", "--data", "phantoms", "--out", "x"), "add --grid"),
            (("wang-search", "--data", "phantoms", "--out", "x"), "give it to carina search"),
        ],
    )
    def test_wrong_usage_is_exit_code_2(self, arguments: tuple[str, ...], said: str) -> None:
        result = _run(*arguments)
        assert result.exit_code == 2
        assert said in " ".join(result.output.split())

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("holsty", "--data", "phantoms", "--out", "x"), "did you mean 'holste'"),
            (("holste", "--data", "/nowhere", "--out", "x"), "no data directory /nowhere"),
            (("holste", "--data", "phantoms", "--out", "x", "--set", "training.epoch=2"), "did you mean 'epochs'"),
        ],
    )
    def test_what_a_person_can_mend_is_one_sentence(self, arguments: tuple[str, ...], said: str) -> None:
        result = _run(*arguments)
        assert result.exit_code == 1
        assert said in result.output
        assert "Traceback" not in result.output


class TestTraining:
    """With :func:`trainer.training.train.train` itself replaced: it is tested beside."""

    @pytest.fixture
    def trained(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        calls: list[Any] = []

        def train(recipe: Any, dataset: Any, out: Path, **options: Any) -> Any:
            calls.append((recipe, dataset, out, options))
            raise _TOLD[0]

        monkeypatch.setattr("trainer.training.train.train", train)
        return calls

    def test_settings_arrive(self, trained: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(__name__ + "._TOLD", [RunError("far enough")])
        result = _run(
            "carina-regions", "--data", "phantoms", "--out", str(tmp_path), "--fresh",
            "--set", "training.epochs=2", "--set", "training.monitor=loss", "--set", "loss.options={}",
            "--set", 'preprocess=[{step="min_max"},{step="resize",height=64,width=32}]',
        )  # fmt: skip
        assert result.exit_code == 1
        assert "far enough" in result.output
        ((recipe, dataset, out, options),) = trained
        assert (recipe.training.epochs, recipe.training.monitor, recipe.loss.options) == (2, "loss", {})
        assert recipe.input_shape == (1, 64, 32)
        assert (dataset.name, out, options["resume"]) == ("phantoms", tmp_path, False)

    def test_ctrl_c_says_how_to_go_on(
        self, trained: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(__name__ + "._TOLD", [KeyboardInterrupt()])
        result = _run("carina-regions", "--data", "phantoms", "--out", str(tmp_path), "--set", "training.epochs=2")
        assert result.exit_code == 1
        assert f"carina train carina-regions --data phantoms --out {tmp_path} --set training.epochs=2" in result.output

    def test_members_get_the_same_films_and_length(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from trainer.commands.train import _for_members

        changes = {"data.phantoms": 12, "training.epochs": 1, "network.options.base_width": 2, "loss.guidance": 1.0}
        assert _for_members(changes) == {"data.phantoms": 12, "training.epochs": 1}


_TOLD: list[BaseException] = []

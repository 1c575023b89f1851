"""``carina evaluate`` from a person's side."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

import cv2
from handmade_runs import FINDINGS, chest_map, column_picture, make_samples, map_picture
from phantom_bundle import PHANTOM_BUNDLE

from trainer.commands.evaluate import evaluate
from trainer.errors import RunError
from worker.phantom import make_phantom


def call(*words: object) -> Result:
    return CliRunner().invoke(evaluate, [str(word) for word in words])


@pytest.fixture
def runs(make_run, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Path → run, as loading finds them."""
    masks = make_samples([map_picture(chest_map())] * 3, labels=[chest_map()] * 3)
    rng = np.random.default_rng(1)
    targets = rng.random((24, len(FINDINGS))) < 0.5
    scored = make_samples([column_picture(row) for row in rng.random(targets.shape)], targets=targets)
    found = {
        "masks": make_run("segmentation", test=masks, validation=masks),
        "findings": make_run("classification", test=scored, validation=scored),
    }

    def load(path: Path) -> object:
        if path.name not in found:
            raise RunError(f"{path} is no run folder: it has no recipe.toml.")
        return found[path.name]

    monkeypatch.setattr("trainer.training.run_folder.load_run", load)
    return found


class TestRuns:
    def test_masks_are_told_and_the_report_named(self, runs, tmp_path: Path) -> None:
        result = call("masks", "--out", tmp_path)
        assert result.exit_code == 0, result.output
        assert "mean dice                1.000 (1.000-1.000)" in result.stdout
        assert "missing carina           0 of 3" in result.stdout
        assert f"Report: {tmp_path / 'report.md'}" in result.stdout
        assert "not a medical device" in result.stdout
        assert (tmp_path / "comparison.png").is_file()

    def test_json_is_all_there_is_on_standard_output(self, runs, tmp_path: Path) -> None:
        result = call("findings", "--out", tmp_path, "--json", "--part", "validation")
        summary = json.loads(result.stdout)
        assert summary["part"] == "validation"
        assert summary == json.loads((tmp_path / "summary.json").read_text("utf-8"))

    def test_several_runs_are_an_ensemble(self, runs, tmp_path: Path) -> None:
        result = call("findings", "findings", "--out", tmp_path, "--json")
        assert json.loads(result.stdout)["networks"] == ["densenet121-1", "densenet121-2"]

    def test_other_films_than_the_runs_own(self, runs, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / "labels").mkdir()
        for index in range(3):
            cv2.imwrite(str(tmp_path / f"images/{index}.png"), chest_map(index) * 36)
            cv2.imwrite(str(tmp_path / f"labels/{index}.png"), chest_map(index))
        result = call("masks", "--data", tmp_path, "--part", "all", "--out", tmp_path / "out", "--json")
        assert result.exit_code == 0, result.output
        summary = json.loads(result.stdout)
        assert (summary["films"], summary["figures"]["mean_dice"]["value"]) == (3, 1.0)

    def test_what_is_no_run_is_said(self, runs, tmp_path: Path) -> None:
        result = call(tmp_path / "nothing", "--out", tmp_path)
        assert isinstance(result.exception, RunError)
        assert "no recipe.toml" in str(result.exception)


class TestBundles:
    def test_both_tasks_on_films_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / "labels").mkdir()
        for index in range(3):
            phantom = make_phantom(7 + index, rows=128, columns=128, randomise=0.3)
            cv2.imwrite(str(tmp_path / f"images/{index}.png"), np.rint(phantom.image * 255).astype(np.uint8))
            cv2.imwrite(str(tmp_path / f"labels/{index}.png"), phantom.labels)
        out = tmp_path / "out"
        result = call(PHANTOM_BUNDLE, "--data", tmp_path, "--part", "all", "--out", out, "--stress", "--films", "1")
        assert result.exit_code == 0, result.output
        assert "stress: 1 films, all" in result.stdout
        assert "worst lung dice" in result.stdout
        assert "masks: 3 films, all" in result.stdout
        assert (out / "masks" / "report.md").is_file()
        assert not (out / "findings").exists()


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "Missing argument"),
            ((PHANTOM_BUNDLE,), "give --data and --out"),
            ((PHANTOM_BUNDLE, PHANTOM_BUNDLE, "--data", "phantoms", "--out", "x"), "give one bundle"),
            (("a", "b"), "give --out"),
            (("a", "--part", "all"), "--part all are for --data"),
            (("a", "--layout", "x"), "--layout and"),
            (("a", "--nonsense"), "No such option"),
            (("a", "--stress"), "package the run first"),
            (("a", "b", "--inside", "--out", "x"), "one run at a time"),
            ((PHANTOM_BUNDLE, "--data", "x", "--out", "x", "--inside"), "one run at a time"),
            ((PHANTOM_BUNDLE, "--data", "x", "--out", "x", "--films", "3"), "--films is for"),
            ((PHANTOM_BUNDLE, "--data", "x", "--out", "x", "--stress", "--film-size", "h,w"), "--film-size for"),
            ((PHANTOM_BUNDLE, "--data", "x", "--out", "x", "--shortcuts", "--film-size", "h"), "takes two columns"),
        ],
    )
    def test_wrong_use_ends_with_2(self, words: tuple, said: str) -> None:
        result = call(*words)
        assert result.exit_code == 2
        assert said in result.output

    def test_help_has_an_example(self) -> None:
        result = call("--help")
        assert result.exit_code == 0
        assert "Example: carina evaluate" in result.output
        assert isinstance(evaluate, click.Command)

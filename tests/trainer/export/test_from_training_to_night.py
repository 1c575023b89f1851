"""A training of seconds, its bundle, and a night that reads with it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("lightning")

from trainer.commands.package import package
from trainer.data.description import load_dataset
from trainer.recipe import load_recipe
from trainer.training.train import train
from worker.cli import COMMANDS, main
from worker.phantom import make_phantom, phantom_dataset

SMALL = {
    "preprocess": [{"step": "min_max"}, {"step": "resize", "height": 64, "width": 64}],
    "network.options": {"base_width": 2, "half_size": True},
    "data.phantoms": 20,
    "data.split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    "training.epochs": 1,
    "training.steps_per_epoch": 2,
    "training.batch_size": 4,
    "training.precision": "32",
}


def carina(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_night_reads_with_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(COMMANDS, "bundle", "worker.cli.bundle:bundle")
    train(load_recipe("carina-phantom", SMALL), load_dataset("phantoms"), tmp_path / "run")
    packaged = CliRunner().invoke(
        package, [str(tmp_path / "run"), "--out", str(tmp_path / "bundle"), "--name", "ours", "--version", "2"]
    )
    assert packaged.exit_code == 0, packaged.output
    assert "ours:2 is in service" in carina("bundle", "add", tmp_path / "bundle", "--promote")
    (tmp_path / "films").mkdir()
    for seed in range(3):
        phantom_dataset(make_phantom(seed, rows=200, columns=180)).save_as(tmp_path / "films" / f"{seed}.dcm")
    carina("run", tmp_path / "films", "--json")
    carina("export", "--format", "csv", "--out", tmp_path / "table")
    with (tmp_path / "table" / "films.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3
    assert {row["bundle"] for row in rows} == {"ours:2"}
    assert {row["state"] for row in rows} <= {"done", "ineligible"}  # what so short a training makes of a chest is open

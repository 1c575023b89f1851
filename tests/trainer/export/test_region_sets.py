"""From films in the layout of JSRT and SCR to a night: regions that overlap, learned channel by channel."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from scr_films import write_scr
from sqlalchemy import select

pytest.importorskip("lightning")

from schema import tables
from schema.bundle import read_manifest
from schema.database import Database
from schema.regions import REGION_BY_NAME, REGION_SETS
from trainer.data.description import load_dataset
from trainer.evaluation import stress
from trainer.evaluation.films import read_films, recipe_of
from trainer.export.package import package
from trainer.recipe import Recipe, check_recipe
from trainer.training.train import train
from worker.cli import COMMANDS, main
from worker.phantom import make_phantom, phantom_dataset
from worker.settings import load_settings

SIDE = 64


def recipe() -> Recipe:
    table = {
        "name": "tiny-novikov",
        "description": "For tests",
        "task": "segmentation",
        "network": {"name": "inverted_net", "activation": "sigmoid", "options": {"base_width": 16}},
        "preprocess": [{"step": "min_max"}, {"step": "resize", "height": SIDE, "width": SIDE}],
        "data": {
            "regions": "novikov",
            "overlapping": True,
            "split": {"train": 0.7, "validation": 0.3, "test": 0.0, "folds": 2, "own_folds": True},
        },
        "augmentation": {"live": {"flip": 0.5, "shift": 0.05}},
        "loss": {"name": "class_frequency_dice"},
        "training": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2, "monitor": "lung_dice"},
        "bundle": {"name": "novikov"},
    }
    return check_recipe(table, "of a test")


def carina(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_from_scr_to_a_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(COMMANDS, "bundle", "worker.cli.bundle:bundle")
    names = REGION_SETS["novikov"]
    dataset = load_dataset(write_scr(tmp_path / "jsrt", side=SIDE))
    run = train(recipe(), dataset, tmp_path / "run")
    assert run.recipe.data.regions == names and run.samples("test").overlapping
    assert {name[-1] for name in run.samples("test").names} <= {*"13579"}

    manifest = package([run], tmp_path / "bundle", replicates=20)
    assert tuple(region.name for region in manifest.regions) == names
    measured = manifest.metrics["segmentation"]["regions"]
    assert {name for name, facts in measured.items() if facts["dice"]["value"] is not None} <= {*names[1:]}
    # The bundle knows by which regions and bits its films are to be read again.
    (member,) = read_manifest(tmp_path / "bundle").members
    again = read_films(dataset, recipe_of(manifest, member), "test", tmp_path / "again", lambda *_: None)
    assert again.overlapping
    np.testing.assert_array_equal(again.labels, run.samples("test").labels)

    with stress.night(tmp_path / "bundle") as at_night:
        scores = stress.measure_stress(at_night, dataset, "test", rows=(), limit=1, seed=1, progress=lambda *_: None)
    assert set(scores.dice) == {*names[1:]} and not np.isnan(scores.dice["lungs"]).any()

    carina("bundle", "add", tmp_path / "bundle", "--promote")
    (tmp_path / "films").mkdir()
    phantom_dataset(make_phantom(1, rows=128, columns=128)).save_as(tmp_path / "films" / "1.dcm")
    counts = json.loads(carina("run", tmp_path / "films", "--report", tmp_path / "report", "--json"))
    assert counts["done"] == 1
    database = Database(load_settings().url)
    with database.read() as connection:
        assert {*connection.scalars(select(tables.region_measurement.c.region))} == {*names}
    database.close()
    assert "Clavicles" in next((tmp_path / "report").glob("*.html")).read_text("utf-8")
    carina("export", "--format", "png", "--out", tmp_path / "png")
    (picture,) = (tmp_path / "png").glob("*.png")
    values = {REGION_BY_NAME[name].value for name in names}
    assert set(np.unique(cv2.imread(str(picture), cv2.IMREAD_UNCHANGED))) <= values

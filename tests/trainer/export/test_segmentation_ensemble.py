"""Two networks of Novikov et al. as one bundle: packaged, measured, and read with for a night (Table III)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scr_films import write_scr
from sqlalchemy import select

pytest.importorskip("lightning")

from schema import tables
from schema.bundle import BundleError, Manifest, read_manifest
from schema.database import Database
from schema.regions import REGION_SETS
from trainer.data.description import load_dataset
from trainer.evaluation import Extras, evaluate_bundle
from trainer.evaluation.evaluate import say_nothing
from trainer.export.contents import bundle_table
from trainer.export.package import package
from trainer.recipe import load_recipe
from trainer.training.train import train
from worker.cli import COMMANDS, main
from worker.film.prepare import prepare
from worker.film.source import FilmSource
from worker.findings.postprocess import PostprocessSettings, postprocess
from worker.inference.engines.backends import open_backend
from worker.inference.engines.base import Precision
from worker.phantom import make_phantom, phantom_dataset
from worker.results.masks import decode_mask
from worker.settings import load_settings

SIDE, FILMS = 64, 3
SHRUNK: dict[str, Any] = {
    "preprocess": [
        {"step": "resize", "height": SIDE, "width": SIDE},
        {"step": "standardise", "from": "training"},
    ],
    # What two steps teach is near 0.5 everywhere.
    "network.threshold": 0.5,
    "optimiser.rate": 0.01,
    "training.epochs": 1,
    "training.steps_per_epoch": 2,
    "training.batch_size": 4,
}
#: Recipe → what else is changed: the second prepares its films in another way.
PAIR: dict[str, dict[str, Any]] = {
    "novikov-inverted-net": {"network.options": {"base_width": 16}},
    "novikov-all-dropout": {
        "network.options": {"base_width": 4},
        "preprocess": [{"step": "min_max"}, {"step": "resize", "height": SIDE, "width": SIDE}],
    },
}
NAMES = ("inverted_net", "all_dropout")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the layout of JSRT and SCR."""
    return write_scr(tmp_path_factory.mktemp("scr") / "jsrt", side=SIDE)


@pytest.fixture(scope="module")
def bundle(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both networks, trained for two steps, in one bundle."""
    folder = tmp_path_factory.mktemp("pair")
    dataset = load_dataset(films)
    runs = [train(load_recipe(name, SHRUNK | changes), dataset, folder / name) for name, changes in PAIR.items()]
    package(runs, folder / "bundle", bundle=bundle_table(runs, "pair", "1"), replicates=20)
    return folder / "bundle"


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def carina(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def alone(bundle: Path, manifest: Manifest, film: Path) -> tuple[str, list[np.ndarray]]:
    """A film's hash, and what each network says of it when it is run by itself."""
    prepared = prepare(FilmSource(film), {member.name: member.preprocess for member in manifest.members})
    said = []
    for member in manifest.members:
        engine = open_backend("openvino").compile(bundle / member.onnx, Precision.FP32, threads=1)
        said.append(engine.run(prepared.tensors[member.name][None])["probabilities"][0])
        engine.close()
    return prepared.file_hash, said


def test_both_are_members_with_their_own_preparation_and_parity_films(bundle: Path, manifest: Manifest) -> None:
    assert tuple(member.name for member in manifest.members_of("segmentation")) == NAMES
    assert tuple(region.name for region in manifest.regions) == REGION_SETS["novikov"]
    first, second = manifest.members
    assert [step["step"] for step in first.preprocess] == ["resize", "standardise"]
    assert [step["step"] for step in second.preprocess] == ["min_max", "resize"]
    with np.load(bundle / manifest.parity_films[0]) as film:
        assert {key.partition(".")[0] for key in film.files} == {*NAMES}


def test_the_ensemble_is_measured_and_each_network_alone(bundle: Path, manifest: Manifest) -> None:
    masks = manifest.metrics["segmentation"]
    assert {*masks["members"]} == {*NAMES}
    together = masks["figures"]["mean_dice"]["value"]
    for figures in masks["members"].values():
        assert together - figures["mean_dice"]["value"] == pytest.approx(figures["ensemble_above"]["value"], abs=1e-9)
    card = (bundle / "model-card.md").read_text("utf-8")
    assert "the masks are those of the means" in card
    assert all(f"| {name} | 0." in card.split("| network alone |")[1] for name in NAMES)


def test_is_evaluated_with_its_stress_table(bundle: Path, films: Path, manifest: Manifest, tmp_path: Path) -> None:
    dataset = load_dataset(films)
    extras = Extras(stress=True, films=1)
    summary = evaluate_bundle(bundle, dataset, "test", tmp_path, extras=extras, replicates=20, progress=say_nothing)
    measured = manifest.metrics["segmentation"]
    assert summary["masks"]["figures"]["mean_dice"]["value"] == measured["figures"]["mean_dice"]["value"]
    assert {
        name: figures["mean_dice"]["value"] for name, figures in summary["masks"]["members"].items()
    } == pytest.approx({name: figures["mean_dice"]["value"] for name, figures in measured["members"].items()})
    assert "## Each network alone" in (tmp_path / "masks" / "report.md").read_text("utf-8")
    assert (tmp_path / "stress" / "report.md").is_file()


def test_reads_a_night_with_the_mean_of_both(
    bundle: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CARINA_PRECISION", "fp32")
    monkeypatch.setitem(COMMANDS, "bundle", "worker.cli.bundle:bundle")
    carina("bundle", "add", bundle, "--promote")
    shown = carina("bundle", "show", "pair:1").stdout
    assert "masks: the mean of inverted_net and all_dropout" in shown
    folder = tmp_path / "films"
    folder.mkdir()
    for seed in range(FILMS):
        phantom_dataset(make_phantom(seed, rows=128, columns=120)).save_as(folder / f"{seed}.dcm")
    counts = json.loads(carina("run", folder, "--report", tmp_path / "report", "--json").stdout)
    assert counts["done"] == FILMS

    database = Database(load_settings().url)
    with database.read() as connection:
        stored = connection.execute(
            select(tables.segmentation, tables.instance.c.file_hash)
            .join(tables.job, tables.job.c.id == tables.segmentation.c.job_id)
            .join(tables.instance, tables.instance.c.id == tables.job.c.instance_id)
        ).all()
    database.close()
    said_of = dict(alone(bundle, manifest, film) for film in folder.iterdir())
    assert {row.file_hash for row in stored} == {*said_of} and len(stored) == FILMS
    settings = PostprocessSettings.from_manifest(manifest.postprocess)
    differs = False
    for row in stored:
        assert row.engine["members"] == dict.fromkeys(NAMES, "fp32")
        said = said_of[row.file_hash]
        expected = postprocess(np.mean(said, axis=0), manifest.region_definitions, settings)
        np.testing.assert_array_equal(decode_mask(row.mask, (row.height, row.width)), expected.cleaned)
        differs |= any((each.argmax(axis=0) != expected.raw).any() for each in said)
    assert differs, "the mean is no other than one of the two"


def test_a_bundle_without_one_of_them_is_refused(bundle: Path, manifest: Manifest, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    (broken / manifest.members[1].onnx).unlink()
    with pytest.raises(BundleError, match=r"pair:1 lacks the file all_dropout\.onnx: copy the bundle again"):
        read_manifest(broken)

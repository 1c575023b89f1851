"""A night with other regions than Holste's eight: from the bundle to every form in which results leave."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pyarrow.parquet
import pydicom
import pytest
from chest_bundle import SIZE, make_chest_bundle
from click.testing import CliRunner
from page_server import serving
from scr_films import scr_masks
from sqlalchemy import select, text

from schema import tables
from schema.database import Database
from schema.regions import REGION_BY_NAME, REGION_SETS, RegionDefinition, parts_of
from schema.view_tables import published_result
from worker.cli import COMMANDS, main
from worker.phantom import make_phantom, phantom_dataset
from worker.settings import load_settings

FILMS = 2


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(COMMANDS, "bundle", "worker.cli.bundle:bundle")
    return tmp_path / "home"


def carina(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def bundle_of(folder: Path, names: Sequence[str]) -> Path:
    """A bundle that finds lungs, heart and clavicles in every film, those of ``names``, clavicles on top."""
    regions = [replace(REGION_BY_NAME[name], value=value) for value, name in enumerate(names)]
    return make_chest_bundle(folder, 1, regions=regions, labels=labels_of(regions))


def labels_of(regions: Sequence[RegionDefinition]) -> np.ndarray:
    labels = np.zeros((SIZE, SIZE), np.uint8)
    masks = scr_masks(SIZE)
    for region in regions[1:]:
        for part in parts_of(region.name):
            labels[masks[part]] = region.value
    return labels


def night(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    for seed in range(FILMS):
        phantom = make_phantom(seed, rows=128, columns=128, age_days=9000)
        phantom_dataset(phantom).save_as(tmp_path / "films" / f"{seed}.dcm")
    counts = json.loads(carina("run", tmp_path / "films", "--report", tmp_path / "report", "--json"))
    assert counts["done"] == FILMS


@pytest.mark.parametrize("name", ["scr", "novikov"])
def test_a_night_from_bundle_to_exports(name: str, tmp_path: Path) -> None:
    names = REGION_SETS[name]
    found = [REGION_BY_NAME[region] for region in names[1:]]
    carina("bundle", "add", bundle_of(tmp_path / "bundle", names), "--promote")
    night(tmp_path)

    settings = load_settings()
    database = Database(settings.url)
    with database.read() as connection:
        measured = connection.execute(select(tables.region_measurement)).all()
        flags = connection.execute(select(tables.failure_flag)).all()
        jobs = connection.scalars(select(published_result.c.job_id)).all()
        viewed = set(connection.scalars(text("SELECT region FROM area_drift")))
    assert len(jobs) == FILMS
    assert {row.region for row in measured} == viewed == {*names}
    assert all(row.area_pixels > 0 for row in measured)
    # A sound chest raises nothing about its masks: neither for two lungs in one region nor for a clavicle on a lung.
    assert {flag.rule for flag in flags if flag.source != "input"} == set()

    page = next((tmp_path / "report").glob("*.html")).read_text("utf-8")
    assert all(region.title in page for region in found) and "Mediastinum" not in page
    with serving(database, settings) as browser:
        film = browser.page("/film/1")
        assert all(region.title in film.words for region in found) and "Spine" not in film.words
    database.close()

    expected = {0, *(region.value for region in found)}
    carina("export", "--format", "png", "--out", tmp_path / "png")
    pictures = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (tmp_path / "png").glob("*.png")]
    assert [set(np.unique(picture)) for picture in pictures] == [expected] * FILMS
    carina("export", "--format", "nifti", "--out", tmp_path / "nifti")
    maps = [np.asarray(nibabel.load(path).dataobj) for path in (tmp_path / "nifti").glob("*.nii.gz")]
    assert [set(np.unique(values)) for values in maps] == [expected] * FILMS
    carina("export", "--format", "parquet", "--out", tmp_path / "tables")
    told = pyarrow.parquet.read_table(tmp_path / "tables" / "regions.parquet").to_pylist()
    heart = {(row["code"], row["scheme"]) for row in told if row["region"] == "heart"}
    assert heart == {("80891009", "SCT")} and {row["region"] for row in told} == {*names}
    carina("export", "--format", "csv", "--out", tmp_path / "table")
    with (tmp_path / "table" / "films.csv").open() as stream:
        assert {row["bundle"] for row in csv.DictReader(stream)} == {"chest:1"}
    check_objects(tmp_path / "dicom", found)


def check_objects(folder: Path, found: Sequence[RegionDefinition]) -> None:
    carina("export", "--format", "dicom", "--out", folder)
    objects = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    segmentations = [dataset for dataset in objects if dataset.Modality == "SEG"]
    assert len(segmentations) == FILMS and len(objects) == 2 * FILMS
    for dataset in segmentations:
        assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == [region.title for region in found]
        masks = dataset.pixel_array
        assert masks.shape[0] == len(found) and all(mask.any() for mask in masks)
    reports = [dataset for dataset in objects if dataset.Modality == "SR"]
    assert all("Heart" in str(dataset) for dataset in reports)

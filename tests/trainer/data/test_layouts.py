"""The packaged layouts on small copies of what the releases look like."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless

from schema.findings import CHEXPERT_OBSERVATIONS, Finding
from trainer.data.description import load_dataset
from trainer.data.splits import split
from trainer.data.store import build_samples
from trainer.errors import DataError
from trainer.recipe import SplitTable
from worker.film.prepare import prepare
from worker.film.source import FilmSource
from worker.phantom import Phantom, dicom_bytes, make_phantom, phantom_dataset

Write = Callable[..., Path]
WriteTable = Callable[..., Path]
BLANK = np.zeros((8, 8), np.uint8)

#: Header and first film of CheXpert's train.csv.
CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
DISEASES = (
    "No finding", "Bronchitis", "Brocho-pneumonia", "Other disease", "Bronchiolitis", "Situs inversus", "Pneumonia",
    "Pleuro-pneumonia", "Diagphramatic hernia", "Tuberculosis", "Congenital emphysema", "CPAM",
    "Hyaline membrane disease", "Mediastinal tumor", "Lung tumor",
)  # fmt: skip


@pytest.fixture
def chexpert(tmp_path: Path, write: Write) -> Path:
    root = tmp_path / "CheXpert-v1.0-small"
    rows = {
        "train.csv": [
            "train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
            "train/patient00002/study1/view1_frontal.jpg,Male,2,Frontal,PA,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
            "train/patient00002/study1/view2_lateral.jpg,Male,2,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
            "train/patient00002/study2/view1_frontal.jpg,Male,3,Frontal,AP,,,,,,,,1.0,,,,,,",
        ],
        "valid.csv": [
            "valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
        ],
    }
    for table, lines in rows.items():
        full = [f"CheXpert-v1.0-small/{line}" for line in lines]
        for line in lines:
            write(root / line.split(",")[0], BLANK)
        (root / table).write_text("\n".join([CHEXPERT_HEADER, *full]) + "\n")
    return root


def test_chexpert_brings_its_own_fourteen_observations(chexpert: Path) -> None:
    films = {record.name: record for record in load_dataset(chexpert, "chexpert").records}
    assert sorted(films) == [
        "train/patient00001/study1/view1_frontal",
        "train/patient00002/study1/view1_frontal",
        "train/patient00002/study2/view1_frontal",
        "valid/patient64541/study1/view1_frontal",
    ]
    first, second, third, radiologists = films.values()
    assert tuple(first.findings) == CHEXPERT_OBSERVATIONS
    assert {slug for slug, present in first.findings.items() if present} == {"no_finding", "support_devices"}
    assert first.findings["pneumothorax"] is False and first.findings["edema"] is False
    assert {slug for slug, present in second.findings.items() if present} == {"lung_opacity", "fracture"}
    unknown = {slug for slug, present in second.findings.items() if present is None}
    assert unknown == {"cardiomegaly", "edema", "consolidation", "atelectasis", "pleural_effusion"}
    assert second.patient == third.patient != first.patient
    assert (first.sex, second.sex) == ("F", "M")
    assert first.age_days == pytest.approx(68 * 365.25)
    assert [record.part for record in films.values()] == ["", "", "", "test"]
    assert radiologists.findings["cardiomegaly"] is True


def test_chexperts_other_policies_are_a_setting(chexpert: Path) -> None:
    (chexpert / "dataset.toml").write_text('layout = "chexpert"\n[findings]\nuncertain = "ones"\nblank = "ignore"\n')
    second = load_dataset(chexpert).records[1]
    assert second.findings["edema"] is True and second.findings["pneumothorax"] is None


def test_chexperts_fixed_test_part_leaves_training_and_validation(chexpert: Path) -> None:
    films = load_dataset(chexpert, "chexpert")
    chosen = split(films.records, SplitTable(train=0.6, validation=0.4, test=0.0))
    assert [films.records[i].name for i in chosen.test] == ["valid/patient64541/study1/view1_frontal"]
    assert len(chosen.train) + len(chosen.validation) == 3 and chosen.validation


def stripped(phantom: Phantom) -> bytes:
    """A film with nothing left in its header but age, sex and what describes its pixels, as VinDr publishes them."""
    dataset = phantom_dataset(phantom, transfer_syntax=JPEG2000Lossless)
    for element in list(dataset):
        if element.tag.group not in (0x0028, 0x7FE0) and element.keyword not in ("PatientAge", "PatientSex"):
            del dataset[element.tag]
    dataset.PatientAge = "013M"
    buffer = BytesIO()
    with warnings.catch_warnings(action="ignore"):  # pydicom knows that this is no UID
        dataset.file_meta.MediaStorageSOPInstanceUID = "7ecd6f67f649f26c05805c8359f9e528"
        dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.fixture
def vindr(tmp_path: Path, write_table: WriteTable) -> Path:
    """Five films of VinDr-PCXR: positive diseases, boxes."""
    films: dict[str, tuple[str, list[str], list[str]]] = {
        "a1": ("train", ["No finding"], ["No finding"]),
        "b2": ("train", ["Brocho-pneumonia"], ["Other opacity", "Bronchial thickening", "Other opacity"]),
        "c3": ("train", ["No finding"], ["Peribronchovascular interstitial opacity"]),
        "d4": ("train", ["CPAM"], ["Cardiomegaly"]),
        "e5": ("test", ["Pneumonia", "Other disease"], ["Reticulonodular opacity"]),
    }
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        mine = {name: film for name, film in films.items() if film[0] == part}
        for number, name in enumerate(mine):
            (tmp_path / part / f"{name}.dicom").write_bytes(stripped(make_phantom(number, rows=32, columns=32)))
        write_table(
            tmp_path / f"image_labels_{part}.csv",
            [
                {"image_id": name, "rad_ID": "R1"} | {label: float(label in diseases) for label in DISEASES}
                for name, (_, diseases, _) in mine.items()
            ],
        )
        boxes: list[dict[str, Any]] = [
            {"image_id": name, "rad_ID": "R1", "class_name": label, "x_min": 1, "y_min": 1, "x_max": 9, "y_max": 9}
            for name, (_, _, labels) in mine.items()
            for label in labels
        ]
        write_table(tmp_path / f"annotations_{part}.csv", boxes)
    return tmp_path


def test_vindr_pcxr_becomes_the_ten(vindr: Path) -> None:
    films = load_dataset(vindr, "vindr_pcxr")
    records = {record.name: record for record in films.records}
    assert sorted(records["train/a1"].findings) == sorted(Finding)
    shown = {name: {slug for slug, present in r.findings.items() if present} for name, r in records.items()}
    assert shown == {
        "train/a1": {"no_finding"},
        "train/b2": {"bronchopneumonia", "other_opacity", "bronchial_thickening"},
        "train/c3": {"peribronchovascular_interstitial_opacity"},
        "test/e5": {"pneumonia", "other_disease", "reticulonodular_opacity"},
    }
    assert all(present is not None for record in records.values() for present in record.findings.values())
    assert films.origin["left out: no finding present"] == "1"
    assert [record.part for record in films.records] == ["test", "", "", ""]
    assert len({record.patient for record in films.records}) == 4
    assert records["train/a1"].age_days == pytest.approx(13 * 365.25 / 12, abs=15)


def test_vindr_films_are_read_though_their_headers_are_stripped(
    vindr: Path, make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe(findings=tuple(Finding), height=24, width=24)
    films = load_dataset(vindr, "vindr_pcxr").for_recipe(recipe)
    samples = build_samples(films, range(4), recipe, tmp_path / "cache")
    assert samples.targets.shape == (4, 10) and not np.isnan(samples.targets).any()
    whole = tmp_path / "whole.dcm"
    film = make_phantom(0, rows=32, columns=32)
    whole.write_bytes(dicom_bytes(phantom_dataset(film, transfer_syntax=JPEG2000Lossless)))
    night = prepare(FilmSource(whole), {"m": recipe.preprocess}).tensors["m"]
    np.testing.assert_array_equal(samples.pictures[1], night.astype(np.float16))


def test_a_vindr_column_that_is_misspelt_is_refused(vindr: Path) -> None:
    table = vindr / "image_labels_train.csv"
    table.write_text(table.read_text().replace("Brocho-pneumonia", "Broncho-pneumonia"))
    with pytest.raises(DataError, match=r"'Brocho-pneumonia'.*did you mean 'Broncho-pneumonia'"):
        load_dataset(vindr, "vindr_pcxr")


def test_kermany_is_told_by_folders_and_names(tmp_path: Path, write: Write) -> None:
    for path in (
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/NORMAL/NORMAL2-IM-0501-0001-0002.jpeg",
        "train/NORMAL/NORMAL2-IM-0501-0001.jpeg",
        "train/PNEUMONIA/person1_bacteria_1.jpeg",
        "train/PNEUMONIA/person1_bacteria_2.jpeg",
        "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
        "test/PNEUMONIA/person1_virus_6.jpeg",
        "test/NORMAL/IM-0001-0001.jpeg",
    ):
        write(tmp_path / "chest_xray" / path, BLANK)
    films = {Path(record.name).name: record for record in load_dataset(tmp_path, "kermany").records}
    assert len(films) == 8
    patient = {name: record.patient for name, record in films.items()}
    assert patient["person1_bacteria_1"] == patient["person1_bacteria_2"] != patient["person1_virus_6"]
    assert patient["NORMAL2-IM-0501-0001"] == patient["NORMAL2-IM-0501-0001-0002"] != patient["IM-0115-0001"]
    assert {name for name, record in films.items() if record.part} == {"person1_virus_6", "IM-0001-0001"}
    assert {record.part for record in films.values()} == {"", "test"}
    assert films["IM-0115-0001"].findings == {"pneumonia": False, "no_finding": True}
    assert films["person1_virus_6"].findings == {"pneumonia": True, "no_finding": False}


def test_v7s_drawings_become_lungs_beside_kermanys_films(tmp_path: Path, write: Write) -> None:
    films, drawings = tmp_path / "films", tmp_path / "v7"
    for name in ("train/NORMAL/IM-0115-0001.jpeg", "train/PNEUMONIA/person1_bacteria_1.jpeg"):
        write(films / "chest_xray" / name, BLANK)
    sides = ([[0, 1], [0, 6], [2, 6], [2, 1]], [[5, 1], [5, 6], [7, 6], [7, 1]])
    lungs = [{"name": "Lung", "polygon": {"path": [{"x": x, "y": y} for x, y in side]}} for side in sides]
    drawings.mkdir()
    for number, name in enumerate(("IM-0115-0001.jpeg", "another.jpeg")):
        drawn = {"image": {"original_filename": name}, "annotations": [*lungs, {"name": "Healthy", "tag": {}}]}
        (drawings / f"{number}.json").write_text(json.dumps(drawn))
    manual = (Path(__file__).resolve().parents[3] / "docs" / "training.md").read_text("utf-8")
    script = next(part for part in manual.split("```python\n")[1:] if "original_filename" in part).split("```")[0]
    subprocess.run([sys.executable, "-c", script, str(films), str(drawings)], check=True)
    found = {Path(record.name).name: record for record in load_dataset(films, "kermany_v7").records}
    drawn = found["IM-0115-0001"]
    assert drawn.truth_kind == "lungs" and drawn.truth is not None
    assert (cv2.imread(str(drawn.truth), cv2.IMREAD_GRAYSCALE) > 0).sum() == 2 * 3 * 6
    assert found["person1_bacteria_1"].truth_kind == "" and found["person1_bacteria_1"].truth is None


SHARED = Path(__file__).resolve().parents[3] / "../shared/data/ped_cxr"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared radiographs are not here")


@shared
def test_ped_cxr_is_as_its_manifest_says() -> None:
    with (SHARED / "manifest.csv").open(newline="") as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    films = load_dataset(SHARED, "ped_cxr")
    records = {record.name: record for record in films.records}
    assert set(records) == set(rows)
    patients: dict[str, set[str]] = {}
    for name, row in rows.items():
        assert records[name].findings["pneumonia"] is (row["pneumonia"] == "1")
        assert records[name].findings["no_finding"] is (row["label"] == "normal")
        assert bool(records[name].truth_kind) is (row["has_mask"] == "1")
        patients.setdefault(row["patient_group"], set()).add(records[name].patient)
        if row["duplicate_of"]:
            assert records[name].group == records[row["duplicate_of"]].group
    assert all(len(keys) == 1 for keys in patients.values())
    assert len({record.patient for record in films.records}) == len(patients)


@shared
def test_ped_cxr_gives_left_and_right_lungs(make_recipe: Callable[..., Any], tmp_path: Path) -> None:
    recipe = make_recipe(height=64, width=64)
    films = load_dataset(SHARED, "ped_cxr").for_recipe(recipe)
    assert films.origin["left out without truth"] == "4"
    samples = build_samples(films, range(0, 4000, 500), recipe, tmp_path)
    assert samples.labels is not None
    for labels in samples.labels:
        left, right = np.argwhere(labels == 1), np.argwhere(labels == 2)
        assert left[:, 1].mean() > 32 > right[:, 1].mean()
        assert 0.05 < len(left) / labels.size < 0.35 and 0.05 < len(right) / labels.size < 0.35
    assert samples.pictures.min() >= 0.0 and samples.pictures.max() <= 1.0

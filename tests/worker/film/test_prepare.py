from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import dicom_files
import pytest

from worker.errors import FilmError
from worker.film import prepare as module
from worker.film.observations import OBSERVATION_RULES
from worker.film.prepare import prepare
from worker.film.prepared import FilmFacts
from worker.film.source import FilmSource

PLAN = {"segmentation": [{"step": "min_max"}, {"step": "resize", "height": 64, "width": 48}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return dicom_files.save(dicom_files.make_dataset(dicom_files.chest_pixels()), tmp_path / "film.dcm")


def test_a_film_in_full(path: Path) -> None:
    film = prepare(FilmSource(path), PLAN)
    assert film.tensors["segmentation"].shape == (1, 64, 48)
    assert film.file_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(film.content_hash) == 64
    assert set(film.seconds) == {"read", "decode", "normalise", "preprocess"}
    assert (film.geometry.film_rows, film.geometry.film_columns) == (120, 100)
    assert dataclasses.replace(film.facts, grey_mean=None, grey_spread=None) == FilmFacts(
        dicom_files.DX_FOR_PRESENTATION, dicom_files.EXPLICIT, "MONOCHROME2", "DX", "CHEST", "PA", 12, 1461, "v1:window"
    )


def test_facts_carry_no_identity(tmp_path: Path) -> None:
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels(), PatientID="SECRET", PatientName="SECRET^NAME")
    film = prepare(FilmSource(dicom_files.save(dataset, tmp_path / "SECRET.dcm")), PLAN)
    words = str(dataclasses.replace(film, tensors={}))
    assert "SECRET" not in words and "20240301" not in words and dataset.SOPInstanceUID not in words


def test_odd_headers_are_observed(read_film) -> None:
    dataset = dicom_files.make_dataset(
        dicom_files.chest_pixels(), PatientAge="045Y", ViewPosition=None, BodyPartExamined=""
    )
    film = read_film(dataset)
    assert {observation.rule for observation in film.observations} == {"age_mismatch", "header_incomplete"}
    assert film.facts.age_days is None
    assert [o.value for o in film.observations if o.rule == "header_incomplete"] == [2.0]


def test_every_rule_has_one_meaning() -> None:
    names = [rule.name for rule in OBSERVATION_RULES]
    assert len(set(names)) == len(names) == 12
    assert all(rule.meaning.endswith(".") for rule in OBSERVATION_RULES)


def test_a_file_that_changes_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module._read_all

    def slow(stream, size):
        data = honest(stream, size)
        os.utime(path, ns=(1, 1))
        return data

    monkeypatch.setattr(module, "_read_all", slow)
    with pytest.raises(FilmError) as caught:
        prepare(FilmSource(path), PLAN)
    assert caught.value.code == "SOURCE_CHANGED"


def test_a_file_larger_than_any_film(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(FilmError) as caught:
        prepare(FilmSource(path), PLAN)
    assert caught.value.code == "FILE_TOO_LARGE"


@pytest.mark.parametrize(
    ("error", "code"), [(MemoryError(), "DECODE_MEMORY"), (RuntimeError("P1 was here"), "DECODE_FAILED")]
)
def test_faults_of_libraries_become_film_errors_without_their_words(path, monkeypatch, error, code) -> None:
    def fail(*_):
        raise error

    monkeypatch.setattr(module, "stored_values", fail)
    with pytest.raises(FilmError) as caught:
        prepare(FilmSource(path), PLAN)
    assert caught.value.code == code and "P1" not in str(caught.value)


def test_a_plan_that_fails_is_preprocess_failed(path: Path) -> None:
    with pytest.raises(FilmError) as caught:
        prepare(FilmSource(path), {"member": [{"step": "resize", "height": -1, "width": 3}]})
    assert (caught.value.code, caught.value.detail) == ("PREPROCESS_FAILED", "error")

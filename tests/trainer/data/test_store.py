from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trainer.data import reading, store
from trainer.data.description import load_dataset
from trainer.data.images import read_picture
from trainer.data.records import EIGHT, Dataset, phantom_dataset
from trainer.data.store import build_samples, data_digest
from trainer.errors import DataError
from trainer.recipe import Recipe
from worker.phantom import dicom_bytes, make_phantom
from worker.phantom import phantom_dataset as dicom_of

MakeRecipe = Callable[..., Recipe]
Write = Callable[..., Path]
Picture = Callable[..., npt.NDArray[Any]]


@pytest.fixture
def films(labelled_folder: Path, make_recipe: MakeRecipe) -> Dataset:
    return load_dataset(labelled_folder).for_recipe(make_recipe())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the films that were read."""
    names: list[str] = []
    read = reading.read_film

    def counted(record: Any, plan: Any) -> Any:
        names.append(record.name)
        return read(record, plan)

    monkeypatch.setattr(reading, "read_film", counted)
    return names


def test_samples_are_what_the_worker_makes_of_each_film(
    films: Dataset, make_recipe: MakeRecipe, tmp_path: Path, labels: npt.NDArray[np.uint8]
) -> None:
    recipe = make_recipe(height=40, width=30)
    samples = build_samples(films, [4, 1], recipe, tmp_path / "cache")
    assert len(samples) == 2 and samples.names == ("film-4", "film-1")
    assert samples.pictures.shape == (2, 1, 40, 30) and samples.pictures.dtype == np.float16
    for row, index in enumerate((4, 1)):
        image = films.records[index].image
        assert image is not None
        seen = read_picture(image, recipe.preprocess).plane
        np.testing.assert_array_equal(samples.pictures[row, 0], seen.astype(np.float16))
    assert samples.labels is not None
    np.testing.assert_array_equal(samples.labels, np.stack([labels, labels]))
    assert samples.targets.shape == (2, 0) and samples.places is None
    assert np.isnan(samples.ages).all()
    assert samples.patients == (films.records[4].patient, films.records[1].patient)


def test_arrays_are_mapped_and_cannot_be_written(films: Dataset, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    samples = build_samples(films, range(6), make_recipe(channels=3), tmp_path)
    assert samples.pictures.shape == (6, 3, 32, 32) and samples.pictures.strides[1] == 0
    assert isinstance(samples.labels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        samples.pictures[0, 0, 0, 0] = 1


def test_the_same_films_are_read_once(
    films: Dataset, make_recipe: MakeRecipe, tmp_path: Path, reads: list[str]
) -> None:
    told: list[tuple[int, int]] = []
    first = build_samples(films, range(6), make_recipe(), tmp_path, lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6) and [done for done, _ in told[:6]] == [1, 2, 3, 4, 5, 6]
    again = build_samples(films, range(6), make_recipe(), tmp_path)
    assert len(reads) == 6 and first.digest == again.digest
    np.testing.assert_array_equal(first.pictures, again.pictures)


def test_what_shapes_the_samples_is_in_the_digest(
    films: Dataset, make_recipe: MakeRecipe, tmp_path: Path, write: Write, picture: Picture
) -> None:
    def digest(dataset: Dataset, recipe: Recipe, indices: Any = range(6)) -> str:
        return build_samples(dataset, indices, recipe, tmp_path).digest

    digests = [
        digest(films, make_recipe()),
        digest(films, make_recipe(height=24)),
        digest(films, make_recipe(regions=("background", "right_lung", "left_lung"))),
        digest(films, make_recipe(), (5, 4, 3, 2, 1, 0)),
    ]
    image = films.records[0].image
    assert image is not None
    write(image, picture(seed=77))
    digests.append(digest(films, make_recipe()))
    truth = films.records[0].truth
    assert truth is not None
    write(truth, np.zeros((40, 30), np.uint8))
    digests.append(digest(films, make_recipe()))
    assert len(set(digests)) == len(digests)


def test_a_build_that_was_cut_off_goes_on(
    films: Dataset, make_recipe: MakeRecipe, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_FLUSH_EVERY", 2)
    whole = build_samples(films, range(6), make_recipe(), tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_samples(films, range(6), make_recipe(), tmp_path / "cut", stop)
    reads.clear()
    told: list[int] = []
    resumed = build_samples(films, range(6), make_recipe(), tmp_path / "cut", lambda done, _: told.append(done))
    assert reads == ["film-4", "film-5"] and told[:2] == [5, 6]
    np.testing.assert_array_equal(resumed.pictures, whole.pictures)
    np.testing.assert_array_equal(resumed.labels, whole.labels)


def test_two_builders_of_one_cache_do_not_read_twice(
    films: Dataset, make_recipe: MakeRecipe, tmp_path: Path, reads: list[str]
) -> None:
    threads = [
        threading.Thread(target=build_samples, args=(films, range(6), make_recipe(), tmp_path)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reads) == [f"film-{number}" for number in range(6)]


def test_other_processes_read_the_same(
    films: Dataset, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = build_samples(films, range(6), make_recipe(), tmp_path / "here", processes=1)
    monkeypatch.setattr(reading, "_PATIENCE_SECONDS", 0.0)
    there = build_samples(films, range(6), make_recipe(), tmp_path / "there", processes=2)
    np.testing.assert_array_equal(here.pictures, there.pictures)
    np.testing.assert_array_equal(here.labels, there.labels)


def test_every_bad_film_is_named(
    films: Dataset,
    make_recipe: MakeRecipe,
    tmp_path: Path,
    write: Write,
    picture: Picture,
    labels: npt.NDArray[np.uint8],
) -> None:
    damaged, larger, odd = (films.records[number] for number in (1, 2, 4))
    assert damaged.image and larger.image and odd.truth
    damaged.image.write_bytes(damaged.image.read_bytes()[:300])
    write(larger.image, picture(41, 30))
    labels[0, 0] = 7
    write(odd.truth, labels)
    with pytest.raises(DataError) as refused:
        build_samples(films, range(6), make_recipe(), tmp_path)
    message = str(refused.value)
    assert f"cannot be used, 3: film-1 ({damaged.image}): the picture is damaged" in message
    assert f"film-2 ({larger.image}): size mismatch: the film is 41 x 30" in message
    assert f"film-4 ({odd.image}): its label map {odd.truth} has" in message and "values 7, outside the set" in message
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_no_more_than_twenty_bad_films_are_looked_for(
    tmp_path: Path, make_recipe: MakeRecipe, reads: list[str]
) -> None:
    (tmp_path / "films" / "images").mkdir(parents=True)
    (tmp_path / "films" / "labels").mkdir()
    for number in range(30):
        for folder in ("images", "labels"):
            (tmp_path / "films" / folder / f"film-{number:02d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    films = load_dataset(tmp_path / "films")
    with pytest.raises(DataError, match=r"at least 20: film-00 .*film-19 ") as refused:
        build_samples(films, range(30), make_recipe(), tmp_path / "cache", processes=1)
    assert "film-20" not in str(refused.value) and len(reads) == 20


def test_a_film_without_truth_is_named(films: Dataset, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    bare = replace(films, records=(*films.records[:2], replace(films.records[2], truth=None, truth_kind="")))
    with pytest.raises(DataError, match="film-2 has no truth"):
        build_samples(bare, range(3), make_recipe(), tmp_path)


def test_evidence_reads_the_lungs_along(films: Dataset, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    bare = replace(films, records=(*films.records[:2], replace(films.records[2], truth=None, truth_kind="")))
    plain = make_recipe(findings=["pneumonia"])
    told = plain.model_copy(update={"loss": plain.loss.model_copy(update={"evidence": 0.5})})
    samples = build_samples(bare, range(3), told, tmp_path)
    drawn = build_samples(films, range(2), make_recipe(), tmp_path)
    assert samples.labels is not None and drawn.labels is not None
    lungs = [make_recipe().data.regions.index(lung) for lung in ("left_lung", "right_lung")]
    np.testing.assert_array_equal(samples.labels[:2] > 0, np.isin(drawn.labels, lungs))
    assert (samples.labels[2] == reading.UNDRAWN).all()
    assert build_samples(bare, range(3), plain, tmp_path).labels is None


def test_a_truth_that_went_missing_is_named(films: Dataset, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    truth = films.records[3].truth
    assert truth is not None
    truth.unlink()
    with pytest.raises(DataError, match=r"cannot be read: .*film-3\.png \(No such file"):
        build_samples(films, range(6), make_recipe(), tmp_path)


def test_no_film_is_an_error(films: Dataset, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No film of films"):
        build_samples(films, [], make_recipe(), tmp_path)


def test_a_full_disk_is_said_before_anything_is_written(
    films: Dataset, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"do not fit into .*No space left"):
        build_samples(films, range(6), make_recipe(), tmp_path)


def test_targets_are_one_nought_or_unknown(films: Dataset, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    known = ({"pneumonia": True, "bronchitis": False}, {"pneumonia": False}, {"pneumonia": None, "bronchitis": True})
    records = tuple(
        replace(record, findings=findings, age_days=age)
        for record, findings, age in zip(films.records, known, (10.0, None, 400.0), strict=False)
    )
    recipe = make_recipe(findings=("bronchitis", "pneumonia"))
    samples = build_samples(replace(films, records=records), range(3), recipe, tmp_path)
    np.testing.assert_array_equal(samples.targets, [[0, 1], [np.nan, 0], [1, np.nan]])
    np.testing.assert_array_equal(samples.ages, np.asarray([10, np.nan, 400], np.float32))
    assert samples.labels is None


def test_a_subset_keeps_all_arrays_together(films: Dataset, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    samples = build_samples(films, range(6), make_recipe(channels=3), tmp_path)
    chosen = samples.subset([5, 0])
    assert chosen.names == ("film-5", "film-0") and len(chosen) == 2
    np.testing.assert_array_equal(chosen.pictures, samples.pictures[[5, 0]])
    assert chosen.labels is not None and samples.labels is not None
    np.testing.assert_array_equal(chosen.labels, samples.labels[[5, 0]])
    assert chosen.digest != samples.digest
    assert chosen.digest == samples.subset([5, 0]).digest != samples.subset([0, 5]).digest


def test_phantoms_bring_labels_and_places(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(height=64, width=64, phantoms=12)
    drawn = phantom_dataset(12).for_recipe(recipe)
    samples = build_samples(drawn, range(12), recipe, tmp_path)
    assert samples.places is not None and samples.labels is not None
    assert samples.places.shape == (12, 16, 16)
    assert samples.labels.max() == 2
    for row, record in enumerate(drawn.records):
        assert bool(samples.labels[row].any()) is bool(record.findings)
        assert bool(samples.places[row].any()) is bool(record.findings.get("pneumonia"))


def test_places_lie_on_the_networks_grid(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    regions = ("background", "left_lung", "right_lung")
    recipe = make_recipe(regions=regions, height=64, width=96, phantoms=12)
    samples = build_samples(phantom_dataset(12), range(12), recipe, tmp_path)
    assert samples.places is not None and samples.labels is not None
    lung = (samples.labels > 0).reshape(12, 16, 4, 16, 6).any(axis=(2, 4))
    outside = samples.places[~lung]
    assert samples.places.max() > 0.2
    assert outside.max() < 0.05  # what antialiasing lets over the border


def test_phantoms_and_real_films_mix_without_places(films: Dataset, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(added_phantoms=3)
    mixed = films.for_recipe(recipe)
    samples = build_samples(mixed, range(9), recipe, tmp_path)
    assert samples.places is None and samples.labels is not None
    assert samples.names[6:] == ("phantom-000000", "phantom-000001", "phantom-000002")


def test_a_dicom_film_and_its_labels_are_turned_together(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    phantom = make_phantom(5, rows=64, columns=56)
    for folder in ("images", "labels"):
        (tmp_path / "films" / folder).mkdir(parents=True)
    import cv2

    for name, mirrored in (("straight", False), ("mirrored", True)):
        (tmp_path / "films" / "images" / name).write_bytes(dicom_bytes(dicom_of(phantom, mirrored=mirrored)))
        stored = phantom.labels[:, ::-1] if mirrored else phantom.labels
        cv2.imwrite(str(tmp_path / "films" / "labels" / f"{name}.png"), np.where(stored < 3, stored, 0))
    samples = build_samples(load_dataset(tmp_path / "films"), range(2), make_recipe(height=64, width=56), tmp_path)
    assert samples.labels is not None and samples.labels[0].any()
    np.testing.assert_array_equal(samples.labels[0], samples.labels[1])
    np.testing.assert_allclose(samples.pictures[0], samples.pictures[1], atol=1e-3)


def test_the_data_digest_does_not_depend_on_order_but_on_everything_else(films: Dataset, tmp_path: Path) -> None:
    first = data_digest(films, tmp_path)
    assert data_digest(replace(films, records=films.records[::-1]), tmp_path) == first
    changes: list[dict[str, Any]] = [
        {"findings": {"pneumonia": True}}, {"part": "test"}, {"patient": "x"}, {"age_days": 3.0}, {"name": "other"},
    ]  # fmt: skip
    others = {
        data_digest(replace(films, records=(replace(films.records[0], **c), *films.records[1:])), tmp_path)
        for c in changes
    }
    assert len(others) == 5 and first not in others
    image = films.records[0].image
    assert image is not None
    image.write_bytes(image.read_bytes() + b"\0")
    assert data_digest(films, tmp_path) != first


def test_regions_derived_from_lungs_are_named(
    tmp_path: Path, make_recipe: MakeRecipe, picture: Picture, write: Write, labels: npt.NDArray[np.uint8]
) -> None:
    root = tmp_path / "films"
    write(root / "images" / "a.png", picture(seed=1))
    write(root / "masks" / "a.png", (labels > 0).astype(np.uint8) * 255)
    (root / "dataset.toml").write_text('name = "a"\n[truth]\nkind = "lungs"\nfolder = "masks"\n', "utf-8")
    eight = make_recipe(regions=EIGHT)
    samples = build_samples(load_dataset(root).for_recipe(eight), [0], eight, tmp_path / "cache")
    assert samples.derived == EIGHT[3:]
    assert samples.subset([0]).derived == samples.derived
    two = make_recipe(regions=EIGHT[:3])
    assert build_samples(load_dataset(root).for_recipe(two), [0], two, tmp_path / "cache").derived == ()

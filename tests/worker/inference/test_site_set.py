"""Films of the site: only pictures are kept, each once, and a changed one is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import SIZE, make_bundle

from schema.bundle import Manifest, read_manifest
from worker.errors import CarinaError
from worker.film.preprocess import apply
from worker.inference.site_set import Addition, add_films, preparation_of, site_films
from worker.phantom import make_phantom, phantom_dataset

STEPS = ({"step": "min_max"}, {"step": "resize", "height": SIZE, "width": SIZE})


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return read_manifest(make_bundle(tmp_path_factory.mktemp("bundle"), preprocess=STEPS))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for seed in range(3):
        dataset = phantom_dataset(make_phantom(seed, rows=120, columns=100))
        dataset.PatientName = "Somebody^Real"
        dataset.save_as(folder / f"{seed}.dcm")
    (folder / "README").write_text("no film", "utf-8")
    return folder


def add(home: Path, manifest: Manifest, *paths: Path) -> Addition:
    return add_films(home, [manifest], paths, memory_bytes=3 << 30, timeout_seconds=60.0)


def test_films_are_kept_once_as_the_member_sees_them(tmp_path: Path, manifest: Manifest, films: Path) -> None:
    done: list[int] = []
    first = add_films(
        tmp_path, [manifest], [films], decoders=2, memory_bytes=3 << 30, timeout_seconds=60.0, progress=done.append
    )
    assert (first.added, first.known) == (3, 0) and done == [1, 2, 3, 4]
    ((file, why),) = first.refused
    assert file.name == "README" and why
    assert add(tmp_path, manifest, films / "1.dcm") == Addition(0, 1, ())
    members = manifest.members
    known = site_films(tmp_path, members[0])
    assert len(known) == 3 and known == site_films(tmp_path, members[1])
    pictures = {picture.tobytes(): picture for picture in known.pictures()}
    for seed in range(3):
        stored = phantom_dataset(make_phantom(seed, rows=120, columns=100)).pixel_array
        # MONOCHROME2 phantoms: what the reader gives differs from the stored numbers by a scale only.
        expected = apply(STEPS, stored.astype(np.float32), None).astype(np.float16).astype(np.float32)
        closest = min(float(np.abs(picture - expected).max()) for picture in pictures.values())
        assert closest < 0.02


def test_nothing_but_pictures_is_kept(tmp_path: Path, manifest: Manifest, films: Path) -> None:
    add(tmp_path, manifest, films)
    folder = tmp_path / "parity-set" / preparation_of(manifest.members[0])
    assert folder.stat().st_mode & 0o077 == 0
    for file in folder.iterdir():
        assert b"Somebody" not in file.read_bytes() and "dcm" not in file.name
        if file.suffix == ".npz":
            assert file.stat().st_mode & 0o077 == 0
            with np.load(file) as arrays:
                assert list(arrays) == ["input"] and arrays["input"].dtype == np.float16
        else:
            assert set(json.loads(file.read_text("utf-8"))) == {"shape", "preprocess"}


def test_another_preparation_has_its_own_films(tmp_path: Path, manifest: Manifest, films: Path) -> None:
    add(tmp_path, manifest, films / "0.dcm")
    member = manifest.members[0]
    for other in (replace(member, preprocess=STEPS[1:]), replace(member, height=2 * SIZE)):
        assert preparation_of(other) != preparation_of(member)
        assert len(site_films(tmp_path, other)) == 0 and site_films(tmp_path, other).digest == ""
    assert preparation_of(replace(member, name="other", onnx="other.onnx")) == preparation_of(member)


def test_the_digest_tells_which_films(tmp_path: Path, manifest: Manifest, films: Path) -> None:
    member = manifest.members[0]
    digests = {site_films(tmp_path, member).digest}
    for seed in range(3):
        add(tmp_path, manifest, films / f"{seed}.dcm")
        digests.add(site_films(tmp_path, member).digest)
    assert len(digests) == 4


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_damaged_film_is_named(tmp_path: Path, manifest: Manifest, films: Path, damage: str) -> None:
    add(tmp_path, manifest, films / "0.dcm")
    known = site_films(tmp_path, manifest.members[0])
    (file,) = known.files
    if damage == "changed":
        np.savez_compressed(file, input=np.zeros((1, SIZE, SIZE), np.float16))
    else:
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CarinaError, match=f"{file.name} (was changed|cannot be read)"):
        list(known.pictures())


def test_what_is_not_there_or_cannot_be_written_is_said(tmp_path: Path, manifest: Manifest, films: Path) -> None:
    with pytest.raises(CarinaError, match=r"no file or folder .*nowhere"):
        add(tmp_path, manifest, tmp_path / "nowhere")
    home = tmp_path / "file"
    home.write_text("a file where a folder should be", "utf-8")
    with pytest.raises(CarinaError, match="cannot be written"):
        add(home, manifest, films / "0.dcm")

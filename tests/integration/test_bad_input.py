"""A folder full of trouble: each file ends with a code and a sentence, the good films get done."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import JPEG_LS, chest_pixels, encode, encode_frame, make_dataset, save, set_frame, to_bytes
from pydicom import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import DeflatedExplicitVRLittleEndian, generate_uid

from worker.phantom import make_phantom, phantom_dataset


def film(**attributes: object) -> Dataset:
    return make_dataset(chest_pixels(), **{"SOPInstanceUID": generate_uid(), **attributes})


def empty(path: Path) -> None:
    path.write_bytes(b"")


def header_cut(path: Path) -> None:
    path.write_bytes(to_bytes(film())[:420])


def pixels_cut(path: Path) -> None:
    content = to_bytes(film())
    path.write_bytes(content[: len(content) - 9000])


def codestream_disagrees(path: Path) -> None:
    dataset = encode(film(), JPEG_LS)
    set_frame(dataset, encode_frame(chest_pixels(64, 64), 12, JPEG_LS))
    save(dataset, path)


def claims_65535_squared(path: Path) -> None:
    save(film(Rows=65535, Columns=65535), path)


def deflate_bomb(path: Path) -> None:
    """A film whose last element goes on for a gigabyte of zeros once it is inflated."""
    content = to_bytes(film())
    # (0002,0000) FileMetaInformationGroupLength is the first element after preamble and prefix
    meta_length = 144 + int.from_bytes(content[140:144], "little")
    deflated = film()
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = to_bytes(deflated)
    head = head[: 144 + int.from_bytes(head[140:144], "little")]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    bomb = packer.compress(content[meta_length:])
    bomb += b"".join(packer.compress(zeros) for _ in range(1024)) + packer.flush()
    path.write_bytes(head + bomb)


def missing_uid(path: Path) -> None:
    # pydicom refuses to write such a file: rename (0008,0018) to a tag that means nothing
    path.write_bytes(to_bytes(film()).replace(b"\x08\x00\x18\x00UI", b"\x08\x00\x19\x00UI"))


def missing_rows(path: Path) -> None:
    save(film(Rows=None), path)


def colour(path: Path) -> None:
    dataset = film(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    dataset.PixelData = np.zeros((120, 100, 3), np.uint16).tobytes()
    save(dataset, path)


def multi_frame(path: Path) -> None:
    dataset = film(NumberOfFrames=2)
    dataset.PixelData = dataset.PixelData * 2
    save(dataset, path)


def lateral(path: Path) -> None:
    blob = np.zeros((300, 300), np.uint16)
    blob[60:240, 120:180] = np.linspace(500, 4000, 60, dtype=np.uint16)
    save(make_dataset(blob, SOPInstanceUID=generate_uid(), ViewPosition="LL"), path)


def ct_slice(path: Path) -> None:
    save(film(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT"), path)


SAME_UID = generate_uid()


def same_uid(seed: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        phantom_dataset(make_phantom(seed, rows=256, columns=224), sop_instance_uid=SAME_UID).save_as(path)

    return write


def vanished(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def no_permission(path: Path) -> None:
    save(film(), path)
    path.chmod(0)


#: File → (maker, state, codes); None: not a film at all, so no row.
TROUBLE: dict[str, tuple[Callable[[Path], None], str, set[str]]] = {
    "empty.dcm": (empty, "rejected", {"EMPTY_FILE"}),
    "header-cut.dcm": (header_cut, "rejected", {"TRUNCATED_HEADER"}),
    "pixels-cut.dcm": (pixels_cut, "failed", {"TRUNCATED_PIXELS"}),
    "codestream.dcm": (codestream_disagrees, "failed", {"CODESTREAM_MISMATCH"}),
    "65535.dcm": (claims_65535_squared, "failed", {"PICTURE_TOO_LARGE"}),
    "bomb.dcm": (deflate_bomb, "failed", {"FILE_TOO_LARGE"}),
    "no-uid.dcm": (missing_uid, "rejected", {"MISSING_TAG"}),
    "no-rows.dcm": (missing_rows, "failed", {"MISSING_TAG"}),
    "rgb.dcm": (colour, "ineligible", {"COLOUR"}),
    "multi-frame.dcm": (multi_frame, "ineligible", {"MULTI_FRAME"}),
    "lateral.dcm": (lateral, "ineligible", {"LATERAL"}),
    "ct.dcm": (ct_slice, "ineligible", {"NOT_A_RADIOGRAPH"}),
    "vanished.dcm": (vanished, "rejected", {"SOURCE_MISSING"}),
}


def carina(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CARINA_HOME": str(home)}
    command = [sys.executable, "-m", "worker.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, str]], list[dict[str, str]], str]:
    folder = tmp_path_factory.mktemp("trouble")
    films = folder / "films"
    films.mkdir()
    for name, (make, _, _) in TROUBLE.items():
        make(films / name)
    same_uid(5)(films / "one.dcm")
    same_uid(6)(films / "other.dcm")
    (films / "README").write_text("These are last night's films.\n")
    (films / "notes.txt").write_text("Room 4 first.\n")
    media = FileSet()
    media.add(film(StudyID="1", SeriesNumber=1, InstanceNumber=1, AccessionNumber="1", StudyTime="080000"))
    media.write(folder / "media")
    (folder / "media" / "DICOMDIR").rename(films / "DICOMDIR")
    (films / "again").symlink_to(films, target_is_directory=True)

    home = folder / "home"
    run = carina(home, "run", str(films))
    assert run.returncode == 3, run.stdout + run.stderr
    table = carina(home, "export", "--format", "csv", "--out", str(folder))
    assert table.returncode == 0, table.stderr
    failed = carina(home, "failed", "--json")
    assert failed.returncode == 0, failed.stderr
    with (folder / "films.csv").open(newline="") as stream:
        rows = {Path(row["source"]).name: row for row in csv.DictReader(stream)}
    return rows, json.loads(failed.stdout), run.stdout + run.stderr


@pytest.mark.parametrize("name", sorted(TROUBLE))
def test_trouble_ends_with_its_state_and_code(night: tuple[dict[str, dict[str, str]], ...], name: str) -> None:
    rows = night[0]
    _, state, codes = TROUBLE[name]
    assert (rows[name]["state"], rows[name]["code"]) in {(state, code) for code in codes}


def test_failed_names_film_stage_cause_and_next_step(night: tuple[dict, list[dict[str, str]], str]) -> None:
    listed = {Path(row["source"]).name: row for row in night[1]}
    expected = {name for name, (_, state, _) in TROUBLE.items() if state in {"failed", "rejected"}}
    expected.add("again")  # the folder that contains itself
    assert set(listed) == expected
    for row in listed.values():
        assert row["stage"]
        assert row["sentence"].endswith(".")
        assert row["advice"]


def test_one_uid_with_two_pictures_is_one_film_and_one_conflict(night: tuple[dict, list, str]) -> None:
    assert sorted(night[0][name]["state"] for name in ("one.dcm", "other.dcm")) == ["conflict", "done"]


def test_what_is_no_film_has_no_row(night: tuple[dict, list, str]) -> None:
    rows = night[0]
    assert {"README", "notes.txt", "DICOMDIR"} & set(rows) == set()
    assert rows["again"]["code"] == "DIRECTORY_LOOP"
    assert len(rows) == len(TROUBLE) + 3


def test_nothing_printed_names_a_patient(night: tuple[dict, list, str]) -> None:
    for word in ("PHANTOM", "Test^", "nowhere"):
        assert word not in night[2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_rejected_and_taken_later(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    no_permission(tmp_path / "films" / "a.dcm")
    carina(tmp_path / "home", "submit", str(tmp_path / "films"))
    (tmp_path / "films" / "a.dcm").chmod(0o600)
    again = carina(tmp_path / "home", "submit", str(tmp_path / "films"), "--json")
    assert json.loads(again.stdout)["registered"] == 1

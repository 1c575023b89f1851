from __future__ import annotations

import os
import zipfile
from pathlib import Path

import dicom_files
import pytest

from worker.errors import FilmError
from worker.film import source
from worker.film.reader import read_header
from worker.film.source import open_source


@pytest.fixture
def data() -> bytes:
    return dicom_files.to_bytes(dicom_files.make_dataset(dicom_files.chest_pixels(), SOPInstanceUID="1.2.3"))


@pytest.fixture
def archive(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "films.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a/one.dcm", data)
    return path


def code_of(path: Path, member: str | None = None) -> str:
    with pytest.raises(FilmError) as caught, open_source(path, member) as (stream, size):
        stream.read(size)
    assert str(path.parent) not in str(caught.value)
    return caught.value.code


def test_a_file_and_a_member_read_the_same(tmp_path: Path, archive: Path, data: bytes) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(data)
    with open_source(path) as (stream, size):
        assert size == len(data) and read_header(stream, size).sop_instance_uid == "1.2.3"
    with open_source(archive, "a/one.dcm") as (stream, size):
        assert size == len(data) and read_header(stream, size).sop_instance_uid == "1.2.3"


def test_what_is_not_there(tmp_path: Path, archive: Path) -> None:
    assert code_of(tmp_path / "none.dcm") == "SOURCE_MISSING"
    assert code_of(archive, "a/two.dcm") == "SOURCE_MISSING"
    assert code_of(tmp_path) == "READ_ERROR"
    assert code_of(tmp_path / "none.zip", "one") == "SOURCE_MISSING"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(data)
    path.chmod(0)
    assert code_of(path) == "NO_PERMISSION"


def test_permission_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(Path, "open", refuse)
    assert code_of(tmp_path / "one.dcm") == "NO_PERMISSION"


def test_a_damaged_archive(tmp_path: Path, archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[200:260] = bytes(60)
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(content)
    assert code_of(damaged, "a/one.dcm") == "BAD_ARCHIVE"
    damaged.write_bytes(b"no archive")
    assert code_of(damaged, "a/one.dcm") == "BAD_ARCHIVE"


def test_an_encrypted_member(tmp_path: Path, archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    locked = tmp_path / "locked.zip"
    locked.write_bytes(content)
    assert code_of(locked, "a/one.dcm") == "BAD_ARCHIVE"


def test_a_member_larger_than_any_film(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_FILE_BYTES", 1000)
    assert code_of(archive, "a/one.dcm") == "FILE_TOO_LARGE"


def test_film_errors_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("no film" * 100)
    with pytest.raises(FilmError) as caught, open_source(path) as (stream, size):
        read_header(stream, size)
    assert caught.value.code == "NOT_DICOM"

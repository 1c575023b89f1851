from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from intake_rows import film_bytes, write_film

from worker.intake import headers
from worker.intake.folders import FoundFile, scan
from worker.intake.headers import HeaderReader
from worker.intake.sources import Roots
from worker.settings import Settings

ROOTS = Roots(Settings())


@pytest.fixture
def reader() -> Iterator[HeaderReader]:
    with HeaderReader() as reader:
        yield reader


def found(*paths: Path) -> list[FoundFile]:
    return [item for item in scan(ROOTS, paths) if isinstance(item, FoundFile)]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "EMPTY_FILE"),
        (b"just some text, nothing else", "NOT_DICOM"),
        (b"\0" * 128 + b"DICM", "TRUNCATED_HEADER"),
        (film_bytes("2.25.1")[:495], "TRUNCATED_HEADER"),
        (film_bytes("2.25.1", SOPClassUID=None), "MISSING_TAG"),
    ],
)
def test_bad_files_get_their_code(tmp_path: Path, reader: HeaderReader, content: bytes, code: str) -> None:
    (tmp_path / "a").write_bytes(content)
    (examined,) = reader.read(found(tmp_path))
    assert (examined.header, examined.code) == (None, code)
    assert str(tmp_path) not in examined.detail


def test_a_file_that_vanished(tmp_path: Path, reader: HeaderReader) -> None:
    files = found(write_film(tmp_path / "a", "2.25.1"))
    (tmp_path / "a").unlink()
    assert reader.read(files)[0].code == "SOURCE_MISSING"


def test_many_headers_come_back_in_order(tmp_path: Path, reader: HeaderReader) -> None:
    for number in range(300):
        write_film(tmp_path / str(number), f"2.25.{number + 1}")
    files = found(tmp_path)
    examined = [item for future in reader.start(files) for item in future.result()]
    assert [item.source for item in examined] == [file.source for file in files]
    assert all(item.header and item.header.sop_instance_uid == f"2.25.{int(file.path.rsplit('/')[-1]) + 1}"
               for item, file in zip(examined, files, strict=True))  # fmt: skip


def test_members_are_read_without_opening_the_archive_again(
    tmp_path: Path, reader: HeaderReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "films.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(1, 40):
            archive.writestr(f"f{number}", film_bytes(f"2.25.{number}"))
        archive.writestr("README", "text")
    files = found(path)
    opened: list[str] = []
    real = zipfile.ZipFile

    def open_archive(name: str) -> zipfile.ZipFile:
        opened.append(name)
        return real(name)

    monkeypatch.setattr(headers.zipfile, "ZipFile", open_archive)
    examined = [item for future in reader.start(files) for item in future.result()]
    assert sum(item.header is not None for item in examined) == 39
    assert [item.code for item in examined if item.header is None] == ["NOT_DICOM"]
    assert opened == [str(path)]


def test_a_damaged_member_is_its_own_problem(tmp_path: Path, reader: HeaderReader) -> None:
    path = tmp_path / "films.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", film_bytes("2.25.1"))
        archive.writestr("b", film_bytes("2.25.2"))
    data = bytearray(path.read_bytes())
    data[60:80] = b"\xff" * 20
    path.write_bytes(data)
    examined = {item.source.member: item for item in reader.read(found(path))}
    assert examined["a"].code == "BAD_ARCHIVE" and examined["b"].header is not None


def test_a_member_that_claims_to_be_huge_is_refused(tmp_path: Path, reader: HeaderReader) -> None:
    path = tmp_path / "films.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", film_bytes("2.25.1"))
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = (3 << 30).to_bytes(4, "little")
    path.write_bytes(data)
    assert reader.read(found(path))[0].code == "FILE_TOO_LARGE"


def test_a_fault_of_ours_stops_nothing(tmp_path: Path, reader: HeaderReader, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(stream: object, size: int) -> None:
        raise RecursionError("PATIENT^NAME")

    monkeypatch.setattr(headers, "read_header", broken)
    (examined,) = reader.read(found(write_film(tmp_path / "a", "2.25.1")))
    assert (examined.code, examined.detail) == ("BAD_HEADER", "RecursionError")

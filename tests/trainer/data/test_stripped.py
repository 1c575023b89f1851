from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from trainer.data.stripped import completed, completed_copy, is_stripped
from worker.errors import FilmError
from worker.film.reader import read_header
from worker.phantom import make_phantom, phantom_dataset


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A film without UIDs."""
    dataset = phantom_dataset(make_phantom(1, rows=32, columns=32))
    del dataset.SOPClassUID, dataset.SOPInstanceUID
    path = tmp_path / "film.dicom"
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    "error, expected",
    [
        (FilmError("MISSING_TAG", "SOPClassUID"), True),
        (FilmError("MISSING_TAG", "SOPInstanceUID"), True),
        (FilmError("BAD_VALUE", "SOPInstanceUID is not a UID"), True),
        (FilmError("BAD_VALUE", "NumberOfFrames is negative"), False),
        (FilmError("TRUNCATED_HEADER", "SOPClassUID"), False),
    ],
)
def test_only_missing_uids_are_forgiven(error: FilmError, expected: bool) -> None:
    assert is_stripped(error) is expected


def test_a_completed_film_has_uids_that_follow_from_its_name(film: Path) -> None:
    data = completed(film, pixels=False)
    header = read_header(BytesIO(data), len(data))
    assert header.sop_instance_uid.startswith("2.25.")
    assert (header.rows, header.columns) == (32, 32)
    assert completed(film, pixels=False) == data
    other = film.rename(film.with_name("other.dicom"))
    assert completed(other, pixels=False) != data


def test_pixels_are_kept_when_wanted(film: Path) -> None:
    before = pydicom.dcmread(film).PixelData
    assert "PixelData" not in pydicom.dcmread(BytesIO(completed(film, pixels=False)))
    with completed_copy(film) as copy:
        assert pydicom.dcmread(copy).PixelData == before
    assert not copy.exists()


def test_what_cannot_be_completed_is_a_bad_header(tmp_path: Path) -> None:
    (tmp_path / "film").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0\xff")
    with pytest.raises(FilmError) as refused:
        completed(tmp_path / "film", pixels=True)
    assert refused.value.code == "BAD_HEADER"
    with pytest.raises(FileNotFoundError):
        completed(tmp_path / "none", pixels=True)

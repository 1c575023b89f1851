from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_files import chest_pixels, make_dataset, save

from worker.errors import FilmError
from worker.film.pictures import PictureReader
from worker.settings import load_settings


@pytest.fixture(scope="module")
def reader() -> Iterator[PictureReader]:
    with PictureReader(load_settings({}), 256) as opened:
        yield opened


@pytest.mark.parametrize(
    ("rows", "columns", "shape"), [(200, 100, (256, 128)), (100, 200, (128, 256)), (64, 64, (256, 256))]
)
def test_a_picture_is_the_whole_film_and_nothing_else(
    reader: PictureReader, tmp_path: Path, rows: int, columns: int, shape: tuple[int, int]
) -> None:
    """Regions and activation maps cover the film: a border around it would shift them."""
    film = np.random.default_rng(1).integers(2500, 3500, (rows, columns)).astype(np.uint16)
    film[rows // 4 : rows // 2, columns // 4 : columns // 2] -= 2400
    picture = reader.picture(save(make_dataset(film, WindowCenter=None, WindowWidth=None), tmp_path / "a.dcm"))
    assert picture.shape == shape
    inside = np.argwhere(picture < 110)
    np.testing.assert_allclose(inside.min(0), np.array(shape) / 4, atol=2)
    np.testing.assert_allclose(inside.max(0), np.array(shape) / 2, atol=2)


def test_what_cannot_be_read_is_said_or_is_no_picture(reader: PictureReader, tmp_path: Path) -> None:
    path = save(make_dataset(chest_pixels()), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[:-2000])
    assert reader.read(path) is None
    with pytest.raises(FilmError) as error:
        reader.picture(path)
    assert error.value.code == "TRUNCATED_PIXELS"
